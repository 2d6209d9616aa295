"""A steward, gateways and challengers on a real cluster, through the policies; only jobs and aliases are left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import ray

from raymlops.data.sources import FrameSource
from raymlops.lake import Lake
from raymlops.loop.ray_steward import Steward, call, save_pipeline
from raymlops.pipeline import Pipeline
from raymlops.retrain import RetrainPolicy
from raymlops.serving.policies import ABTest, BlueGreen, Canary
from raymlops.serving.ray_serve import Place, ServeEngine
from raymlops.serving.spec import NAMESPACE, Serving, steward_name
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.testing.broken import Fault, FaultyEstimator
from raymlops.testing.packages import register_small

NAME = "rolled"
BROKEN: dict[Fault, int] = {"shape": 4, "slow": 5}
FRAME = pd.DataFrame({"a": [0.1, -0.2], "b": [0.3, 0.4], "y": [1, 0]})


RETRAIN = RetrainPolicy(refit_cost=None)


class Nothing:
    """Jobs and aliases that do nothing."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        return None

    def delete_alias(self, name: str, alias: str) -> None:
        return None


class TestedSteward(Steward):
    """The steward with the real serving engine."""

    def __init__(self, settings: Settings) -> None:
        nothing: Any = Nothing()
        super().__init__(NAME, settings, ServeEngine(settings), nothing, nothing)
        self.start()


class World:
    def __init__(self, settings: Settings, store: Store, engine: ServeEngine, place: Place, steward: Any) -> None:
        self.settings, self.store, self.engine, self.place, self.steward = settings, store, engine, place, steward

    def policy(self, rollout: Any) -> None:
        save_pipeline(
            self.store,
            Lake(self.settings.lake),
            Pipeline(name=NAME, source=FrameSource(FRAME, label="y"), rollout=rollout, retrain=RETRAIN),
        )
        call(self.steward, "reload")

    def loop(self) -> dict[str, Any]:
        return dict(call(self.steward, "status"))

    def until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.loop()
            time.sleep(0.05)


class Traffic(threading.Thread):
    """Asks and labels all the time, and keeps what went wrong."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.ended = url, threading.Event()
        self.statuses: list[int] = []
        self.versions: list[int] = []

    def run(self) -> None:
        rng = np.random.default_rng(0)
        with httpx.Client(timeout=30, trust_env=False) as http:
            while not self.ended.is_set():
                rows = [{"a": float(a), "b": float(b)} for a, b in rng.normal(size=(4, 2))]
                answer = http.post(f"{self.url}/predict", json={"rows": rows})
                self.statuses.append(answer.status_code)
                if answer.status_code == 200:
                    body = answer.json()
                    self.versions.append(body["version"])
                    labels = [
                        {"request_id": body["request_id"], "row": index, "label": float(row["a"] + row["b"] > 0)}
                        for index, row in enumerate(rows)
                    ]
                    if len(self.statuses) % 5 == 0:
                        self.statuses.append(http.post(f"{self.url}/feedback", json={"labels": labels}).status_code)
                time.sleep(0.005)

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join(30)
        assert set(self.statuses) == {200}


@pytest.fixture(scope="module")
def world(ray_cluster: Settings) -> Iterator[World]:
    store = Store(ray_cluster.store)
    for version, flipped in ((1, False), (2, False), (3, True)):
        register_small(ray_cluster, NAME, version, rounds=20, flipped=flipped)
    for fault, version in BROKEN.items():
        altered = partial(FaultyEstimator, fault=fault, slow_s=0.06)
        register_small(ray_cluster, NAME, version, rounds=20, altered=altered)
    pipeline = Pipeline(name=NAME, source=FrameSource(FRAME, label="y"), retrain=RETRAIN)
    save_pipeline(store, Lake(ray_cluster.lake), pipeline)
    steward: Any = (
        ray.remote(TestedSteward)
        .options(name=steward_name(NAME), namespace=NAMESPACE, num_cpus=0, max_concurrency=64)
        .remote(ray_cluster)
    )
    call(steward, "candidate", 1, "first")
    engine = ServeEngine(ray_cluster)
    made = World(ray_cluster, store, engine, engine.deploy_gateway(NAME, Serving(replicas=2)), steward)
    yield made
    ray.kill(steward)
    engine.delete_endpoint(NAME)
    store.close()


def test_blue_green_by_approval_and_back_by_a_pointer_swap(world: World) -> None:
    world.policy(BlueGreen(hold_s=1, min_requests=60, approval="manual"))
    with Traffic(world.place.direct_url) as traffic:
        call(world.steward, "candidate", 2, "second")
        for _ in range(2):  # the switch, and the promotion
            world.until(lambda: world.loop()["phase"][1]["rollout"]["held"])
            if not world.loop()["phase"][1]["rollout"]["step"]:
                assert set(traffic.versions) == {1}
            call(world.steward, "command", "approve", "looks well")
            world.until(lambda: not world.loop()["phase"][1].get("rollout", {}).get("approved"))
        assert (world.loop()["champion"], world.loop()["split"]["warm"]) == (2, (1,))
        seen = len(traffic.versions)
        world.until(lambda: 2 in traffic.versions[seen:])
        call(world.steward, "command", "rollback", "by hand")
        time.sleep(0.5)
        seen = len(traffic.versions)
        time.sleep(0.5)
        assert set(traffic.versions[seen:]) == {1}


def test_a_provisional_promotion_of_a_worse_version_is_revoked_by_labels(world: World) -> None:
    world.policy(Canary(weights=(0.5, 1.0), hold_s=60, confirm_labels=2000))
    assert world.loop()["champion"] == 1
    with Traffic(world.place.direct_url):
        call(world.steward, "candidate", 3, "third")
        call(world.steward, "command", "promote", "in a hurry")
        assert world.loop()["confirming"]["previous"] == 1
        world.until(lambda: world.loop()["champion"] == 1)
    last = [event for event in _history(world) if event.kind == "rolled_back"][-1]
    assert last.body["reason"].startswith("the promotion is revoked: loss +")
    assert world.loop()["confirming"] is None


@pytest.mark.parametrize(("fault", "reason"), [("shape", "of its "), ("slow", "half of its answers take more than ")])
def test_a_canary_that_answers_badly_is_rolled_back_and_no_caller_sees_it(
    world: World, fault: Fault, reason: str
) -> None:
    world.policy(Canary(weights=(0.5, 1.0), hold_s=60, min_requests=40))
    with Traffic(world.place.direct_url) as traffic:
        call(world.steward, "candidate", BROKEN[fault], f"broken-{fault}")
        world.until(lambda: world.loop()["phase"][0] == "Monitoring")
        seen = len(traffic.versions)
        world.until(lambda: traffic.versions[seen + 40 :] != [])
    assert set(traffic.versions[seen + 20 :]) == {1}
    last = [event for event in _history(world) if event.kind == "rolled_back"][-1]
    assert last.body["version"] == BROKEN[fault]
    assert reason in last.body["reason"]


def test_an_ab_test_is_sticky_by_key_over_all_gateways_and_its_share_is_the_weight(world: World) -> None:
    world.policy(ABTest(share=0.3))
    # A connection of its own for each request: the kernel spreads connections over the gateways.
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(timeout=30, trust_env=False, limits=limits) as http:

        def everywhere() -> bool:
            number = world.loop()["split"]["number"]
            found = [http.get(f"{world.place.direct_url}/status").json() for _ in range(24)]
            return len({item["gateway"] for item in found}) == 2 and {item["routing"] for item in found} == {number}

        rng = np.random.default_rng(0)

        def ask(**key: str) -> int:
            # Rows that differ: a challenger whose scores never change, beside a champion whose do, is called broken.
            a, b = rng.normal(size=2).tolist()
            body = {"rows": [{"a": a, "b": b}], **key}
            return int(http.post(f"{world.place.direct_url}/predict", json=body).json()["version"])

        call(world.steward, "candidate", 2, "ab")
        world.until(everywhere)
        sides = {key: ask(key=key) for key in (f"user-{i}" for i in range(300))}
        # A challenger that is late on a busy machine is shielded: a few of its keys may see the champion's answer once.
        changed = [key for key, side in sides.items() if ask(key=key) != side]
        assert len(changed) <= 6, (changed, [(event.kind, event.body) for event in _history(world)][-3:])
        for answers in (list(sides.values()), [ask() for _ in range(300)]):
            assert set(answers) == {1, 2}
            assert abs(answers.count(2) / 300 - 0.3) < 4 * (0.3 * 0.7 / 300) ** 0.5
        call(world.steward, "command", "abort", "seen enough")
        world.until(everywhere)
        assert {ask(key=key) for key in sides} == {1}


def _history(world: World) -> Any:
    from raymlops.events import EventLog

    return EventLog(world.store).read(NAME)
