"""The ASGI application driven in-process; store and lake are real, models and challengers are not."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.blocks import Block
from raymlops.clock import ManualClock
from raymlops.data.schema import Column, DataContract
from raymlops.data.served import LOG_COLUMNS, read_labelled, read_served
from raymlops.errors import ContractViolation, DataError, StoreError
from raymlops.lake import Lake
from raymlops.serving import gateway as gateway_module
from raymlops.serving.analysis import VariantStats
from raymlops.serving.batching import answer_rows
from raymlops.serving.gateway import Gateway
from raymlops.serving.logfile import Served, packed, to_parquet
from raymlops.serving.recorder import Recorder
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit
from raymlops.serving.writing import LOG_ROWS, thread_writer
from raymlops.sketch.observed import Observed
from raymlops.sketch.profile import Profile
from raymlops.store import LabelOutcome, LabelRow, PredictionRow, Store
from raymlops.testing.serving import FakeChallengers, FakeModel, FakePackages, ListSink

ROW = {"a": 0.5, "b": 0.25, "c": "x"}
CHAMPION_ONLY = TrafficSplit(number=1, champion=1)
ALL_TO_2 = TrafficSplit(number=2, champion=1, challenger=2, weight=1.0)


class ListStore:
    """Keeps blocks in a list."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def add_block(self, endpoint: str, block: Block) -> None:
        self.blocks.append(block)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"nothing asks for {name}")


class ListLake:
    """Keeps files in a dictionary, while it has room."""

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}
        self.full = False

    def write(self, key: str, content: bytes) -> None:
        if self.full:
            raise OSError("no space left")
        self.written[key] = content


@dataclass
class World:
    """A gateway and everything around it."""

    gateway: Gateway
    client: httpx.AsyncClient
    store: Store
    lake: Lake
    sink: ListSink
    packages: FakePackages
    challengers: FakeChallengers
    models: dict[int, FakeModel] = field(default_factory=dict)

    async def predict(self, **body: Any) -> httpx.Response:
        return await self.client.post("/churn/predict", json={"rows": [ROW], **body})

    def figures(self) -> dict[int, VariantStats]:
        """What the sink was told of each version, summed up."""
        total: dict[int, VariantStats] = {}
        for batch in self.sink.batches:
            for version, stats in batch["stats"].items():
                total[version] = total.get(version, VariantStats()) + VariantStats.from_dict(stats)
        return total


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Runs a scenario against a gateway with versions 1 to 3, of which 1 is the champion."""

    @asynccontextmanager
    async def world(split: TrafficSplit | None, store: Store | None, limits: Serving | None) -> AsyncIterator[World]:
        models = {1: FakeModel(0.25), 2: FakeModel(0.75), 3: FakeModel(0.875)}
        packages = FakePackages(v1=models[1], v2=models[2], v3=models[3])
        challengers, sink = FakeChallengers(models), ListSink()
        store, lake = store or Store(f"sqlite:///{tmp_path}/s.db"), Lake(str(tmp_path / "lake"))
        gateway = Gateway(
            "churn",
            packages=packages,
            challengers=challengers,
            store=store,
            files=lake,
            sink=sink,
            limits=limits,
            clock=ManualClock(1_700_000_000.0),
            flush_s=0.02,
        )
        if split is not None:
            await gateway.apply(split)
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield World(gateway, client, store, lake, sink, packages, challengers, models)
        await gateway.close()
        store.close()

    def go(
        scenario: Scenario,
        split: TrafficSplit | None = CHAMPION_ONLY,
        store: Store | None = None,
        limits: Serving | None = None,
    ) -> None:
        async def main() -> None:
            async with world(split, store, limits) as made:
                await scenario(made)

        asyncio.run(main())

    return go


# --- predictions -------------------------------------------------------------------------------------


def test_the_champion_answers(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        answer = await world.predict(request_id="r1")
        assert answer.status_code == 200
        assert answer.json() == {
            "request_id": "r1",
            "version": 1,
            "variant": "champion",
            "predictions": [0],
            "probabilities": [0.25],
        }
        headers = answer.headers
        assert (headers["x-request-id"], headers["x-raymlops-version"], headers["x-raymlops-variant"]) == (
            "r1",
            "1",
            "champion",
        )

    run(scenario)


def test_a_request_id_comes_from_the_header_when_it_is_one(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        for sent, kept in (("abc-1", True), ("bad id", False), ("x" * 100, False)):
            answer = await world.client.post("/predict", json={"rows": [ROW]}, headers={"x-request-id": sent})
            assert (answer.json()["request_id"] == sent) is kept
            assert answer.headers["x-request-id"] == answer.json()["request_id"]

    run(scenario)


def test_requests_of_one_tick_are_predicted_together(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.models[1].batches.clear()
        answers = await asyncio.gather(*(world.predict(request_id=f"r{i}") for i in range(8)))
        assert [answer.json()["request_id"] for answer in answers] == [f"r{i}" for i in range(8)]
        assert sum(world.models[1].batches) == 8
        assert len(world.models[1].batches) < 8

    run(scenario)


def test_one_bad_request_does_not_spoil_its_batch(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        bad = {"rows": [{**ROW, "a": "0.5"}]}
        answers = await asyncio.gather(
            world.predict(), world.client.post("/churn/predict", json=bad), world.predict(rows=[ROW, ROW])
        )
        assert [answer.status_code for answer in answers] == [200, 422, 200]
        assert len(answers[2].json()["predictions"]) == 2

    run(scenario)


def test_many_rows_are_predicted_in_a_thread(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        where = []
        world.models[1].predict = lambda x: where.append(threading.current_thread()) or FakeModel(0.25).predict(x)
        assert len((await world.predict(rows=[ROW] * 300)).json()["predictions"]) == 300
        await world.predict()
        assert where[0] is not threading.main_thread()
        assert where[1] is threading.main_thread()

    run(scenario)


# --- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "code", "sentence"),
    [
        (b"", 400, "malformed", "The body is empty."),
        (b"{", 400, "malformed", "The body is not JSON"),
        (b'{"rows": [[1]]}', 400, "malformed", "Row 0 is a list"),
        (b'{"rows": []}', 422, "contract", '"rows" is empty'),
        (b'{"rows": [{"a": 1, "b": 1}]}', 422, "contract", "column 'c': missing"),
        (b'{"rows": [{"a": 1, "b": 1, "c": "x", "d": 1}]}', 422, "contract", "column 'd': not in the contract"),
        (b'{"rows": [{"a": "1", "b": 1, "c": "x"}]}', 422, "contract", "column 'a': expected number, got '1' (row 0)"),
        (b'{"rows": [{"a": true, "b": 1, "c": "x"}]}', 422, "contract", "column 'a': expected number, got True"),
        (b'{"rows": [{"a": null, "b": 1, "c": "x"}]}', 422, "contract", "column 'a': expected number, got null"),
        (b'{"rows": [{"a": NaN, "b": 1, "c": "x"}]}', 422, "contract", "column 'a': expected number, got nan"),
        (b'{"rows": [{"a": 1e999, "b": 1, "c": "x"}]}', 422, "out_of_range", "column 'a': expected number within"),
        (
            b'{"rows": [{"a": ' + b"9" * 5000 + b', "b": 1, "c": "x"}]}',
            422,
            "out_of_range",
            "column 'a': expected number within",
        ),
        (b'{"rows": [{"a": 1, "b": 1, "c": 5}]}', 422, "contract", "column 'c': expected category (text), got 5"),
        (b'{"rows": [{"a": {}, "b": 1, "c": "x"}]}', 422, "contract", "column 'a': expected number, got {}"),
        (json.dumps({"rows": [ROW] * 11}).encode(), 413, "too_large", "The request holds 11 rows"),
        (b" " * 9000, 413, "too_large", "The body is larger than 8192 bytes"),
    ],
)
def test_bad_rows_are_refused_with_a_sentence(
    run: Callable[..., None], content: bytes, status: int, code: str, sentence: str
) -> None:
    async def scenario(world: World) -> None:
        answer = await world.client.post("/churn/predict", content=content)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code)
        assert sentence in error["message"]
        assert world.gateway.status()["errors"] == 0

    run(scenario, limits=Serving(max_rows=10, max_body_bytes=8192))


def test_missing_values_are_taken_where_the_contract_has_them(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        for missing in (b"null", b"NaN"):
            answer = await world.client.post("/predict", content=b'{"rows": [{"a": 1, "b": %s, "c": "z"}]}' % missing)
            assert answer.status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/churn/predict", 405, b"POST"),
        ("DELETE", "/churn/status", 405, b"GET"),
        ("TRACE", "/churn/predict", 405, b"POST"),
        ("GET", "/", 404, None),
        ("POST", "/other/predict", 404, None),
        ("GET", "/churn/../status", 404, None),
        ("GET", "/churn/%2e%2e/status", 404, None),
        ("GET", "//churn/status", 404, None),
        ("GET", "/churn/\\..\\status", 404, None),
        ("GET", "/churn/status\0", 404, None),
        ("GET", "/churn/" + "x" * 4000, 404, None),
        ("POST", "/v2/models/other/infer", 404, None),
    ],
)
def test_unknown_paths_and_methods(
    run: Callable[..., None], method: str, path: str, status: int, allow: bytes | None
) -> None:
    async def scenario(world: World) -> None:
        answer_status, headers, body = await call(world.gateway, method, path, b"", [])
        assert (answer_status, headers.get(b"allow")) == (status, allow)
        assert headers[b"x-raymlops-error"] == (b"method_not_allowed" if status == 405 else b"not_found")
        assert body["error"] if path.startswith("/v2") else body["error"]["message"]

    run(scenario)


def test_other_media_are_415(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        answer = await world.client.post("/churn/predict", content=b"a,b", headers={"content-type": "text/csv"})
        assert answer.status_code == 415
        assert (
            answer.json()["error"]["message"]
            == "The body is text/csv: send application/json or application/vnd.apache.arrow.stream."
        )

    run(scenario)


@pytest.mark.parametrize("length", [b"x", b"-1", b"99999999999999999999"])
def test_a_false_content_length_is_refused(run: Callable[..., None], length: bytes) -> None:
    async def scenario(world: World) -> None:
        assert (await call(world.gateway, "POST", "/predict", b"{}", [(b"content-length", length)]))[0] in (400, 413)

    run(scenario)


async def call(
    app: Gateway, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]], *, stall: bool = False
) -> tuple[int, dict[bytes, bytes], dict[str, Any]]:
    """A request below the level of any client: headers may lie, the body may never come."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if stall:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


def test_a_body_that_never_comes_meets_the_deadline(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        status, _, body = await call(world.gateway, "POST", "/predict", b"", [], stall=True)
        assert (status, body["error"]["code"]) == (408, "request_timeout")
        assert body["error"]["message"] == "The body was not complete within 0.05 s: send it faster."
        assert (await world.predict()).status_code == 200

    run(scenario, limits=Serving(deadline_s=0.05))


def test_a_client_that_leaves_gets_no_answer_and_does_no_harm(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("there is nobody to answer")

        await world.gateway({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive, send)
        assert (await world.predict()).status_code == 200

    run(scenario)


def test_a_websocket_is_closed(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await world.gateway({"type": "websocket", "path": "/predict"}, asyncio.Event().wait, send)
        assert [message["type"] for message in sent] == ["websocket.close"]

    run(scenario)


def test_too_many_requests_at_once_are_told_to_come_back(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(gateway_module, "MAX_IN_FLIGHT", 2)
        answers = await asyncio.gather(*(world.predict() for _ in range(5)))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert 0 < len(refused) < 5
        assert refused[0].headers["retry-after"] == "1"
        assert refused[0].json()["error"]["code"] == "overloaded"

    run(scenario)


# --- the model's own failures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "sentence", "nonfinite"),
    [
        ("raise", "Version 1 failed on this request; the gateway's log says why.", 0),
        ("nan", "Version 1 gave a prediction that is not a finite number.", 1),
    ],
)
def test_a_champion_that_fails_is_a_500_without_a_trace(
    run: Callable[..., None], fault: str, sentence: str, nonfinite: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        world.models[1].fault = fault
        answer = await world.predict()
        assert answer.status_code == 500
        assert answer.json()["error"] == {"code": "model", "message": sentence, "details": {}}
        await world.gateway.close()
        figures = world.figures()[1]
        assert (figures.requests, figures.errors, figures.nonfinite) == (1, 1, nonfinite)

    with caplog.at_level(logging.CRITICAL):
        run(scenario)


def test_features_that_cannot_take_the_rows_are_the_clients_matter(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        def refuse(rows: Any) -> Any:
            raise DataError("The features function failed: TypeError: unsupported operand")

        world.models[1].predict_rows = refuse
        assert (await world.predict()).status_code == 422

    run(scenario)


# --- routing ------------------------------------------------------------------------------------------


def test_without_a_table_nothing_is_ready(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        for path in ("/churn/health/ready", "/v2/health/ready", "/v2/models/churn/ready", "/v2/models/churn"):
            answer = await world.client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (await world.predict()).json()["error"]["message"] == "churn has no champion yet. Try again in a moment."
        assert (await world.client.get("/health/live")).status_code == 200
        assert (await world.client.get("/churn/status")).json()["ready"] is False

    run(scenario, split=None)


def test_an_older_table_never_replaces_a_newer_one(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        assert await world.gateway.apply(TrafficSplit(number=5, champion=2)) is True
        for number in (5, 4):
            assert await world.gateway.apply(TrafficSplit(number=number, champion=1)) is False
        assert (await world.predict()).json()["version"] == 2

    run(scenario)


def test_a_rollback_is_a_pointer_swap(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=2, warm=(1,)))
        await world.gateway.apply(TrafficSplit(number=3, champion=1, warm=(2,)))
        assert (await world.predict()).json()["version"] == 1
        assert world.packages.loads == [1, 2]
        assert world.gateway.status()["loaded"] == [1, 2]
        await world.gateway.apply(TrafficSplit(number=4, champion=1))
        assert world.gateway.status()["loaded"] == [1]

    run(scenario)


def test_a_version_that_does_not_load_leaves_the_old_table(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(LookupError, match="no version 9"):
            await world.gateway.apply(TrafficSplit(number=2, champion=9))
        assert (await world.predict()).json()["version"] == 1
        assert await world.gateway.apply(TrafficSplit(number=2, champion=2)) is True

    run(scenario)


def test_requests_are_answered_while_a_version_loads_and_a_newer_table_wins(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        gate = threading.Event()
        load = world.packages.load

        def slow(version: int) -> FakeModel:
            if version == 2:
                gate.wait(10)
            return load(version)

        world.packages.load = slow
        late = asyncio.ensure_future(world.gateway.apply(TrafficSplit(number=2, champion=2)))
        twice = asyncio.ensure_future(world.gateway.apply(TrafficSplit(number=2, champion=2)))
        await asyncio.sleep(0.01)
        assert (await world.predict()).json()["version"] == 1
        assert await world.gateway.apply(TrafficSplit(number=3, champion=3)) is True
        gate.set()
        assert await late is False
        assert await twice is False
        assert (await world.predict()).json()["version"] == 3
        assert world.packages.loads == [1, 3, 2]

    run(scenario)


def test_the_challenger_answers_its_share(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=0.5))
        seen = {}
        for i in range(60):
            answers = [(await world.predict(key=f"user-{i}")).json() for _ in range(2)]
            assert answers[0]["variant"] == answers[1]["variant"]
            seen[f"user-{i}"] = (answers[0]["variant"], answers[0]["version"], answers[0]["probabilities"][0])
        assert set(seen.values()) == {("champion", 1, 0.25), ("challenger", 2, 0.75)}

    run(scenario)


def test_a_batch_for_the_challenger_is_one_call(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(ALL_TO_2)
        await asyncio.gather(*(world.predict() for _ in range(8)))
        assert sum(rows for _, rows in world.challengers.calls) == 8
        assert len(world.challengers.calls) < 8

    run(scenario)


@pytest.mark.parametrize(("fault", "nonfinite"), [("raise", 0), ("nan", 1), ("late", 0), ("gone", 0)])
def test_the_champion_answers_in_place_of_a_broken_challenger(
    run: Callable[..., None], fault: str, nonfinite: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(ALL_TO_2)
        world.models[2].fault = fault
        if fault == "late":
            world.challengers.delay_s = 5.0
        if fault == "gone":
            del world.challengers.models[2]
        answer = await world.predict()
        assert (answer.status_code, answer.json()["variant"], answer.json()["version"]) == (200, "champion", 1)
        await world.gateway.close()
        champion, challenger = world.figures()[1], world.figures()[2]
        assert (champion.requests, champion.errors) == (1, 0)
        assert (challenger.requests, challenger.errors, challenger.nonfinite) == (1, 1, nonfinite)
        assert world.gateway.status()["errors"] == 0

    with caplog.at_level(logging.CRITICAL):
        run(scenario, limits=Serving(deadline_s=0.2))


def test_rows_both_refuse_are_not_the_challengers_error(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(ALL_TO_2)
        assert (await world.predict(rows=[{"a": "bad"}])).status_code == 422
        await world.gateway.close()
        assert world.figures() == {}

    run(scenario)


def test_rows_only_the_challenger_refuses_are_its_error(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        def refuse(rows: Any) -> Any:
            raise ContractViolation("column 'a': missing")

        world.models[2].predict_rows = refuse
        await world.gateway.apply(ALL_TO_2)
        assert (await world.predict()).json()["variant"] == "champion"
        await world.gateway.close()
        assert world.figures()[2].errors == 1

    run(scenario)


def test_a_shadow_sees_copies_and_answers_nobody(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=1.0, shadow=True))
        assert {(await world.predict()).json()["variant"] for _ in range(5)} == {"champion"}
        await asyncio.sleep(0.01)
        await world.gateway.close()
        assert (world.figures()[1].requests, world.figures()[2].requests) == (5, 5)
        assert [set(batch["observed"]) for batch in world.sink.batches] == [{1}]

    run(scenario)


# --- the Open Inference Protocol ------------------------------------------------------------------------


def test_infer_and_its_metadata(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        inputs = [
            {"name": "a", "shape": [2], "datatype": "FP64", "data": [0.1, 0.2]},
            {"name": "b", "shape": [2], "datatype": "FP64", "data": [0.1, 0.2]},
            {"name": "c", "shape": [2], "datatype": "BYTES", "data": ["x", "y"]},
        ]
        for path in ("/v2/models/churn/infer", "/churn/v2/models/churn/infer"):
            answer = (await world.client.post(path, json={"id": "i7", "inputs": inputs})).json()
            assert (answer["model_name"], answer["model_version"], answer["id"]) == ("churn", "1", "i7")
            assert [output["data"] for output in answer["outputs"]] == [[0, 0], [0.25, 0.25]]
        model = (await world.client.get("/v2/models/churn")).json()
        assert [item["name"] for item in model["inputs"]] == ["a", "b", "c"]
        assert (await world.client.get("/v2/models/churn/ready")).json()["ready"] is True
        wrong = await world.client.post("/v2/models/churn/infer", json={"inputs": inputs[:2]})
        assert (wrong.status_code, wrong.headers["x-raymlops-error"]) == (422, "contract")
        assert wrong.json() == {
            "error": "The rows break the data contract: column 'c': missing (row 0); column 'c': missing (row 1)"
        }

    run(scenario)


# --- versions, other formats, the document -----------------------------------------------------------------


INPUTS = [
    {"name": "a", "shape": [1], "datatype": "FP64", "data": [0.5]},
    {"name": "b", "shape": [1], "datatype": "FP64", "data": [0.5]},
    {"name": "c", "shape": [1], "datatype": "BYTES", "data": ["x"]},
]


def test_a_path_may_name_the_version(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=0.0))
        model = "/v2/models/churn/versions"
        for version, variant in ((1, "champion"), (2, "challenger")):
            answer = await world.client.post(f"{model}/{version}/infer", json={"inputs": INPUTS})
            assert answer.json()["model_version"] == str(version)
            assert answer.headers["x-raymlops-variant"] == variant
            assert (await world.client.get(f"{model}/{version}/ready")).json()["version"] == version
            assert (await world.client.get(f"{model}/{version}")).json()["versions"] == ["1", "2"]
        for path in (f"{model}/3", f"{model}/3/ready"):
            answer = await world.client.get(path)
            assert (answer.status_code, answer.headers["x-raymlops-error"]) == (404, "unknown_version")
            assert answer.json() == {"error": "churn does not serve version 3; it serves 1, 2."}
        answer = await world.client.post(f"{model}/3/infer", json={"inputs": INPUTS})
        assert answer.json() == {"error": "churn does not serve version 3; it serves 1, 2."}

    run(scenario)


def test_a_shadow_answers_nobody_who_names_it_either(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=1.0, shadow=True))
        answer = await world.client.post("/v2/models/churn/versions/2/infer", json={"inputs": INPUTS})
        assert answer.status_code == 404
        assert (await world.client.get("/v2/models/churn")).json()["versions"] == ["1"]

    run(scenario)


def test_a_named_version_that_fails_is_answered_for_by_the_champion(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=2, champion=1, challenger=2, weight=0.1))
        world.models[2].fault = "raise"
        answer = await world.client.post("/v2/models/churn/versions/2/infer", json={"inputs": INPUTS})
        assert (answer.status_code, answer.json()["model_version"]) == (200, "1")

    with caplog.at_level(logging.CRITICAL):
        run(scenario)


def test_the_servers_own_endpoints_of_the_protocol(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        server = (await world.client.get("/v2")).json()
        assert (server["name"], server["extensions"]) == ("raymlops", [])
        assert (await world.client.get("/v2/health/live")).json() == {"live": True}
        assert (await world.client.get("/v2/health/ready")).json()["ready"] is True
        some = {"inputs": INPUTS, "outputs": [{"name": "probability"}]}
        outputs = (await world.client.post("/v2/models/churn/infer", json=some)).json()["outputs"]
        assert outputs == [{"name": "probability", "shape": [1], "datatype": "FP64", "data": [0.25]}]

    run(scenario)


def test_invocations_in_json_and_csv(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        for path in ("/churn/invocations", "/invocations"):
            answer = await world.client.post(path, json={"dataframe_records": [ROW, ROW]})
            assert (answer.status_code, answer.json()) == (200, {"predictions": [0, 0]})
            assert answer.headers["x-raymlops-version"] == "1"
            assert answer.headers["x-request-id"]
        csv = {"content-type": "text/csv; charset=utf-8"}
        answer = await world.client.post("/invocations", content=b"c,a,b\nx,1.5,\n", headers=csv)
        assert answer.json() == {"predictions": [0]}
        wrong = await world.client.post("/invocations", content=b"c,a,b\nx,one,\n", headers=csv)
        assert (wrong.status_code, wrong.json()["error_code"]) == (422, "INVALID_PARAMETER_VALUE")
        assert "column 'a': expected number, got 'one'" in wrong.json()["message"]
        assert (await world.client.get("/ping")).status_code == 200
        version = await world.client.get("/churn/version")
        assert version.headers["content-type"] == "text/plain"
        assert version.text.count(".") == 2
        await world.gateway.close()
        assert world.store.counts("churn")["predictions"] == 5

    run(scenario)


def test_a_table_in_and_a_table_out(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        table = pa.table({"c": ["x"] * 300, "b": [None] * 300, "a": [float(i) for i in range(300)]})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        body, arrow = sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream"
        headers = {"content-type": arrow, "x-request-id": "t1"}
        plain = await world.client.post("/predict", content=body, headers=headers)
        assert plain.json()["probabilities"] == [0.25] * 300
        bulk = await world.client.post(
            "/predict", content=body, headers={**headers, "accept": arrow, "x-request-id": "t2"}
        )
        assert bulk.headers["content-type"] == arrow
        answer = pa.ipc.open_stream(bulk.content).read_all()
        assert answer["probability"].to_pylist() == [0.25] * 300
        assert answer.schema.metadata[b"request_id"] == b"t2" == bulk.headers["x-request-id"].encode()
        await world.gateway.apply(ALL_TO_2)
        isolated = await world.client.post("/predict", content=body, headers=headers)
        assert (isolated.json()["variant"], isolated.json()["probabilities"][0]) == ("challenger", 0.75)
        rows = await world.client.post("/predict", json={"rows": [ROW]}, headers={"accept": arrow})
        assert pa.ipc.open_stream(rows.content).read_all().num_rows == 1
        narrow = pa.BufferOutputStream()
        with pa.ipc.new_stream(narrow, table.select(["a"]).schema) as writer:
            writer.write_table(table.select(["a"]))
        wrong = await world.client.post("/predict", content=narrow.getvalue().to_pybytes(), headers=headers)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "contract")
        await world.gateway.close()
        logged = pq.read_table(io.BytesIO(world.lake.read(next(iter(world.lake.keys("served/churn"))))))
        assert logged["a"].to_pylist()[:300] == [float(i) for i in range(300)]
        assert logged["request_id"].to_pylist()[299:301] == ["t1", "t2"]

    run(scenario)


def test_the_document_of_the_endpoint(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        page = (await world.client.get("/churn/openapi.json")).json()
        assert (page["openapi"], page["info"]["title"], page["info"]["version"]) == ("3.1.0", "churn", "1")
        assert list(page["components"]["schemas"]["Row"]["properties"]) == ["a", "b", "c"]
        for path, operations in page["paths"].items():
            for method in operations:
                answer = await world.client.request(method, path.replace("{version}", "1"))
                assert answer.status_code not in (404, 405)

    run(scenario, limits=Serving(max_rows=10))


def test_every_answer_carries_an_id_and_a_refused_row_the_version_that_refused(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        for path in ("/churn/status", "/nothing", "/churn/health/ready", "/v2", "/churn/predict"):
            answer = await world.client.get(path, headers={"x-request-id": "q-1"})
            assert answer.headers["x-request-id"] == "q-1"
        refused = await world.client.post("/churn/predict", json={"rows": [{}]})
        assert refused.headers["x-raymlops-version"] == "1"
        assert refused.headers["x-raymlops-variant"] == "champion"
        malformed = await world.client.post("/churn/predict", content=b"{")
        assert "x-raymlops-version" not in malformed.headers

    run(scenario)


def test_draining_is_told_by_readiness_and_ends_connections(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.gateway.drain()
        for path in ("/health/ready", "/ping", "/v2/health/ready", "/v2/models/churn/ready"):
            answer = await world.client.get(path)
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert (await world.client.get("/health/live")).status_code == 200
        answer = await world.predict()
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")

    run(scenario)


# --- the log, the sink, the labels -----------------------------------------------------------------------


def test_what_was_served_is_in_store_lake_and_sink(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.predict(request_id="r1", rows=[ROW, {**ROW, "b": None, "a": 1}])
        await world.gateway.apply(ALL_TO_2)
        await world.predict(request_id="r2")
        await world.gateway.close()
        parts = list(world.lake.keys("served/churn"))
        assert [part.split("/")[2] for part in parts] == ["20231114"]
        table = pq.read_table(io.BytesIO(world.lake.read(parts[0]))).to_pydict()
        assert list(table) == [*LOG_COLUMNS, "a", "b", "c"]
        assert table["request_id"] == ["r1", "r1", "r2"]
        assert table["row_index"] == [0, 1, 0]
        assert table["variant"] == ["champion", "champion", "challenger"]
        assert table["score"] == [0.25, 0.25, 0.75]
        assert table["a"] == [0.5, 1.0, 0.5]
        assert table["b"] == [0.25, None, 0.25]
        assert world.store.counts("churn")["predictions"] == 3
        (batch,) = world.sink.batches
        assert set(batch["observed"]) == {1}
        assert set(batch) == {"observed", "stats", "rows", "since"}
        assert batch["since"] == 1_700_000_000.0
        assert batch["rows"] == 3
        seen = Observed.from_message(batch["observed"][1])
        assert (seen.rows, seen.whole, seen.sample.ids) == (2, True, ("r1", "r1"))
        assert seen.sample.x.tolist() == [[0.5, 0.25, 0.0, 0.25], [1.0, pytest.approx(np.nan, nan_ok=True), 0.0, 0.25]]
        assert seen.sketch.missing.tolist() == [0, 1, 0, 0]
        assert {version: stats["score_n"] for version, stats in batch["stats"].items()} == {1: 2, 2: 1}

    run(scenario)


def test_a_feature_with_the_name_of_a_log_column_is_kept_beside_it() -> None:

    item = Served(["r"], [1], [{"score": 7, "mixed": 1}], answer_rows(FakeModel(), [ROW]), 1, "champion", 0.0, 1.0)
    other = Served([5], [1], [{"score": 8, "mixed": "z"}], item.answer, 1, "champion", 0.0, 1.0)
    (content,) = to_parquet([item, other], "own")
    table = pq.read_table(io.BytesIO(content)).to_pydict()
    assert table["request_id"] == ["r", "own-5"]
    assert table["score"] == [0.75, 0.75]
    assert table["raw.score"] == [7, 8]
    assert table["mixed"] == ["1", "z"]


def test_labels_find_their_rows_and_train_the_next_model(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.predict(request_id="r1", rows=[ROW, ROW])
        # The prediction is still in the gateway's memory.
        body = {"labels": [{"request_id": "r1", "row": 0, "label": 1}, {"request_id": "r1", "row": 1, "label": 0}]}
        answer = await world.client.post("/churn/feedback", json=body)
        assert (answer.status_code, answer.json()) == (200, {"stored": 2, "duplicate": 0})
        again = await world.client.post("/feedback", json={"request_id": "r1", "label": 1})
        assert again.json() == {"stored": 0, "duplicate": 1}
        await world.gateway.close()
        frame = read_labelled(world.lake, world.store, "churn", "target")
        assert frame["target"].tolist() == [1, 0]
        assert world.gateway.status()["labels"] == 2

    run(scenario)


def test_labels_find_the_rows_of_ids_the_gateway_gave(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        answers = [(await world.predict(rows=[ROW] * (1 + i % 2))).json()["request_id"] for i in range(6)]
        assert len(set(answers)) == 6
        assert len({given.partition("-")[0] for given in answers}) == 1
        labels = [{"request_id": given, "row": i % 2, "label": 1} for i, given in enumerate(answers)]
        answer = await world.client.post("/churn/feedback", json={"labels": labels})
        assert (answer.status_code, answer.json()["stored"]) == (200, 6)
        unknown = await world.client.post("/churn/feedback", json={"request_id": answers[0], "row": 1, "label": 1})
        assert unknown.status_code == 404
        assert [(o.request_id, o.score, o.variant) for o in world.store.outcomes("churn")] == [
            (given, 0.25, "champion") for given in answers
        ]
        await world.gateway.close()
        assert len(read_labelled(world.lake, world.store, "churn", "target")) == 6
        assert world.store.counts("churn")["predictions"] == 9

    run(scenario)


@pytest.mark.parametrize("rows", [1, 3])
def test_numbers_are_logged_as_they_were_sent(run: Callable[..., None], rows: int) -> None:
    sent = {"a": 0.1, "n": 3, "b": True}
    columns = (
        Column(name="a", kind="number", nullable=True, minimum=None, maximum=None),
        Column(name="n", kind="integer", nullable=True, minimum=None, maximum=None),
        Column(name="b", kind="boolean", nullable=True, minimum=None, maximum=None),
    )

    async def scenario(world: World) -> None:
        world.models[1].contract = DataContract(columns=columns, label="y", task="binary", classes=(0, 1))
        await asyncio.gather(*(world.predict(rows=[sent] * rows) for _ in range(2)))
        await world.predict(rows=[dict.fromkeys(sent)])
        await world.predict(rows=[{**sent, "n": 2**53 + 1}])
        await world.gateway.close()
        tables = [pq.read_table(io.BytesIO(world.lake.read(key))) for key in world.lake.keys("served/churn")]
        tables.sort(key=len, reverse=True)
        assert [str(kind) for kind in tables[0].schema.types[-3:]] == ["double", "int64", "bool"]
        logged = [row for table in tables for row in table.select(list(sent)).to_pylist()]
        assert logged == [sent] * (2 * rows) + [dict.fromkeys(sent), {**sent, "n": 2**53 + 1}]

    run(scenario)


@pytest.mark.parametrize(
    ("label", "status", "sentence"),
    [
        (
            {"request_id": "r1", "label": 0},
            409,
            "1 of 1 labels are for rows that already have another label, which stays: r1[0].",
        ),
        (
            {"request_id": "nobody", "label": 0},
            404,
            "1 of 1 labels are for rows that were never served by this endpoint: nobody[0].",
        ),
        ({"request_id": "r1", "row": 9, "label": 0}, 404, "r1[9]."),
        ({"request_id": "r1", "label": 2}, 422, "Label 0 (r1): label 'target': expected one of 0, 1, got 2"),
        ({"request_id": "r1", "label": "1"}, 422, "expected one of 0, 1, got '1'"),
        ({"request_id": "r1"}, 400, 'Label 0 has no "label".'),
    ],
)
def test_bad_labels(run: Callable[..., None], label: dict[str, Any], status: int, sentence: str) -> None:
    async def scenario(world: World) -> None:
        await world.predict(request_id="r1")
        await world.client.post("/churn/feedback", json={"request_id": "r1", "label": 1})
        answer = await world.client.post("/churn/feedback", json=label)
        assert answer.status_code == status
        assert sentence in answer.json()["error"]["message"]
        assert [item.value for item in world.store.outcomes("churn")] == [1]

    run(scenario)


def test_good_labels_are_stored_beside_unknown_ones(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.predict(request_id="r1")
        body = {"labels": [{"request_id": "r1", "label": 1}, {"request_id": "nobody", "label": 1}]}
        answer = await world.client.post("/churn/feedback", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["details"] == {"stored": 1, "duplicate": 0, "unknown": 1, "rows": ["nobody[0]"]}

    run(scenario)


def test_many_labels_share_a_transaction(run: Callable[..., None], tmp_path: Path) -> None:
    class Counting(Store):
        commits = 0

        def add_labels(self, endpoint: str, rows: Any) -> list[LabelOutcome]:
            Counting.commits += 1
            return super().add_labels(endpoint, rows)

    async def scenario(world: World) -> None:
        await asyncio.gather(*(world.predict(request_id=f"r{i}") for i in range(30)))
        await world.client.post("/churn/feedback", json={"request_id": "r0", "label": 1})
        before = Counting.commits
        answers = await asyncio.gather(
            *(world.client.post("/churn/feedback", json={"request_id": f"r{i}", "label": 1}) for i in range(1, 30))
        )
        assert {answer.status_code for answer in answers} == {200}
        assert Counting.commits - before < 29

    run(scenario, store=Counting(f"sqlite:///{tmp_path}/counting.db"))


def test_rows_wait_while_the_store_is_down(run: Callable[..., None], tmp_path: Path) -> None:
    class Failing(Store):
        down = True

        def add_predictions(self, endpoint: str, rows: Any) -> None:
            if self.down:
                raise StoreError("the store is down")
            super().add_predictions(endpoint, rows)

    store = Failing(f"sqlite:///{tmp_path}/failing.db")

    async def scenario(world: World) -> None:
        await world.predict(request_id="r1")
        with pytest.raises(StoreError, match="the store is down"):
            await world.gateway.close()
        assert (await world.predict(request_id="r2")).status_code == 200
        assert world.figures()[1].requests == 1  # the monitor is not kept waiting
        store.down = False
        await world.gateway.close()
        assert world.store.counts("churn")["predictions"] == 2
        assert read_served(world.lake, "churn")["request_id"].tolist() == ["r1", "r2"]
        assert world.figures()[1].requests == 2

    run(scenario, store=store)


def test_figures_are_kept_for_a_sink_that_comes_back(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.sink.down = True
        await world.predict()
        await world.gateway.close()
        assert world.sink.batches == []
        world.sink.down = False
        await world.predict()
        await world.gateway.close()
        assert world.figures()[1].requests == 2
        assert world.gateway.status()["versions"] == {"1": {"requests": 2, "errors": 0, "nonfinite": 0}}

    run(scenario)


def test_a_full_buffer_drops_rows_and_still_counts_requests() -> None:
    class Nowhere:
        def add_predictions(self, endpoint: str, rows: Any) -> None:
            return None

        def add_labels(self, endpoint: str, rows: list[LabelRow]) -> list[LabelOutcome]:
            return []

        def write(self, key: str, content: bytes) -> None:
            return None

    async def main() -> None:

        sink = ListSink()
        recorder = Recorder(
            "churn", thread_writer("churn", Nowhere(), Nowhere(), sink, ThreadPoolExecutor(1)), max_rows=3
        )
        recorder.watch(1, FakeModel().bins)
        for i in range(5):
            recorder.request(1, 1.0)
            recorder.served(Served([f"r{i}"], [1], [ROW], answer_rows(FakeModel(), [ROW]), 1, "champion", 0.0, 1.0))
        await recorder.flush()
        (batch,) = sink.batches
        assert (batch["observed"][1]["rows"], batch["stats"][1]["requests"]) == (3, 5)
        assert (recorder.rows, recorder.dropped) == (5, 2)
        recorder.request(1, 1.0)
        await recorder.flush()
        assert sink.batches[1]["stats"][1]["requests"] == 1
        assert sink.batches[1]["observed"] == {}

    asyncio.run(main())


def test_a_new_champions_rows_are_counted_in_its_own_bins(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        bins = Profile.learn(np.ones((100, 3)), np.zeros(100), world.models[2].contract.names).bins
        world.models[2].bins = bins
        await world.predict(request_id="r1")
        await world.gateway.close()
        await world.gateway.apply(TrafficSplit(number=9, champion=2))
        await world.predict(request_id="r2")
        await world.gateway.close()
        told = [(v, body["bins"], body["rows"]) for b in world.sink.batches for v, body in b["observed"].items()]
        assert told == [(1, world.models[1].bins.digest, 1), (2, bins.digest, 1)]

    run(scenario)


def test_the_log_is_written_in_its_own_time_and_the_store_at_once() -> None:
    async def main() -> None:
        store, lake = ListStore(), ListLake()
        recorder = Recorder("churn", thread_writer("churn", store, lake, ListSink(), ThreadPoolExecutor(1)))

        def serve(rows: int) -> None:
            ids = [recorder.number() for _ in range(rows)]
            answer = answer_rows(FakeModel(), [ROW] * rows)
            recorder.served(Served(ids, [1] * rows, [ROW] * rows, answer, 1, "champion", 0.0, 1.0))

        serve(2)
        await recorder.flush()
        serve(1)
        await recorder.flush()
        assert [len(block.scores) for block in store.blocks] == [2, 1]
        assert lake.written == {}
        serve(LOG_ROWS - 3)
        await recorder.flush()
        assert [pq.read_metadata(io.BytesIO(content)).num_rows for content in lake.written.values()] == [LOG_ROWS]
        serve(1)
        await recorder.flush(last=True)
        assert len(lake.written) == 2

    asyncio.run(main())


def test_a_log_that_cannot_be_written_holds_no_row_back_from_the_store_and_is_bounded() -> None:
    async def main() -> None:
        store, lake = ListStore(), ListLake()
        lake.full = True
        recorder = Recorder("churn", thread_writer("churn", store, lake, ListSink(), ThreadPoolExecutor(1)), max_rows=3)
        for _ in range(2):
            recorder.served(
                Served(
                    [recorder.number()], [2], [ROW] * 2, answer_rows(FakeModel(), [ROW] * 2), 1, "champion", 0.0, 1.0
                )
            )
            with pytest.raises(OSError, match="no space"):
                await recorder.flush(last=True)
        assert [len(block.scores) for block in store.blocks] == [2]
        assert (recorder.rows, recorder.dropped) == (4, 2)
        lake.full = False
        await recorder.flush()
        assert len(lake.written) == 1

    asyncio.run(main())


def test_status_says_what_there_is_to_know(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await world.predict(rows=[ROW, ROW])
        status = (await world.client.get("/churn/status")).json()
        expected = {"endpoint": "churn", "ready": True, "version": 1, "challenger": None, "weight": 0.0, "routing": 1}
        assert {name: status[name] for name in expected} == expected
        assert (status["rows"], status["requests"], status["errors"], status["dropped"], status["labels"]) == (
            2,
            1,
            0,
            0,
            0,
        )
        assert status["uptime_s"] == 0.0
        assert status["p99_ms"] >= status["p50_ms"] > 0

    run(scenario)


def test_the_flusher_runs_from_startup_to_shutdown(run: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message["type"])

        life = asyncio.ensure_future(world.gateway({"type": "lifespan"}, inbox.get, send))
        await inbox.put({"type": "lifespan.startup"})
        await world.predict(request_id="r1")
        while not world.sink.batches:
            await asyncio.sleep(0.005)
        await inbox.put({"type": "lifespan.shutdown"})
        await life
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert world.store.counts("churn")["predictions"] == 1

    run(scenario)


def test_rows_without_a_finite_score_are_kept_without_one() -> None:

    answer = answer_rows(FakeModel(fault="nan"), [ROW, ROW])
    block, (row,) = packed("0" * 16, [Served(["r", 9], [1, 1], [ROW, ROW], answer, 1, "champion", 5.0, 1.0)])
    assert row == PredictionRow(request_id="r", row_index=0, version=1, variant="champion", score=None, served_at=5.0)
    assert block is not None
    (other,) = Block.from_bytes(block.to_bytes()).rows(9)
    assert PredictionRow(**other) == replace(row, request_id=f"{'0' * 16}-9")
    assert block.rows(8) == []


def serve(recorder: Recorder, rows: int) -> None:
    ids = [recorder.number() for _ in range(rows)]
    answer = answer_rows(FakeModel(), [ROW] * rows)
    recorder.served(Served(ids, [1] * rows, [ROW] * rows, answer, 1, "champion", 0.0, 1.0))


def test_a_flush_that_nobody_waits_for_any_more_tells_and_stores_once() -> None:
    class Slow(ListStore):
        def __init__(self) -> None:
            super().__init__()
            self.begun, self.go = threading.Event(), threading.Event()

        def add_block(self, endpoint: str, block: Block) -> None:
            self.begun.set()
            assert self.go.wait(30)
            super().add_block(endpoint, block)

    async def main() -> None:
        store, sink = Slow(), ListSink()
        recorder = Recorder("churn", thread_writer("churn", store, ListLake(), sink, ThreadPoolExecutor(1)))
        serve(recorder, 2)
        waits = asyncio.ensure_future(recorder.flush())
        assert await asyncio.to_thread(store.begun.wait, 30)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        store.go.set()
        await recorder.flush(last=True)
        assert [len(block.scores) for block in store.blocks] == [2]
        assert sum(batch["rows"] for batch in sink.batches) == 2

    asyncio.run(main())


def test_copies_that_wait_for_the_store_are_bounded() -> None:
    class Copies(ListStore):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.kept = True, 0

        def add_shadows(self, endpoint: str, rows: Any) -> None:
            if self.down:
                raise StoreError("the store is down")
            self.kept += len(rows)

    async def main() -> None:
        store = Copies()
        recorder = Recorder(
            "churn", thread_writer("churn", store, ListLake(), ListSink(), ThreadPoolExecutor(1)), max_rows=3
        )
        answer = answer_rows(FakeModel(), [ROW] * 2)
        for turn in range(4):
            recorder.shadowed(f"r{turn}", 2, answer, answer)
            with pytest.raises(StoreError, match="the store is down"):
                await recorder.flush()
        store.down = False
        await recorder.flush()
        assert store.kept == 2
        recorder.shadowed("r9", 2, answer, answer)
        await recorder.flush()
        assert store.kept == 4

    asyncio.run(main())


def test_a_label_does_not_wait_for_the_log(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def write(self: Lake, key: str, content: bytes) -> None:
        begun.set()
        assert go.wait(30)
        raise OSError("the lake is down")

    async def scenario(world: World) -> None:
        monkeypatch.setattr(Lake, "write", write)
        await world.predict(request_id="r1")
        writes = asyncio.ensure_future(world.gateway.close())
        try:
            assert await asyncio.to_thread(begun.wait, 30)
            await world.predict(request_id="r2")
            told = world.client.post("/churn/feedback", json={"request_id": "r2", "label": 1})
            assert (await asyncio.wait_for(told, 20)).status_code == 200
        finally:
            go.set()
        with pytest.raises(OSError, match="the lake is down"):
            await writes
        monkeypatch.undo()

    run(scenario)


def test_a_request_larger_than_the_bound_is_kept_when_nothing_waits() -> None:
    async def main() -> None:
        store = ListStore()
        recorder = Recorder(
            "churn", thread_writer("churn", store, ListLake(), ListSink(), ThreadPoolExecutor(1)), max_rows=3
        )
        serve(recorder, 5)
        serve(recorder, 1)
        await recorder.flush(last=True)
        assert [len(block.scores) for block in store.blocks] == [5]
        assert (recorder.rows, recorder.dropped) == (6, 1)

    asyncio.run(main())
