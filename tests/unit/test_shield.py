"""A caller never waits long for a challenger, and what the challenger did is counted all the same."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymlops.lake import Lake
from raymlops.serving.analysis import VariantStats
from raymlops.serving.gateway import Gateway
from raymlops.serving.traffic import TrafficSplit
from raymlops.store import Store
from raymlops.testing.serving import FakeChallengers, FakeModel, FakePackages, ListSink

BODY = b'{"rows": [{"a": 0.5, "b": 0.25, "c": "x"}]}'
JSON = [(b"content-type", b"application/json")]


class World:
    """Version 2 answers everything, and has answered often enough for its ways to be known."""

    def __init__(self, folder: Path) -> None:
        self.models = {1: FakeModel(0.25), 2: FakeModel(0.75)}
        self.challengers, self.sink = FakeChallengers(self.models), ListSink()
        self.gateway = Gateway(
            "churn",
            packages=FakePackages(v1=self.models[1], v2=self.models[2]),
            challengers=self.challengers,
            store=Store(f"sqlite:///{folder}/s.db"),
            files=Lake(str(folder / "lake")),
            sink=self.sink,
        )

    async def ask(self) -> int:
        """The version that answers."""
        response = await self.gateway.handle("POST", "/churn/predict", JSON, BODY)
        assert response.status == 200
        return int(dict(response.headers)[b"x-raymlops-version"])

    async def known(self) -> None:
        await self.gateway.apply(TrafficSplit(number=1, champion=1, challenger=2, weight=1.0))
        assert [await self.ask() for _ in range(20)] == [2] * 20

    async def figures(self) -> VariantStats:
        await self.gateway.close()
        told = [VariantStats.from_dict(batch["stats"][2]) for batch in self.sink.batches if 2 in batch["stats"]]
        return sum(told, VariantStats())


@pytest.fixture
def run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[[Callable[[World], Coroutine[None, None, None]]], None]:
    def go(scenario: Callable[[World], Coroutine[None, None, None]]) -> None:
        caplog.set_level(logging.CRITICAL, logger="raymlops")  # put back when the test ends
        asyncio.run(scenario(World(tmp_path)))

    return go


Run = Callable[[Callable[[World], Coroutine[None, None, None]]], None]


class Waits:
    """What :func:`asyncio.wait` was told to wait at most; it waits no longer than 0.02 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limits: list[float] = []
        wait = asyncio.wait

        async def short(tasks: set[asyncio.Task[object]], *, timeout: float) -> object:
            self.limits.append(timeout)
            return await wait(tasks, timeout=min(timeout, 0.02))

        monkeypatch.setattr("raymlops.serving.variants.asyncio.wait", short)


def test_a_silent_challenger_is_given_up_on_and_then_hardly_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        await world.known()
        waits = Waits(monkeypatch)
        world.challengers.delay_s = 60.0
        assert [await world.ask() for _ in range(3)] == [1, 1, 1]
        assert waits.limits == [0.25, 0.05, 0.05]

    run(scenario)


def test_a_late_answer_counts_as_an_answer_with_the_time_it_took(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.known()
        world.challengers.delay_s = 0.1
        Waits(monkeypatch)
        assert await world.ask() == 1
        await asyncio.sleep(0.15)
        monkeypatch.undo()
        figures = await world.figures()
        assert (figures.requests, figures.errors) == (21, 0)
        assert sum(figures.latency[24:]) >= 1  # 0.1 s or more

    run(scenario)


def test_a_dead_challenger_has_failed_the_request_that_the_champion_answered(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        await world.known()
        world.challengers.delay_s = 0.1
        del world.challengers.models[2]
        Waits(monkeypatch)
        assert await world.ask() == 1
        monkeypatch.undo()
        figures = await world.figures()
        assert (figures.requests, figures.errors) == (21, 1)

    run(scenario)


@pytest.mark.parametrize("shape", [(0,), (2,), (1, 2)])
def test_a_prediction_of_the_wrong_shape_is_the_challengers_error(run: Run, shape: tuple[int, ...]) -> None:
    async def scenario(world: World) -> None:
        await world.known()
        model = world.models[2]
        model.predict = lambda x: np.zeros(shape)
        assert await world.ask() == 1
        figures = await world.figures()
        assert (figures.requests, figures.errors) == (21, 1)

    run(scenario)


def test_the_wrong_shape_of_many_requests_together_does_not_pass_as_that_of_some(run: Run) -> None:
    async def scenario(world: World) -> None:
        await world.known()
        model = world.models[2]
        model.predict = lambda x: np.zeros(len(x) + 3)
        assert await asyncio.gather(*(world.ask() for _ in range(4))) == [1] * 4

    run(scenario)


def test_its_own_clock_is_kept_beside_the_callers(run: Run) -> None:
    async def scenario(world: World) -> None:
        ask = world.challengers.predict

        async def timed(version: int, rows: object, timeout_s: float) -> object:
            return replace(await ask(version, rows, timeout_s), work_ms=40.0)

        world.challengers.predict = timed
        await world.known()
        figures = await world.figures()
        assert figures.model_time == figures.work != figures.latency
        assert sum(figures.work) == 20

    run(scenario)


def test_answers_that_waited_for_a_replica_do_not_make_callers_patient(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        ask = world.challengers.predict

        async def timed(version: int, rows: object, timeout_s: float) -> object:
            return replace(await ask(version, rows, timeout_s), work_ms=2.0)

        world.challengers.predict = timed
        world.challengers.delay_s = 0.1
        await world.known()
        waits = Waits(monkeypatch)
        world.challengers.delay_s = 60.0
        assert await world.ask() == 1
        assert waits.limits == [0.25]

    run(scenario)
