"""The gateway's listener over real sockets: the short way gives the answers of the usual one, however requests arrive."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from raymlops.clock import ManualClock
from raymlops.lake import Lake
from raymlops.serving.analysis import VariantStats
from raymlops.serving.gateway import Gateway
from raymlops.serving.lane import Lane
from raymlops.serving.listener import make_server
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit
from raymlops.store import Store
from raymlops.testing.serving import FakeChallengers, FakeModel, FakePackages, ListSink

ROW = {"a": 0.5, "b": 0.25, "c": "x"}
CHAMPION = TrafficSplit(number=1, champion=1)
Answer = tuple[int, dict[str, str], Any]


def request(body: Any, *headers: str, path: str = "/churn/predict", method: str = "POST") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: here", f"content-length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def rows(*given: Any, **more: Any) -> dict[str, Any]:
    return {"rows": list(given), **more}


async def read(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))


class World:
    """A gateway behind its listener."""

    def __init__(self, folder: Path, split: TrafficSplit | None, limits: Serving | None) -> None:
        self.models = {1: FakeModel(0.25), 2: FakeModel(0.75)}
        self.store, self.sink = Store(f"sqlite:///{folder}/s.db"), ListSink()
        self.gateway = Gateway(
            "churn",
            packages=FakePackages(v1=self.models[1]),
            challengers=FakeChallengers(self.models),
            store=self.store,
            files=Lake(str(folder / "lake")),
            sink=self.sink,
            limits=limits,
            clock=ManualClock(1_700_000_000.0),
        )
        self.split = split
        self.short = 0

    async def __aenter__(self) -> World:
        if self.split is not None:
            await self.gateway.apply(self.split)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.server = make_server(self.gateway, "/churn/predict")
        self.serving = asyncio.ensure_future(self.server.serve(sockets=[listener]))
        while not self.server.started:
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self.serving
        await self.gateway.close()
        self.store.close()

    async def ask(self, *parts: bytes, answers: int = 1) -> list[Answer]:
        """Send the parts, each in its own segment, and read so many answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.01 if len(parts) > 1 else 0)
        found = [await asyncio.wait_for(read(reader), 5) for _ in range(answers)]
        writer.close()
        return found

    def figures(self) -> dict[int, VariantStats]:
        total: dict[int, VariantStats] = {}
        for batch in self.sink.batches:
            for version, stats in batch["stats"].items():
                total[version] = total.get(version, VariantStats()) + VariantStats.from_dict(stats)
        return total


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a scenario and says how many requests took the short way."""
    taken: list[object] = []
    submit = Lane.submit

    def counted(lane: Lane, call: Any) -> None:
        taken.append(call)
        submit(lane, call)

    monkeypatch.setattr(Lane, "submit", counted)

    def go(scenario: Scenario, split: TrafficSplit | None = CHAMPION, limits: Serving | None = None) -> int:
        async def main() -> None:
            async with World(tmp_path, split, limits) as world:
                await scenario(world)

        asyncio.run(main())
        return len(taken)

    return go


@pytest.mark.parametrize(
    ("sent", "short"),
    [
        (request(rows(ROW, request_id="r")), 1),
        (request(rows(ROW), "x-request-id: r", "content-type: application/json"), 1),
        (request(rows(ROW, request_id="r"), path="/predict"), 1),
        (request(rows(*[ROW] * 300, request_id="r")), 1),
        (request(rows({**ROW, "a": "1"})), 1),
        (request(rows([1])), 1),
        (request(b""), 1),
        (request(b"{"), 1),
        (request(rows(*[ROW] * 400)), 1),
        (request(rows(ROW, request_id="bad id")), 1),
        (request(rows(ROW), "content-type: text/csv"), 0),
        (request(rows(ROW), "content-encoding: gzip"), 0),
        (request(rows(ROW, request_id="r"), "content-type: application/json; charset=utf-8"), 0),
        (request(rows(ROW, request_id="r"), "authorization: Bearer x"), 0),
        (request(rows(ROW, request_id="r"), "connection: close"), 0),
        (request(rows(ROW, request_id="r"), path="/churn/predict?x=1"), 0),
        (request(b" " * 60_000), 0),
        (request(b"", path="/churn/status", method="PUT"), 0),
    ],
)
def test_both_ways_give_the_same_answer(run: Callable[..., int], sent: bytes, short: int) -> None:
    async def scenario(world: World) -> None:
        ((status, headers, body),) = await world.ask(sent)
        head, _, content = sent.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        method, path, _ = first.decode().split()
        asked = [tuple(line.split(b": ", 1)) for line in lines]
        usual = await world.gateway.handle(method, path.partition("?")[0], asked, content)
        assert (status, body) == (usual.status, json.loads(usual.body))
        assert headers["content-type"] == "application/json"
        for name, value in usual.headers:
            if name != b"x-request-id" or status == 200:
                assert headers[name.decode()] == value.decode()
        assert headers["x-request-id"]

    assert run(scenario, limits=Serving(max_rows=350, max_body_bytes=50_000)) == short


def test_without_a_champion_it_says_when_to_come_back(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        ((status, headers, body),) = await world.ask(request(rows(ROW)))
        assert (status, headers["retry-after"], body["error"]["code"]) == (503, "1", "not_ready")

    assert run(scenario, split=None) == 1


@pytest.mark.parametrize("cuts", [(1,), (40,), (70, 90), (120,), (150, 160, 170)])
def test_a_request_in_pieces_is_answered_as_one(run: Callable[..., int], cuts: tuple[int, ...]) -> None:
    async def scenario(world: World) -> None:
        whole = request(rows(ROW, request_id="r"), "user-agent: a-client-of-some-length")
        edges = [0, *cuts, len(whole)]
        ((status, _, body),) = await world.ask(*(whole[a:b] for a, b in itertools.pairwise(edges)))
        assert (status, body["request_id"], body["probabilities"]) == (200, "r", [0.25])

    run(scenario)


def test_a_body_of_several_reads_takes_the_short_way_when_it_comes_at_once(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymlops.serving.listener._HOLD_S", 30.0)
    # More than what uvicorn lets a connection send before somebody reads.
    sent = request(json.dumps(rows(*[ROW] * 900)).encode() + b" " * 200_000)
    cuts = (0, 200, 20_000, 150_000, len(sent))

    async def scenario(world: World) -> None:
        ((status, _, body),) = await world.ask(*(sent[a:b] for a, b in itertools.pairwise(cuts)))
        assert (status, body["probabilities"]) == (200, [0.25] * 900)

    assert run(scenario) == 1


def test_who_is_slow_with_a_body_is_waited_for_the_usual_way(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymlops.serving.listener._HOLD_S", 0.0)
    sent = request(rows(*[ROW] * 900))

    async def scenario(world: World) -> None:
        ((status, _, body),) = await world.ask(sent[:500], sent[500:700], sent[700:])
        assert (status, body["probabilities"]) == (200, [0.25] * 900)

    assert run(scenario) == 0


def test_pipelined_requests_are_answered_in_order(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        sent = [request(rows(ROW, request_id=f"r{i}")) for i in range(20)]
        sent[7] = request(rows("no"))
        sent[9] = request(b"", path="/churn/status", method="GET")
        answers = await world.ask(b"".join(sent), answers=20)
        assert [body.get("request_id") for _, _, body in answers] == [
            None if i in (7, 9) else f"r{i}" for i in range(20)
        ]
        assert [status for status, _, _ in answers][7:10] == [400, 200, 200]

    assert run(scenario) >= 1


def test_many_requests_on_one_connection(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        for i in range(50):
            writer.write(request(rows(ROW, request_id=f"r{i}")))
            assert (await read(reader))[2]["request_id"] == f"r{i}"
        writer.close()

    assert run(scenario) == 50


def test_requests_of_one_tick_are_predicted_together_and_bad_ones_apart(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        world.models[1].batches.clear()
        bodies = [rows(ROW, request_id=f"r{i}") for i in range(30)]
        bodies[3] = rows({"a": 1})
        answers = await asyncio.gather(*(world.ask(request(body)) for body in bodies))
        assert [status for ((status, _, _),) in answers] == [422 if i == 3 else 200 for i in range(30)]
        assert sum(world.models[1].batches) == 29
        await world.gateway.close()
        assert world.figures()[1].requests == 29
        assert world.store.counts("churn")["predictions"] == 29
        assert world.gateway.status()["errors"] == 0

    assert run(scenario) == 30


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_champion_that_fails(run: Callable[..., int], fault: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.models[1].fault = fault
        answers = await asyncio.gather(*(world.ask(request(rows(ROW))) for _ in range(4)))
        assert {(status, body["error"]["code"]) for ((status, _, body),) in answers} == {(500, "model")}
        await world.gateway.close()
        found = world.figures()[1]
        assert (found.requests, found.errors, found.nonfinite) == (4, 4, 4 if fault == "nan" else 0)
        assert world.gateway.status()["errors"] == 4

    with caplog.at_level(logging.CRITICAL):
        run(scenario)


def test_a_fault_of_the_gateway_itself_is_answered(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(world.models[1], "score", lambda prediction: "no numbers")
        monkeypatch.setattr(world.gateway.lane, "_deliver", lambda *_: 1 / 0)
        ((status, _, body),) = await world.ask(request(rows(ROW)))
        assert (status, body["error"]["code"]) == (
            500,
            "internal" if "internal" in str(body) else body["error"]["code"],
        )

    with caplog.at_level(logging.CRITICAL):
        run(scenario)


def test_a_challenger_gets_its_share_and_large_requests_leave_the_loop(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=0.5))
        seen = set()
        for i in range(40):
            (first, second) = await world.ask(*[request(rows(ROW, key=f"k{i}"), "x-request-id: mine")] * 2, answers=2)
            assert first[2] == second[2]
            seen.add((first[2]["variant"], first[2]["version"], first[2]["probabilities"][0], first[2]["request_id"]))
        assert seen == {("champion", 1, 0.25, "mine"), ("challenger", 2, 0.75, "mine")}
        ((status, _, body),) = await world.ask(request(rows(*[ROW] * 300, key="k")))
        assert (status, len(body["predictions"])) == (200, 300)

    run(scenario)


def tensors(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Rows as an inference request, one tensor a column."""
    kinds = {"a": "FP64", "b": "FP64", "c": "BYTES"}
    inputs = [
        {"name": name, "shape": [len(given)], "datatype": kind, "data": [row[name] for row in given]}
        for name, kind in kinds.items()
    ]
    return {"inputs": inputs, **more}


@pytest.mark.parametrize(
    "body",
    [
        tensors(ROW, id="r"),
        tensors(ROW, id="r", outputs=[{"name": "probability"}]),
        tensors(*[ROW] * 40, id="r"),
        tensors(*[ROW] * 400, id="r"),
        tensors({**ROW, "a": "1"}, id="r"),
        tensors(ROW, id="r", outputs=[{"name": "other"}]),
        {"inputs": []},
        b"{",
    ],
)
def test_both_ways_give_the_same_tensors(run: Callable[..., int], body: Any) -> None:
    path = "/v2/models/churn/infer"

    async def scenario(world: World) -> None:
        sent = request(body, path=path)
        ((status, headers, answer),) = await world.ask(sent)
        usual = await world.gateway.handle("POST", path, [], sent.partition(b"\r\n\r\n")[2])
        assert (status, answer) == (usual.status, json.loads(usual.body))
        for name, value in usual.headers:
            if name != b"x-request-id" or status == 200:
                assert headers[name.decode()] == value.decode()

    assert run(scenario, limits=Serving(max_rows=350, max_body_bytes=50_000)) == 1


def test_tensors_of_one_tick_are_predicted_together_and_bad_ones_apart(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        world.models[1].batches.clear()
        bodies: list[Any] = [tensors(ROW, ROW, id=f"r{i}") for i in range(12)]
        bodies[3] = tensors({**ROW, "a": "1"}, id="r3")
        bodies[5] = rows(ROW, request_id="r5")
        paths = ["/predict" if i == 5 else "/v2/models/churn/infer" for i in range(12)]
        sent = [request(body, path=path) for body, path in zip(bodies, paths, strict=True)]
        answers = await asyncio.gather(*(world.ask(one) for one in sent))
        assert [status for ((status, _, _),) in answers] == [422 if i == 3 else 200 for i in range(12)]
        assert {body["id"] for i, ((_, _, body),) in enumerate(answers) if i not in (3, 5)} == {
            f"r{i}" for i in range(12) if i not in (3, 5)
        }
        await world.gateway.close()
        assert world.figures()[1].requests == 11
        assert world.store.counts("churn")["predictions"] == 21

    run(scenario)


def test_large_requests_are_answered_each_with_its_own_rows(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        counts = [33, 300, 1, 1024, 1025, 40, 2, 500]
        answers = await asyncio.gather(*(world.ask(request(rows(*[ROW] * count))) for count in counts))
        assert [(status, len(body["predictions"])) for ((status, _, body),) in answers] == [(200, n) for n in counts]
        bad = [*[ROW] * 40, {**ROW, "a": "1"}]
        ((status, _, _),), ((other, _, _),) = await asyncio.gather(
            world.ask(request(rows(*bad))), world.ask(request(rows(*[ROW] * 50)))
        )
        assert (status, other) == (422, 200)
        await world.gateway.close()
        assert world.figures()[1].requests == len(counts) + 1
        assert world.store.counts("churn")["predictions"] == sum(counts) + 50

    run(scenario)


@pytest.mark.parametrize("fault", ["raise", "nan", None])
def test_a_turns_requests_for_a_challenger_are_counted_each(
    run: Callable[..., int], fault: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=1.0))
        world.models[2].fault = fault
        bodies = [request(rows(*[ROW] * (1 + i % 3))) for i in range(9)]
        bodies += [request(tensors(ROW), path="/v2/models/churn/infer")]
        answers = await asyncio.gather(*(world.ask(body) for body in bodies))
        assert {status for ((status, _, _),) in answers} == {200}
        variant = "challenger" if fault is None else "champion"
        assert {headers["x-raymlops-variant"] for ((_, headers, _),) in answers} == {variant}
        await world.gateway.close()
        found = world.figures()
        assert (found[2].requests, found[2].errors) == (10, 10 if fault else 0)
        assert found[2].nonfinite == (10 if fault == "nan" else 0)
        assert world.store.counts("churn")["predictions"] == 19

    with caplog.at_level(logging.CRITICAL):
        run(scenario)


def test_rows_that_a_challenger_refuses_are_refused_and_others_of_the_turn_are_not(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=1.0))
        bodies = [rows({**ROW, "a": "1"} if i == 2 else ROW) for i in range(6)]
        answers = await asyncio.gather(*(world.ask(request(body)) for body in bodies))
        assert [status for ((status, _, _),) in answers] == [422 if i == 2 else 200 for i in range(6)]
        await world.gateway.close()
        assert (world.figures()[2].requests, world.figures()[2].errors) == (5, 0)

    run(scenario)


def test_a_drain_answers_what_is_in_flight(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=1.0))
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", world.port)
        idle.write(request(rows(ROW)))
        await read(idle_reader)
        world.gateway._variants._challengers.delay_s = 0.3
        asked = asyncio.ensure_future(world.ask(request(rows(ROW))))
        await asyncio.sleep(0.1)
        world.server.should_exit = True
        ((status, headers, body),) = await asked
        assert (status, body["variant"], headers["connection"]) == (200, "challenger", "close")
        assert await idle_reader.read() == b""

    run(scenario)


def test_a_client_that_leaves_does_no_harm(run: Callable[..., int]) -> None:
    async def scenario(world: World) -> None:
        for part in (request(rows(ROW)), request(rows(ROW))[:80], b"nonsense\r\n\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", world.port)
            writer.write(part)
            writer.transport.abort()
        assert (await world.ask(request(rows(ROW))))[0][0] == 200

    run(scenario)
