"""The short way to a challenger: a socket, which may break at any time without a caller noticing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from raymlops.errors import ContractViolation, ModelFault
from raymlops.lake import Lake
from raymlops.serving import direct
from raymlops.serving.batching import Answer, answer_rows, layout_of
from raymlops.serving.direct import Link, LinkLost, Links, greets, serve_directly
from raymlops.serving.gateway import Gateway
from raymlops.serving.listener import bind, make_server
from raymlops.serving.patience import Patience
from raymlops.serving.protocol import Row
from raymlops.serving.traffic import TrafficSplit
from raymlops.store import Store
from raymlops.testing.serving import FakeModel, FakePackages, ListSink, small_contract, until

ROW = {"a": 0.5, "b": 0.25, "c": "x"}


class Challengers:
    """Version 2 at its socket, and the other way for when there is none."""

    def __init__(self, path: str) -> None:
        async def find(version: int) -> str:
            return path

        self.links = Links(find)
        self.other_way = 0

    def link(self, version: int) -> Link | None:
        return self.links.get(version)

    async def predict(self, version: int, rows: Sequence[Row], timeout_s: float) -> Answer:
        self.other_way += 1
        return answer_rows(FakeModel(0.875), rows)

    async def linked(self) -> Link:
        await until(lambda: self.link(2) is not None)
        link = self.link(2)
        assert link is not None
        return link


class World:
    def __init__(self, folder: Path, challenger: FakeModel) -> None:
        self.model = challenger
        self.challengers = Challengers(serve_directly(challenger, folder))
        self.sink = ListSink()
        self.gateway = Gateway(
            "churn",
            packages=FakePackages(v1=FakeModel(0.25)),
            challengers=self.challengers,
            store=Store(f"sqlite:///{folder}/s.db"),
            files=Lake(str(folder / "lake")),
            sink=self.sink,
        )
        self.client = httpx.AsyncClient()
        self.url = ""

    async def ask(self, *rows: dict[str, Any]) -> dict[str, Any]:
        answer = await self.client.post(self.url, json={"rows": list(rows or (ROW,))})
        return dict(json.loads(answer.content), status=answer.status_code, by=answer.headers.get("x-raymlops-variant"))


Scenario = Callable[[World], Awaitable[None]]


def at(folder: Path, challenger: FakeModel, scenario: Scenario) -> None:
    """Run a scenario against a gateway on its own listener that gives all requests to version 2."""

    async def main() -> None:
        world = World(folder, challenger)
        await world.gateway.apply(TrafficSplit(number=1, champion=1, challenger=2, weight=1.0))
        listening = bind("127.0.0.1", 0)
        world.url = f"http://127.0.0.1:{listening.getsockname()[1]}/churn/predict"
        server = make_server(world.gateway, "/churn/predict")
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        await world.challengers.linked()
        try:
            await scenario(world)
        finally:
            await world.client.aclose()
            server.should_exit = True
            await serving

    logger = logging.getLogger("raymlops")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        asyncio.run(main())
    finally:
        logger.setLevel(before)


def test_requests_for_a_challenger_go_over_its_socket_and_are_counted_and_logged(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        answers = await asyncio.gather(*(world.ask(ROW, ROW) for _ in range(5)))
        assert {(a["status"], a["by"], *a["probabilities"]) for a in answers} == {(200, "challenger", 0.75, 0.75)}
        assert world.challengers.other_way == 0
        await world.gateway.close()
        stats = [batch["stats"][2] for batch in world.sink.batches if 2 in batch["stats"]]
        assert sum(item["requests"] for item in stats) == 5
        assert sum(sum(item["work"]) for item in stats) == 5
        assert sum(item["score_n"] for item in stats) == 10

    at(tmp_path, FakeModel(0.75), scenario)


def test_a_version_with_another_contract_is_sent_rows(tmp_path: Path) -> None:
    class Other(FakeModel):
        """Makes a matrix of its own of the same rows."""

        @property
        def layout(self) -> str:
            return layout_of(small_contract()) + " and more"

    async def scenario(world: World) -> None:
        assert (await world.ask())["probabilities"] == [0.75]
        assert world.model.batches == [1]  # it saw rows, not a matrix

    at(tmp_path, Other(0.75), scenario)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_challenger_that_fails_is_shielded(tmp_path: Path, fault: str) -> None:
    class Broken(FakeModel):
        def predict(self, x: Any) -> Any:
            if fault == "raise":
                raise RuntimeError("the model is broken")
            return np.full(len(x), np.nan)

    async def scenario(world: World) -> None:
        answer = await world.ask()
        assert (answer["status"], answer["by"], answer["probabilities"]) == (200, "champion", [0.25])
        status = world.gateway.status()["versions"]["2"]
        assert (status["requests"], status["errors"]) == (1, 1)

    def other_way(world: World) -> None:
        async def predict(version: int, rows: Sequence[Row], timeout_s: float) -> Answer:
            link = world.challengers.link(2)
            assert link is not None
            return await link.predict(rows)

        world.challengers.predict = predict

    async def same_version(world: World) -> None:
        other_way(world)
        await scenario(world)

    at(tmp_path, Broken(fault=fault), same_version)


def test_rows_that_break_the_contract_are_refused_each_for_its_own(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        good, bad = await asyncio.gather(world.ask(), world.ask({"a": 0.5, "b": "text", "c": "x"}))
        assert good["status"] == 200
        assert (bad["status"], bad["error"]["code"]) == (422, "contract")

    at(tmp_path, FakeModel(0.75), scenario)


class Stuck(FakeModel):
    """Once ``stuck``, no question is answered before ``go``."""

    def __init__(self, probability: float = 0.75) -> None:
        super().__init__(probability)
        self.stuck, self.go = False, threading.Event()

    def predict(self, x: Any) -> Any:
        if self.stuck:
            self.go.wait(30)
        return super().predict(x)


def test_a_late_challenger_is_given_up_on(tmp_path: Path) -> None:
    model = Stuck()

    async def scenario(world: World) -> None:
        assert [(await world.ask())["by"] for _ in range(5)] == ["challenger"] * 5
        model.stuck = True
        try:
            answer = await world.ask()
        finally:
            model.go.set()
        assert answer["probabilities"] == [0.875]  # asked for again, the other way
        assert world.challengers.other_way == 1

    at(tmp_path, model, scenario)


def test_what_is_asked_when_the_replica_goes_is_asked_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, late = Stuck(), list[object]()
    monkeypatch.setattr(Patience, "silent", late.append)

    async def scenario(world: World) -> None:
        link = await world.challengers.linked()
        model.stuck = True
        asking = asyncio.ensure_future(world.ask())
        try:
            await until(lambda: bool(link._unanswered))
            link.close()
            answer = await asking
        finally:
            model.go.set()
        assert (answer["status"], answer["by"], answer["probabilities"]) == (200, "challenger", [0.875])
        assert world.challengers.other_way == 1
        assert late == []  # it was told at once, and did not find out by waiting

    at(tmp_path, model, scenario)


def test_a_question_that_cannot_be_asked_is_answered_all_the_same(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        def broken(*arguments: Any) -> bool:
            raise RuntimeError("the socket module is broken")

        world.gateway._variants.ask_directly = broken
        answers = await asyncio.gather(*(world.ask() for _ in range(5)))
        assert {answer["status"] for answer in answers} == {500}
        assert all("The gateway failed on this request" in answer["error"]["message"] for answer in answers)

    at(tmp_path, FakeModel(0.75), scenario)


def test_a_version_whose_thread_hangs_is_let_go_of_and_does_not_greet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Stuck()

    async def main() -> None:
        path = serve_directly(model, tmp_path)
        challengers = Challengers(path)
        link = await challengers.linked()
        assert await greets(path)
        model.stuck = True
        asked: list[Answer | Exception] = []
        try:
            link.ask([ROW], asked.append)
            link.forget(link.ask([ROW], asked.append))  # who gave up does not make the version answer
            assert challengers.link(2) is link
            assert not await greets(path, 0.05)
            monkeypatch.setattr(direct, "SILENT_S", 0.0)
            assert challengers.link(2) is None
            await until(lambda: bool(asked))
        finally:
            model.go.set()
        assert [type(answer) for answer in asked] == [LinkLost]
        assert not link.alive
        model.stuck = False
        assert await greets(path)
        assert not await greets(str(tmp_path / "gone.sock"))

    asyncio.run(main())


def test_an_answer_that_cannot_be_used_ends_the_link_and_those_who_wait_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        link = await Link.open(serve_directly(FakeModel(), tmp_path))
        asked: list[Answer | Exception] = []

        def broken(answer: Answer | Exception) -> None:
            raise RuntimeError("who asked is broken")

        link.ask([ROW], broken)
        link.ask([ROW], asked.append)
        await until(lambda: not link.alive)
        await until(lambda: bool(asked))
        assert isinstance(asked[0], LinkLost)

    asyncio.run(main())


def test_the_link_of_the_version_that_is_asked_now_outlives_a_late_one_of_another(tmp_path: Path) -> None:
    async def main() -> None:
        late = asyncio.Event()
        paths = {version: serve_directly(FakeModel(), tmp_path) for version in (1, 2)}

        async def find(version: int) -> str:
            if version == 1:
                await late.wait()
            return paths[version]

        links = Links(find)
        assert links.get(1) is None
        await until(lambda: links.get(2) is not None)
        late.set()
        await until(lambda: not links._opening)
        link = links.get(2)
        assert link is not None
        link.close()

    asyncio.run(main())


def test_a_version_that_was_elsewhere_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "ELSEWHERE_S", 0.0)
    monkeypatch.setattr(direct, "AGAIN_S", 0.0)

    async def main() -> None:
        places = [serve_directly(FakeModel(), tmp_path), None]

        async def find(version: int) -> str | None:
            return places.pop()

        links = Links(find)
        await until(lambda: links.get(2) is not None)
        link = links.get(2)
        assert link is not None
        link.close()

    asyncio.run(main())


def test_errors_come_back_as_they_were_and_a_lost_link_is_one_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        link = await Link.open(serve_directly(FakeModel(), tmp_path))
        assert link.layout == layout_of(FakeModel().contract)
        with pytest.raises(ContractViolation, match="column 'c'"):
            await link.predict([{"a": 1.0, "b": 2.0, "c": 3.0}])
        broken = await Link.open(serve_directly(FakeModel(fault="raise"), tmp_path))
        with pytest.raises(Exception, match="RuntimeError: the model is broken"):
            await broken.predict([ROW])

        class Short(FakeModel):
            def predict(self, x: Any) -> Any:
                return np.zeros(1 + len(x))

        with pytest.raises(ModelFault, match=r"shape \(2,\) where \(1,\) was asked for"):
            await (await Link.open(serve_directly(Short(), tmp_path))).predict([ROW])
        asked: list[Answer | Exception] = []
        link.ask([ROW], asked.append)
        link.close()
        await until(lambda: bool(asked))
        assert isinstance(asked[0], LinkLost)
        assert not link.alive

    asyncio.run(main())


def test_a_version_with_too_many_questions_before_it_is_not_asked_more(tmp_path: Path) -> None:
    async def main() -> None:
        challengers = Challengers(serve_directly(FakeModel(), tmp_path))
        link = await challengers.linked()
        answers: list[Answer | Exception] = []
        for _ in range(direct.MOST_UNANSWERED):
            link.forget(link.ask([ROW], answers.append))
        assert challengers.link(2) is None
        await until(lambda: not link.busy)
        assert challengers.link(2) is link
        assert answers == []
        link.close()

    asyncio.run(main())


def test_sockets_are_private_and_those_of_ended_versions_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old = tmp_path / f"raymlops-{os.getuid()}" / "old.sock"
    first = Path(serve_directly(FakeModel()))
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(old))
    serve_directly(FakeModel())
    assert old.exists()  # it may be about to be listened at
    os.utime(old, (0, 0))
    os.utime(first, (0, 0))
    serve_directly(FakeModel())
    assert first.exists()
    assert not old.exists()
    first.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="can be reached by others"):
        serve_directly(FakeModel())
    first.parent.chmod(0o700)
    elsewhere = first.parent.rename(tmp_path / "elsewhere")
    first.parent.symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="is no folder but a link or a file"):
        serve_directly(FakeModel())
