"""Copies: what a shadow says is remembered beside the answer, and never in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from raymlops.lake import Lake
from raymlops.serving.analysis import VariantStats
from raymlops.serving.gateway import Gateway
from raymlops.serving.traffic import TrafficSplit
from raymlops.store import Store
from raymlops.testing.serving import FakeChallengers, FakeModel, FakePackages, ListSink

BODY = b'{"rows": [{"a": 0.5, "b": 0.25, "c": "x"}, {"a": 0.1, "b": 0.2, "c": "y"}], "request_id": "%s"}'
JSON = [(b"content-type", b"application/json")]


class World:
    def __init__(self, folder: Path) -> None:
        self.models = {1: FakeModel(0.25), 2: FakeModel(0.75)}
        self.packages = FakePackages(v1=self.models[1], v2=self.models[2])
        self.challengers, self.sink = FakeChallengers(self.models), ListSink()
        self.store = Store(f"sqlite:///{folder}/s.db")
        self.gateway = Gateway(
            "churn",
            packages=self.packages,
            challengers=self.challengers,
            store=self.store,
            files=Lake(str(folder / "lake")),
            sink=self.sink,
        )

    async def predict(self, request_id: str) -> bytes:
        response = await self.gateway.handle("POST", "/churn/predict", JSON, BODY % request_id.encode())
        assert response.status == 200
        await asyncio.sleep(0.01)  # the copy goes out behind the answer
        return response.body

    async def figures(self, version: int) -> VariantStats:
        await self.gateway.close()
        return sum(
            (
                VariantStats.from_dict(stats)
                for batch in self.sink.batches
                for known, stats in batch["stats"].items()
                if known == version
            ),
            VariantStats(),
        )


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def go(scenario: Callable[[World], Coroutine[None, None, None]]) -> None:
        asyncio.run(scenario(World(tmp_path)))

    return go


def test_both_answers_to_the_same_rows_are_kept(run) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=1, champion=1, challenger=2, weight=1.0, shadow=True))
        assert b'"version":1' in await world.predict("r1")
        stats = await world.figures(2)
        assert (stats.requests, stats.errors, stats.score_n, stats.score_sum) == (1, 0, 2, 1.5)
        assert (stats.pair_n, stats.pair_sum, stats.pair_sumsq) == (2, 1.0, 0.5)
        assert world.store.shadow_scores("churn", 2, ["r1"]) == {("r1", 0): 0.75, ("r1", 1): 0.75}
        assert world.store.counts("churn")["predictions"] == 2
        world.store.drop_shadows("churn")
        assert world.store.shadow_scores("churn", 2, ["r1"]) == {}

    run(scenario)


@pytest.mark.parametrize(("fault", "nonfinite"), [("raise", 0), ("nan", 1)])
def test_a_shadow_that_fails_is_counted_and_not_compared(run, fault: str, nonfinite: int) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=1, champion=1, challenger=2, weight=1.0, shadow=True))
        world.models[2].fault = fault
        assert b'"version":1' in await world.predict("r1")
        stats = await world.figures(2)
        assert (stats.requests, stats.errors, stats.nonfinite, stats.pair_n) == (1, 1, nonfinite, 0)
        assert world.store.shadow_scores("churn", 2, ["r1"]) == {}

    run(scenario)


def test_a_warm_champion_of_before_is_asked_in_the_gateway_itself(run) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=1, champion=1))
        split = TrafficSplit(number=2, champion=2, challenger=1, weight=1.0, shadow=True, warm=(1,))
        await world.gateway.apply(split)
        assert b'"version":2' in await world.predict("r1")
        assert world.challengers.calls == []
        assert (await world.figures(1)).pair_sum == -1.0
        assert world.store.shadow_scores("churn", 1, ["r1"]) == {("r1", 0): 0.25, ("r1", 1): 0.25}

    run(scenario)


def test_a_gateway_that_starts_late_loads_the_warm_version_behind_its_champion(run) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=7, champion=2, warm=(1, 9)))
        for _ in range(200):
            if world.gateway.status()["loaded"] == [1, 2]:
                break
            await asyncio.sleep(0.01)
        assert world.gateway.status()["loaded"] == [1, 2]
        assert sorted(world.packages.loads) == [1, 2, 9]  # 9 cannot be loaded, and nobody suffers from it
        await world.gateway.apply(TrafficSplit(number=8, champion=1))
        assert world.gateway.status()["loaded"] == [1]
        assert sorted(world.packages.loads) == [1, 2, 9]

    run(scenario)


def test_a_rollback_after_the_warm_time_loads_the_version_again(run) -> None:
    async def scenario(world: World) -> None:
        await world.gateway.apply(TrafficSplit(number=1, champion=1))
        await world.gateway.apply(TrafficSplit(number=2, champion=2, warm=(1,)))
        await world.gateway.apply(TrafficSplit(number=3, champion=2))
        await world.gateway.apply(TrafficSplit(number=4, champion=1))
        assert b'"version":1' in await world.predict("r1")
        assert world.packages.loads == [1, 2, 1]

    run(scenario)
