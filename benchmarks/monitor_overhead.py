"""What watching costs: requests a second with canary routing, sketches and prediction log on, over off.

    python benchmarks/monitor_overhead.py [--quick]

One gateway without Ray (``peers/gateway_app.py`` says what is on), the model of ``benchmarks/serving.py``, one row a request,
64 connections, rows of the reference's kind. The monitor judges a window before anything is measured, so that what it does once
in its life is done. Rounds alternate between the two; the figure is the median of each pair's ratio. Prints one line of JSON
last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness import Client, check, free_port, machine, median, pause, post, process, until_ready, versions

from raymlops.data.schema import learn_contract
from raymlops.registry.package import Reference, build_package
from raymlops.search.estimators import XGBoostEstimator
from raymlops.serving.predictor import Predictor

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from raymlops_app import TREES, table

PEERS = Path(__file__).parent / "peers"
ROWS = 4_096  # fewer, asked again and again, are no sample of the reference: the monitor would see drift in each window


def build(folder: Path) -> Predictor:
    """The package of the model."""
    frame = table()
    contract = learn_contract(frame, "label")
    x, y = contract.encode(frame), contract.encode_label(frame.label)
    params = {name: value for name, value in TREES.items() if name != "rounds"}
    estimator = XGBoostEstimator(params, "binary", 2, int(TREES["rounds"]), 0).fit(x[:15_000], y[:15_000])
    held, truth = x[15_000:], y[15_000:]
    scores = np.asarray(estimator.predict(held))
    losses = (scores - truth) ** 2
    reference = Reference(columns=contract.names, x=held, scores=scores, losses=losses, ordered=False)
    build_package(folder, estimator, contract, None, reference, {})
    return Predictor.load(folder)


def settle(server: subprocess.Popen[bytes], limit_s: float = 120.0) -> None:
    """Wait until the server's processes, without load, have done what they do once."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        before = sum(sum(process.cpu_times()[:2]) for process in family)
        time.sleep(1.0)
        if sum(sum(process.cpu_times()[:2]) for process in family) - before < 0.1:
            return
    raise SystemExit(f"The server is not idle after {limit_s:.0f} s without load.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six pairs of 4 s in place of ten of 8 s")
    home = Path(os.environ.get("RAYMLOPS_HOME") or "~/.raymlops").expanduser()
    parser.add_argument("--venvs", type=Path, default=home / "benchmarks", help="where the load client is kept")
    arguments = parser.parse_args()
    pairs, seconds = (6, 4.0) if arguments.quick else (10, 8.0)
    described = machine()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        predictor = build(folder / "package")
        client = Client(arguments.venvs.absolute() / "client")
        rows = np.random.default_rng(1).normal(size=(ROWS, 28))
        names = predictor.contract.names
        bodies = [json.dumps({"rows": [dict(zip(names, row, strict=True))]}).encode() for row in rows.tolist()]
        expected = predictor.predict(rows[:8].astype(np.float32)).tolist()
        servers: dict[str, tuple[Any, str]] = {}
        for mode in ("on", "off"):
            port, own = free_port(), folder / mode
            own.mkdir()
            command = [sys.executable, PEERS / "gateway_app.py", port, folder / "package", own, mode]
            server = stack.enter_context(process(command, own / "log.txt"))
            url = f"http://127.0.0.1:{port}/bench/predict"

            def verify(url: str = url, mode: str = mode) -> None:
                check(mode, [post(url, body)["probabilities"][0] for body in bodies[:8]], expected)

            until_ready(verify, server, own / "log.txt", 60)
            client.run(url, bodies, 64, 3)
            settle(server)
            pause(server, True)
            servers[mode] = (server, url)
        loads: dict[str, list[Any]] = {"on": [], "off": []}
        for number in range(pairs):
            for mode in ("on", "off") if number % 2 else ("off", "on"):
                server, url = servers[mode]
                pause(server, False)
                load = client.run(url, bodies, 64, seconds)
                pause(server, True)
                loads[mode].append(load)
                print(f"{mode:3} {load.rps:8.0f}/s  p99 {load.p99_ms:6.2f} ms  errors {load.errors}", flush=True)
    ratios = [on.rps / off.rps for on, off in zip(loads["on"], loads["off"], strict=True)]
    result = {
        "benchmark": "monitor_overhead",
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        **{mode: median(found) for mode, found in loads.items()},
        "client": client.name,
        "machine": described,
        "versions": versions("raymlops", "uvicorn", "uvloop", "xgboost", "onnxruntime"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
