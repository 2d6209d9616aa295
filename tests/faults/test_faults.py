"""What a caller sees when things die: 20 version changes and 20 ``kill -9`` under 40 requests a second.

One endpoint for all: two gateways, a real steward, three real versions. Requests go to the gateways' own listener, in open
loop, and are never sent again. Each test prints one JSON line of figures.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from raymlops import Canary, Endpoint, FrameSource, Monitor, Pipeline, RetrainPolicy, Serving
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.testing.packages import install_registered, table

NAME = "faults"
RATE = 40.0


def until(done: Callable[[], bool], seconds: float = 120.0) -> float:
    """Seconds until ``done``; fails when that takes too long."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds, "it did not recover"
        time.sleep(0.05)
    return time.monotonic() - began


@dataclass
class Recorded:
    """Every request of one load."""

    lines: list[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["status"] != 200]

    def in_flight(self, moments: Sequence[float], reach_s: float = 0.1) -> list[dict[str, Any]]:
        """Requests under way at any of these times, or sent while the kernel still took a dying process's connections."""
        return [line for line in self.lines if any(line["start"] - reach_s <= at <= line["end"] for at in moments)]

    def figures(self, fault: str, **more: Any) -> dict[str, Any]:
        """One line for the table of faults."""
        good = sorted(line["end"] for line in self.lines if line["status"] == 200)
        latencies = sorted(line["end"] - line["start"] for line in self.lines if line["status"] == 200)
        errors = Counter(str(line["status"] or line["error"].split(":")[0]) for line in self.failed)
        return {
            "fault": fault,
            "requests": len(self.lines),
            "failed": len(self.failed),
            "errors": dict(errors),
            "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 1),
            "most_ms": round(latencies[-1] * 1000, 1),
            "longest_gap_s": round(max((after - before for before, after in itertools.pairwise(good)), default=0), 2),
            **more,
        }


@dataclass
class Load:
    """A load that runs; :meth:`stop` ends it and gives what it recorded."""

    url: str
    path: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        script = Path(__file__).with_name("load.py")
        self.process = subprocess.Popen([sys.executable, str(script), self.url, str(RATE), str(self.path)])
        until(lambda: self.path.exists() and self.path.stat().st_size > 0, 30)

    def stop(self) -> Recorded:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        return Recorded([json.loads(line) for line in self.path.read_text().splitlines()])


@dataclass
class World:
    """The endpoint and the processes behind it, found through the test run's own Ray."""

    settings: Settings
    endpoint: Endpoint
    http: httpx.Client = field(
        # A connection of its own for each request: the kernel spreads connections over the gateways, not requests.
        default_factory=lambda: httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
    )

    def pids(self, kind: str) -> list[int]:
        """Processes that are alive of one kind: ``gateway``, ``challenger``, ``controller``, ``proxy`` or ``steward``."""
        from ray.util.state import list_actors

        from raymlops.serving.spec import steward_name

        def wanted(actor: Any) -> bool:
            name, kindred = actor.name or "", actor.class_name
            return {
                "gateway": kindred.startswith(f"ServeReplica:{NAME}:"),
                "challenger": kindred.startswith(f"ServeReplica:{NAME}.v"),
                "controller": name == "SERVE_CONTROLLER_ACTOR",
                "proxy": kindred == "ProxyActor",
                "steward": name == steward_name(NAME),
            }[kind]

        alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000, detail=True)
        return sorted(actor.pid for actor in alive if wanted(actor) and _lives(actor.pid))

    def scribes(self) -> list[int]:
        """Processes that write the log beside gateways of this world."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, environ = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            if b"raymlops.serving.scribe_process" in command and self.settings.store.encode() in environ:
                found.append(int(folder.name))
        return found

    def kill(self, kind: str) -> tuple[float, int]:
        """``kill -9`` one of a kind: when, and which."""
        pid = self.pids(kind)[0]
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return at, pid

    def replaced(self, kind: str, pid: int, count: int) -> float:
        """Seconds until as many as before are alive without the one that was killed."""
        return until(lambda: len(found := self.pids(kind)) == count and pid not in found)

    def versions(self, asked: int = 8) -> set[str]:
        """Versions that answer; empty when a request fails."""
        seen = set()
        for _ in range(asked):
            try:
                answer = self.http.post(f"{self.endpoint.direct_url}/predict", json={"rows": [{"a": 0.1, "b": 0.2}]})
            except httpx.HTTPError:
                return set()
            seen.add(answer.headers["x-raymlops-version"])
        return seen

    def gateways(self) -> set[str]:
        """Gateways that answer on the shared listener."""
        seen = set()
        for _ in range(24):
            try:
                seen.add(self.http.get(f"{self.endpoint.direct_url}/status").json()["gateway"])
            except httpx.HTTPError:
                return set()
        return seen

    def champion(self) -> int:
        """As the loop's state says."""
        store = Store(self.settings.store)
        body = store.get("loop", NAME)
        store.close()
        assert body is not None
        return int(body["champion"])

    def labels_of(self, requests: Sequence[str]) -> tuple[list[str], int, int]:
        """Which of these requests the store has a label of; labels that the steward has taken in, and all that there are."""
        store = Store(self.settings.store)
        outcomes, watch = store.outcomes(NAME), store.get("watch", NAME)
        store.close()
        assert watch is not None
        held = watch["insight"]["ledger"]["held"].values()
        taken = sum(count for stretches in held for count, _ in stretches.values())
        asked = set(requests)
        return sorted(item.request_id for item in outcomes if item.request_id in asked), taken, len(outcomes)

    def start_rollout(self, version: int) -> None:
        from raymlops.loop import ray_steward

        ray_steward.call(ray_steward.find(NAME), "candidate", version, f"{NAME}-{version}")


class Labels(threading.Thread):
    """Asks and labels over HTTP all the time, each row once and now and then twice; keeps the rows that were acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.ended = url, threading.Event()
        self.acknowledged: list[str] = []
        self.refused: list[str] = []

    def run(self) -> None:
        with httpx.Client(timeout=30, trust_env=False) as http:
            while not self.ended.is_set():
                answer = http.post(f"{self.url}/predict", json={"rows": [{"a": 0.1, "b": 0.2}]})
                request_id = answer.json()["request_id"]
                sent = {"labels": [{"request_id": request_id, "row": 0, "label": 1}]}
                for turn in range(1 + (len(self.acknowledged) % 5 == 0)):
                    stored = http.post(f"{self.url}/feedback", json=sent)
                    if stored.status_code != 200 or stored.json() != {"stored": 1 - turn, "duplicate": turn}:
                        self.refused.append(stored.text)
                self.acknowledged.append(request_id)
                time.sleep(0.02)

    def __enter__(self) -> Labels:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join(30)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _register(settings: Settings, store: Store) -> None:
    from raymlops.registry.mlflow import MlflowRegistry

    registry = MlflowRegistry(settings.mlflow)
    for version, rounds in ((1, 3), (2, 6), (3, 9)):
        install_registered(settings, store, registry, NAME, version, rounds=rounds)


@pytest.fixture(scope="session")
def world(ray_cluster: Settings) -> Iterator[World]:
    from raymlops.lake import Lake
    from raymlops.loop import ray_steward
    from raymlops.serving.ray_serve import ServeEngine

    store = Store(ray_cluster.store)
    _register(ray_cluster, store)
    pipeline = Pipeline(
        name=NAME,
        source=FrameSource(table(500), label="y"),
        serving=Serving(replicas=2),
        rollout=Canary(weights=(0.5, 1.0), hold_s="1h", max_wait_s="2h"),
        monitor=Monitor(window_rows=1_000_000, max_age="7d", second_opinion="off"),
        retrain=RetrainPolicy(on_drift=False, refit_cost=None),
    )
    ray_steward.save_pipeline(store, Lake(ray_cluster.lake), pipeline)
    engine = ServeEngine(ray_cluster)
    engine.start()
    steward = ray_steward.launch(NAME, ray_cluster)
    ray_steward.call(steward, "candidate", 1, f"{NAME}-1")
    place = engine.deploy_gateway(NAME, pipeline.serving)
    store.put("endpoints", NAME, {"url": place.url, "direct_url": place.direct_url})
    store.close()
    made = World(ray_cluster, Endpoint(NAME, ray_cluster))
    made.endpoint.wait_ready()
    until(lambda: len(made.gateways()) == 2)
    yield made
    import ray

    engine.delete_endpoint(NAME)
    ray.kill(ray_steward.find(NAME))


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str], Load]]:
    running: list[Load] = []

    def started(base: str) -> Load:
        running.append(Load(f"{base}/predict", tmp_path / f"load-{len(running)}.jsonl"))
        return running[-1]

    yield started
    for item in running:
        if item.process.poll() is None:
            item.process.kill()
            item.process.wait()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[dict[str, Any]], None]:
    """Write one JSON line of figures past pytest's capture."""

    def said(figures: dict[str, Any]) -> None:
        with capsys.disabled():
            sys.stdout.write("\n" + json.dumps(figures) + "\n")

    return said


Loads = Callable[[str], Load]
Report = Callable[[dict[str, Any]], None]


def settle(world: World, version: int) -> float:
    """Seconds until every gateway answers with a version; it then serves a moment, so that the load sees it."""
    taken = until(lambda: world.versions() == {str(version)})
    time.sleep(0.3)
    return taken


def test_twenty_version_changes_lose_no_request(world: World, load: Loads, report: Report) -> None:
    running, taken = load(world.endpoint.direct_url), []
    world.start_rollout(2)
    until(lambda: world.versions(32) == {"1", "2"})
    promoted = time.time()
    world.endpoint.promote("the first of twenty changes")
    taken.append(settle(world, 2))
    for change in range(19):
        world.endpoint.rollback("one change more")
        taken.append(settle(world, 1 if change % 2 == 0 else 2))
    recorded = running.stop()
    seen = [line["version"] for line in recorded.lines if line["start"] > promoted]
    report(recorded.figures("20 version changes", settled_s=round(max(taken), 2)))
    assert recorded.failed == []
    assert sum(before != after for before, after in itertools.pairwise(seen)) >= 19
    assert world.champion() == 1


def test_a_killed_gateway_loses_at_most_what_was_in_flight_in_it(world: World, load: Loads, report: Report) -> None:
    running, moments, taken = load(world.endpoint.direct_url), [], []
    for _ in range(6):
        at, pid = world.kill("gateway")
        moments.append(at)
        taken.append(world.replaced("gateway", pid, 2) + until(lambda: len(world.gateways()) == 2))
    recorded = running.stop()
    in_flight = recorded.in_flight(moments)
    late = [min(line["start"] - at for at in moments if line["end"] >= at) for line in recorded.failed]
    report(
        recorded.figures(
            "kill -9 of a gateway",
            kills=6,
            latest_failed_s=round(max(late, default=0.0), 3),
            replaced_s=[round(t, 1) for t in taken],
        )
    )
    assert [line for line in recorded.failed if line not in in_flight] == []
    assert world.versions() == {str(world.champion())}
    until(lambda: len(world.scribes()) == 2, 30)  # one a gateway, none without


def test_a_killed_challenger_is_shielded(world: World, load: Loads, report: Report) -> None:
    champion = world.champion()
    world.start_rollout(3)
    world.endpoint.pause()  # or the analysis would rightly end the rollout
    until(lambda: world.versions(32) == {str(champion), "3"})
    running, taken = load(world.endpoint.direct_url), []
    for _ in range(4):
        _, pid = world.kill("challenger")
        taken.append(world.replaced("challenger", pid, 1) + until(lambda: "3" in world.versions(32)))
    recorded = running.stop()
    answered = {line["version"] for line in recorded.lines}
    report(recorded.figures("kill -9 of a challenger", kills=4, replaced_s=[round(t, 1) for t in taken]))
    world.endpoint.abort()
    settle(world, champion)
    assert recorded.failed == []
    assert answered == {str(champion), "3"}


def test_the_loss_of_serves_controller_loses_no_request(world: World, load: Loads, report: Report) -> None:
    running, taken = load(world.endpoint.direct_url), []
    for _ in range(4):
        _, pid = world.kill("controller")
        expected = 2 if world.champion() == 1 else 1
        world.endpoint.rollback("while the controller is dead")
        settle(world, expected)
        taken.append(world.replaced("controller", pid, 1))
    recorded = running.stop()
    report(recorded.figures("kill -9 of Serve's controller", kills=4, replaced_s=[round(t, 1) for t in taken]))
    assert recorded.failed == []
    assert len(world.pids("gateway")) == 2


def test_the_loss_of_the_steward_loses_no_request_no_decision_and_no_label(
    world: World, load: Loads, report: Report
) -> None:
    running, taken = load(world.endpoint.direct_url), []
    with Labels(world.endpoint.direct_url) as labels:
        for _ in range(5):
            before = world.champion()
            _, pid = world.kill("steward")
            taken.append(world.replaced("steward", pid, 1))
            assert world.champion() == before
            world.endpoint.rollback("told to the steward that came back")
            settle(world, 2 if before == 1 else 1)
    recorded = running.stop()
    more = {"kills": 5, "labels": len(labels.acknowledged), "replaced_s": [round(t, 1) for t in taken]}
    report(recorded.figures("kill -9 of the steward", **more))
    assert recorded.failed == labels.refused == []

    def all_taken() -> bool:
        _, counted, there = world.labels_of(())
        return counted == there

    until(all_taken)
    assert world.labels_of(labels.acknowledged)[0] == sorted(labels.acknowledged)
    assert world.endpoint.history()[-1].kind == "rolled_back"


def test_the_loss_of_serves_proxy_does_not_touch_the_gateways_listener(
    world: World, load: Loads, report: Report
) -> None:
    running, route, taken = load(world.endpoint.direct_url), load(world.endpoint.url), []

    def answers() -> bool:
        try:
            return world.http.get(f"{world.endpoint.url}/status").status_code == 200
        except httpx.HTTPError:
            return False

    for _ in range(2):
        _, pid = world.kill("proxy")
        taken.append(world.replaced("proxy", pid, 1) + until(answers))
    recorded, by_route = running.stop(), route.stop()
    report(recorded.figures("kill -9 of Serve's proxy", kills=2, replaced_s=[round(t, 1) for t in taken]))
    report(by_route.figures("kill -9 of Serve's proxy, by Serve's route", kills=2))
    assert recorded.failed == []
    assert by_route.lines[-1]["status"] == 200
