"""What watching costs: requests a second with canary routing, sketches and prediction log on, over off.

    python benchmarks/monitor_overhead.py [--quick]

One gateway without Ray (``peers/gateway_app.py`` says what is on), the model of ``benchmarks/serving.py``, one row a request,
64 connections, rows of the reference's kind. The monitor judges a window before anything is measured, so that what it does once
in its life is done. Rounds alternate between the two; the figure is the median of each pair's ratio. ``cpu_us`` is processor
time a request, of the gateway's process and of those beside it (scribe, monitor, challenger): where there are no more cores than these
and the load's client want, the second one is taken from the first. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from harness import (
    Client,
    check,
    children,
    cpu_s,
    free_port,
    machine,
    median,
    pause,
    post,
    process,
    until_ready,
    versions,
)

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


def start(
    stack: ExitStack, folder: Path, client: Client, modes: Sequence[str]
) -> tuple[Predictor, list[bytes], dict[str, tuple[Any, str]]]:
    """The model, some requests, and a gateway of each mode with its URL: checked, warm and held still."""
    predictor = build(folder / "package")
    rows = np.random.default_rng(1).normal(size=(ROWS, 28))
    names = predictor.contract.names
    bodies = [json.dumps({"rows": [dict(zip(names, row, strict=True))]}).encode() for row in rows.tolist()]
    expected = predictor.predict(rows[:8].astype(np.float32)).tolist()
    servers: dict[str, tuple[Any, str]] = {}
    for mode in modes:
        port, own = free_port(), folder / mode
        own.mkdir()
        command = [sys.executable, PEERS / "gateway_app.py", port, folder / "package", own, mode]
        server = stack.enter_context(process(command, own / "log.txt"))
        url = f"http://127.0.0.1:{port}/bench/predict"

        def verify(url: str = url, mode: str = mode) -> None:
            check(mode, [post(url, body)["probabilities"][0] for body in bodies[:8]], expected)

        until_ready(verify, server, own / "log.txt", 60)
        client.run(url, bodies, 64, 3)
        settle(server.pid)
        pause(server, True)
        servers[mode] = (server, url)
    return predictor, bodies, servers


def spent(pid: int) -> dict[str, float]:
    """Processor seconds of the gateway, and of the processes it started: the scribe's, the monitor's and the challenger's."""
    return {"gateway": cpu_s(pid), "beside": sum(cpu_s(child) for child in children(pid))}


def settle(pid: int, limit_s: float = 120.0) -> None:
    """Wait until a server's processes, without load, have done what they do once."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        before = sum(spent(pid).values())
        time.sleep(1.0)
        if sum(spent(pid).values()) - before < 0.1:
            return
    raise SystemExit(f"The server is not idle after {limit_s:.0f} s without load.")


def asked(told: str | None) -> tuple[int, float, Client]:
    """Pairs of rounds, seconds of each, and the load's client, from the command line."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six pairs of rounds of 4 s in place of ten of 8 s")
    home = Path(os.environ.get("RAYMLOPS_HOME") or "~/.raymlops").expanduser()
    parser.add_argument("--venvs", type=Path, default=home / "benchmarks", help="where the load client is kept")
    arguments = parser.parse_args()
    return *((6, 4.0) if arguments.quick else (10, 8.0)), Client(arguments.venvs.absolute() / "client")


def main() -> None:
    pairs, seconds, client = asked(__doc__)
    described = machine()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        _, bodies, servers = start(stack, folder, client, ("on", "off"))
        loads: dict[str, list[Any]] = {"on": [], "off": []}
        cpu: dict[str, list[float]] = defaultdict(list)
        for number in range(pairs):
            for mode in ("on", "off") if number % 2 else ("off", "on"):
                server, url = servers[mode]
                pause(server, False)
                before = spent(server.pid)
                load = client.run(url, bodies, 64, seconds)
                after = spent(server.pid)
                pause(server, True)
                loads[mode].append(load)
                for name, seconds_spent in after.items():
                    cpu[f"{mode} {name}"].append((seconds_spent - before[name]) / (load.rps * seconds) * 1e6)
                print(f"{mode:3} {load.rps:8.0f}/s  p99 {load.p99_ms:6.2f} ms  errors {load.errors}", flush=True)
    ratios = [on.rps / off.rps for on, off in zip(loads["on"], loads["off"], strict=True)]
    result = {
        "benchmark": "monitor_overhead",
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        **{mode: median(found) for mode, found in loads.items()},
        "cpu_us": {name: round(statistics.median(each), 1) for name, each in cpu.items()},
        "client": client.name,
        "machine": described,
        "versions": versions("raymlops", "uvicorn", "uvloop", "xgboost", "onnxruntime"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
