"""Milliseconds from a new traffic table to the last answer by the old one, over real gateways under load.

    python benchmarks/weights.py [--quick] [--replicas N]

A steward publishes tables that swap two loaded versions; connections to every gateway ask all the time and note which version
answers. `published_ms` counts from when the table is durable and handed to the waiting gateways, `commanded_ms` from the call to
the steward. The peer is what Serve offers for it: a reconfiguration by `user_config`, measured once on two cores at 310 to 400 ms with two
replicas and about a second with eight. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray

from raymlops.data.schema import learn_contract
from raymlops.data.sources import FrameSource
from raymlops.lake import Lake
from raymlops.loop.ray_connect import connect
from raymlops.loop.ray_steward import Steward, save_pipeline
from raymlops.pipeline import Pipeline
from raymlops.registry.package import Reference, build_package, upload
from raymlops.search.estimators import XGBoostEstimator
from raymlops.serving.ray_serve import ServeEngine
from raymlops.serving.spec import NAMESPACE, Serving, steward_name
from raymlops.serving.traffic import TrafficSplit
from raymlops.settings import Settings
from raymlops.store import Store

NAME = "weights"
BODY = json.dumps({"rows": [{"a": 0.5, "b": -0.5}]})


class Publisher(Steward):
    """The real steward; it only publishes what it is told to."""

    def __init__(self, settings: Settings) -> None:
        engines: Any = None
        super().__init__(NAME, settings, engines, engines, engines)
        self._number = 1

    def publish(self, champion: int, warm: int) -> float:
        """When the waiting gateways were told, on this machine's wall clock."""
        self._number += 1
        self._publish(TrafficSplit(number=self._number, champion=champion, warm=(warm,)))
        return time.time()


class Client(threading.Thread):
    """One connection that asks all the time; keeps when each answer came and by which version."""

    def __init__(self, port: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._port, self._stopping = port, stop
        self.answers: list[tuple[float, int]] = []
        self.failed = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        headers = {"content-type": "application/json"}
        while not self._stopping.is_set():
            connection.request("POST", f"/{NAME}/predict", BODY, headers)
            response = connection.getresponse()
            response.read()
            self.failed += response.status != 200
            self.answers.append((time.time(), int(response.headers["x-raymlops-version"])))
            time.sleep(0.01)


def register(settings: Settings, store: Store, folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(float)
    frame = pd.DataFrame({"a": x[:, 0].astype(float), "b": x[:, 1].astype(float), "y": y})
    estimator = XGBoostEstimator({"max_depth": 2}, "binary", 2, 10, 0).fit(x, y)
    scores = np.asarray(estimator.predict(x), dtype=float)
    reference = Reference(columns=("a", "b"), x=x, scores=scores, losses=(scores - y) ** 2, ordered=False)
    build_package(folder, estimator, learn_contract(frame, "y"), None, reference, {})
    for number in (1, 2):
        key = f"packages/{NAME}/{number}"
        digest = upload(Lake(settings.lake), key, folder)
        store.put("versions", f"{NAME}/{number}", {"package_key": key, "digest": digest})
    save_pipeline(store, Lake(settings.lake), Pipeline(name=NAME, source=FrameSource(frame, label="y")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 tables instead of 200")
    parser.add_argument("--replicas", type=int, default=2)
    options = parser.parse_args()
    tables = 20 if options.quick else 200
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.read({**os.environ, "RAYMLOPS_HOME": home, "RAYMLOPS_RAY_ADDRESS": "local"})
        settings.ensure_home()
        store = Store(settings.store)
        register(settings, store, Path(home) / "package")
        connect(settings)
        steward: Any = (
            ray.remote(Publisher)
            .options(name=steward_name(NAME), namespace=NAMESPACE, num_cpus=0, max_concurrency=64)
            .remote(settings)
        )
        ray.get(steward.publish.remote(1, 2))
        place = ServeEngine(settings).deploy_gateway(NAME, Serving(replicas=options.replicas))
        stop = threading.Event()
        clients = [Client(place.port, stop) for _ in range(4 * options.replicas)]
        for client in clients:
            client.start()
        time.sleep(3)
        published, commanded = [], []
        for turn in range(tables):
            new, old = (2, 1) if turn % 2 == 0 else (1, 2)
            called = time.time()
            told = ray.get(steward.publish.remote(new, old))
            time.sleep(0.3)
            late = [at for client in clients for at, by in list(client.answers)[-200:] if by == old and at > called]
            published.append(max(0.0, max(late, default=told) - told) * 1000)
            commanded.append(max(0.0, max(late, default=called) - called) * 1000)
        stop.set()
        for client in clients:
            client.join()
        answers = sum(len(client.answers) for client in clients)
        failed = sum(client.failed for client in clients)
        ray.shutdown()
    print(
        json.dumps(
            {
                "benchmark": "weights",
                "replicas": options.replicas,
                "tables": tables,
                "published_ms": {"median": statistics.median(published), "max": max(published)},
                "commanded_ms": {"median": statistics.median(commanded), "max": max(commanded)},
                "answers": answers,
                "failed": failed,
                "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
                "versions": {name: version(name) for name in ("raymlops", "ray")},
                "peers": {"Serve user_config, 2 replicas": [310, 400]},
            }
        )
    )


if __name__ == "__main__":
    main()
