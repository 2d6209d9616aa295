"""What the sketches alone cost a request: a gateway while it counts and samples every row, and while it does not.

    python benchmarks/sketch_overhead.py [--quick]

One gateway (``peers/gateway_app.py told``) routes a canary, keeps figures and writes the prediction log all the time; a signal
switches the sketches off and on again, so that both are the same process. What it tells is taken and not judged: the monitor's
own work is another process's, and ``monitor_overhead.py`` has it in. The model of ``benchmarks/serving.py``, one row a request;
rounds alternate. ``p50_ratio``: median of each pair's ratio of median latencies, for one caller alone (its wait, which the
target is about) and for 64 that never pause (a matter of throughput). ``cpu_us``: processor time of the gateway's process a
request. ``pass_us``: counting and sampling so many rows at once, as the recorder's thread does it, a row, with nothing beside it.
Prints one line of JSON last; the target is a p50 at most 1.02 times that without sketches.
"""

from __future__ import annotations

import json
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from harness import cpu_s, machine, pause, versions
from monitor_overhead import asked, start

from raymlops.serving.predictor import Predictor
from raymlops.serving.telling import sample_rows
from raymlops.sketch.observed import Observed, keys_of
from raymlops.sketch.profile import with_score

MODES = {"on": signal.SIGUSR2, "off": signal.SIGUSR1}
CONNECTIONS = (1, 64)
AT_MOST = 1.02
SETTLE_S = 2.5  # what the log still has to write of the round before


def pass_us(predictor: Predictor, rows: int) -> float:
    """CPU microseconds a row of counting and sampling ``rows`` at once, the best of some."""
    x = np.random.default_rng(2).normal(size=(rows, len(predictor.contract.names))).astype(np.float32)
    scores, at = np.asarray(predictor.predict(x), dtype=np.float64), np.arange(rows, dtype=float)
    best = float("inf")
    for _ in range(9):
        began = time.process_time()
        limit = sample_rows(x.shape[1] + 1)
        Observed.of(predictor.bins, with_score(x, scores), at, keys_of(0, rows), [""] * rows, limit=limit)
        best = min(best, time.process_time() - began)
    return round(best / rows * 1e6, 3)


def main() -> None:
    pairs, seconds, client = asked(__doc__)
    described = machine()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        predictor, bodies, servers = start(stack, Path(scratch), client, ("told",))
        server, url = servers["told"]
        pause(server, False)
        found: dict[str, Any] = {}
        for connections in CONNECTIONS:
            p50: dict[str, list[float]] = {mode: [] for mode in MODES}
            cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
            errors = 0
            for number in range(pairs):
                for mode in MODES if number % 2 else reversed(MODES):
                    server.send_signal(MODES[mode])
                    time.sleep(SETTLE_S)
                    before = cpu_s(server.pid)
                    load = client.run(url, bodies, connections, seconds)
                    cpu[mode].append((cpu_s(server.pid) - before) / max(load.rps * seconds, 1) * 1e6)
                    p50[mode].append(load.p50_ms)
                    errors += load.errors
            medians = {mode: statistics.median(cpu[mode]) for mode in MODES}
            ratios = [on / off for on, off in zip(*p50.values(), strict=True)]
            found[f"connections_{connections}"] = {
                "p50_ratio": round(statistics.median(ratios), 4),
                "p50_ratios": [round(ratio, 3) for ratio in ratios],
                "p50_ms": {mode: round(statistics.median(p50[mode]), 4) for mode in MODES},
                "cpu_us": {mode: round(medians[mode], 2) for mode in MODES},
                "cpu_share": round(medians["on"] / medians["off"] - 1, 4),
                "errors": errors,
            }
            print(f"{connections} connections: {found[f'connections_{connections}']}", flush=True)
        result = {
            "benchmark": "sketch_overhead",
            **found,
            "pass_us": {str(size): pass_us(predictor, size) for size in (100, 1000, 10_000)},
            "goal": {
                "p50_ratio": found["connections_1"]["p50_ratio"],
                "at_most": AT_MOST,
                "reached": found["connections_1"]["p50_ratio"] <= AT_MOST,
            },
            "client": client.name,
            "machine": described,
            "versions": versions("raymlops", "uvicorn", "uvloop", "numpy"),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
