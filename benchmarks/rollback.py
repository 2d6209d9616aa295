"""Seconds from a rollback to the last answer of the old version, and from a bad canary's first bad answer to its last.

    python benchmarks/rollback.py [--quick] [--rollbacks N]

A real cluster: two gateways, the steward's actor, its store and registry, and open connections from a process of its own that ask
all the time. Every good version takes 4 ms for a batch, as one with a small features function does.

`rollback_p99_s` (with the median and the most) counts from the call of `Endpoint.rollback` to when the last answer of the version
before arrived at a client. `bad_canary_s` counts from the first bad batch to the last one, by the bad version's own record of
them, at a fifth of the traffic: a version that raises, that predicts NaN, that gives one prediction too few, and that takes ten
times as long; `bad_batches` says how many it was asked for. `caller_errors` counts answers, over all of it, that were not 200
with one finite probability. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import aiohttp
import ray
from harness import THREADS, free_port, machine, versions
from ray import serve

from raymlops import Canary, Endpoint, FrameSource, Monitor, Pipeline, RetrainPolicy, Serving
from raymlops.lake import Lake
from raymlops.loop import ray_steward
from raymlops.loop.ray_connect import connect
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.serving.ray_serve import ServeEngine
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.testing.broken import Fault, FaultyEstimator
from raymlops.testing.packages import install_registered, table

NAME = "rollback"
CONNECTIONS = 16
PAUSE_S = 0.03
WORK_S = 0.004
SLOWER = 10
CANARY = Canary(weights=(0.2, 1.0), hold_s="1h", max_wait_s="2h")


# --- the client's process --------------------------------------------------------------------------------


async def _ask(session: aiohttp.ClientSession, url: str, until: asyncio.Event, out: Any) -> None:
    body = {"rows": [{"a": 0.5, "b": -0.25}]}
    while not until.is_set():
        line: dict[str, Any] = {"sent": time.time(), "good": False}
        try:
            async with session.post(url, json=body) as answer:
                content = await answer.json()
                line["version"] = int(answer.headers.get("x-raymlops-version", 0))
                (probability,) = content["probabilities"]
                line["good"] = answer.status == 200 and math.isfinite(probability)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, KeyError, TypeError, ValueError) as error:
            line["error"] = f"{type(error).__name__}: {error}"
        line["got"] = time.time()
        out.write(json.dumps(line) + "\n")
        await asyncio.sleep(PAUSE_S)


async def client(url: str, path: str) -> None:
    until = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, until.set)
    timeout = aiohttp.ClientTimeout(total=20)
    with open(path, "w", buffering=1) as out:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            await asyncio.gather(*(_ask(session, url, until, out) for _ in range(CONNECTIONS)))


# --- the endpoint ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The endpoint under load; ``log`` is what the clients saw."""

    settings: Settings
    endpoint: Endpoint
    log: Path
    bad: dict[Fault, tuple[int, Path]]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def state(self) -> dict[str, Any]:
        return dict(ray_steward.call(ray_steward.find(NAME), "status"))


def _install(settings: Settings, store: Store, folder: Path) -> dict[Fault, tuple[int, Path]]:
    """Versions 1 and 2 are good; the others are not, and note when."""
    registry = MlflowRegistry(settings.mlflow)
    bad: dict[Fault, tuple[int, Path]] = {}
    busy = partial(FaultyEstimator, fault="slow", slow_s=WORK_S)
    made = [busy, busy]
    for number, fault in enumerate(get_args(Fault), 3):
        times = folder / f"{fault}.txt"
        bad[fault] = (number, times)
        made.append(partial(FaultyEstimator, fault=fault, times=str(times), slow_s=WORK_S * SLOWER))
    for number, altered in enumerate(made, 1):
        install_registered(settings, store, registry, NAME, number, rounds=3 * number, altered=altered)
    return bad


@contextmanager
def endpoint(folder: Path) -> Iterator[World]:
    environ = {**os.environ, "RAYMLOPS_HOME": str(folder / "home"), "RAYMLOPS_RAY_ADDRESS": "local"}
    settings = Settings.read({**environ, "RAYMLOPS_HTTP_PORT": str(free_port())})
    settings.ensure_home()
    store = Store(settings.store)
    bad = _install(settings, store, folder)
    pipeline = Pipeline(
        name=NAME,
        source=FrameSource(table(500), label="y"),
        serving=Serving(replicas=2),
        rollout=CANARY,
        monitor=Monitor(second_opinion="off"),
        retrain=RetrainPolicy(on_drift=False),
    )
    ray_steward.save_pipeline(store, Lake(settings.lake), pipeline)
    connect(settings)
    engine = ServeEngine(settings)
    engine.start()
    ray_steward.call(ray_steward.launch(NAME, settings), "candidate", 1, f"{NAME}-1")
    place = engine.deploy_gateway(NAME, pipeline.serving)
    store.put("endpoints", NAME, {"url": place.url, "direct_url": place.direct_url})
    store.close()
    made = Endpoint(NAME, settings)
    made.wait_ready()
    log = folder / "answers.jsonl"
    load = subprocess.Popen([sys.executable, __file__, "--client", f"{place.direct_url}/predict", str(log)])
    try:
        time.sleep(3)
        yield World(settings=settings, endpoint=made, log=log, bad=bad)
    finally:
        load.send_signal(signal.SIGTERM)
        load.wait(30)
        serve.shutdown()
        ray.shutdown()


# --- what is measured --------------------------------------------------------------------------------------


def rollbacks(world: World, count: int) -> dict[str, float]:
    """Back and forth between versions 1 and 2, both warm."""
    ray_steward.call(ray_steward.find(NAME), "candidate", 2, f"{NAME}-2")
    world.endpoint.promote()
    time.sleep(1)
    calls = []
    for _ in range(count):
        old = int(world.state()["champion"])
        called = time.time()
        world.endpoint.rollback()
        calls.append((called, time.time() - called, old))
        time.sleep(0.4)
    lines = world.lines()
    last = [
        max([0.0, *(line["got"] - at for line in lines if line.get("version") == old and at < line["got"] < at + 0.4)])
        for at, _, old in calls
    ]
    ordered, took = sorted(last), sorted(call for _, call, _ in calls)
    return {
        "rollback_p99_s": round(ordered[max(0, math.ceil(0.99 * count) - 1)], 4),
        "rollback_median_s": round(ordered[count // 2], 4),
        "rollback_most_s": round(ordered[-1], 4),
        "call_median_s": round(took[count // 2], 4),
    }


def bad_canary(world: World, fault: Fault) -> dict[str, Any]:
    """A canary with that fault, until the steward has taken it out."""
    version, times = world.bad[fault]
    began = time.time()
    ray_steward.call(ray_steward.find(NAME), "candidate", version, f"{NAME}-{version}")
    while world.state()["phase"][0] == "RollingOut":
        if time.time() - began > 180:
            raise RuntimeError(f"a canary that {fault} was not rolled back within three minutes")
        time.sleep(0.2)
    time.sleep(2)
    bad = [float(line) for line in times.read_text().split()]
    event = next(event for event in reversed(world.endpoint.history()) if event.kind == "rolled_back")
    if event.body["version"] != version:
        raise RuntimeError(f"version {event.body['version']} was rolled back and not {version}")
    met = [line["got"] - line["sent"] for line in world.lines() if bad[0] <= line["got"] <= bad[-1] + 1]
    return {
        "seconds": round(bad[-1] - bad[0], 3),
        "batches": len(bad),
        "reason": event.body["reason"],
        "callers_p99_ms": round(sorted(met)[int(0.99 * len(met))] * 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 rollbacks instead of 50")
    parser.add_argument("--rollbacks", type=int, default=50)
    parser.add_argument("--kinds", nargs="*", choices=get_args(Fault), default=list(get_args(Fault)))
    parser.add_argument("--client", nargs=2, metavar=("URL", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        asyncio.run(client(*options.client))
        return
    os.environ.update(THREADS)
    count = 10 if options.quick else options.rollbacks
    with tempfile.TemporaryDirectory() as scratch, endpoint(Path(scratch)) as world:
        figures: dict[str, Any] = rollbacks(world, count)
        print(json.dumps(figures), flush=True)
        kinds = {}
        for fault in options.kinds:
            kinds[fault] = bad_canary(world, fault)
            print(json.dumps({fault: kinds[fault]}), flush=True)
        lines = world.lines()
    wrong = [line for line in lines if not line["good"]]
    result = {
        "benchmark": "rollback",
        "rollbacks": count,
        **figures,
        "bad_canary_s": {kind: found["seconds"] for kind, found in kinds.items()},
        "bad_batches": {kind: found["batches"] for kind, found in kinds.items()},
        "callers_p99_ms": {kind: found["callers_p99_ms"] for kind, found in kinds.items()},
        "caller_errors": len(wrong),
        "errors": sorted({line.get("error", "not a good answer") for line in wrong})[:5],
        "answers": len(lines),
        "machine": machine(),
        "versions": versions("raymlops", "ray"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
