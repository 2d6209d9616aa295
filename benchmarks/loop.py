"""Seconds per stage of one turn of the loop: Spark, search, gate, register, serve, then replay and retraining.

    python benchmarks/loop.py [--quick]

Prints one line of JSON last: figures, machine, versions. The peer is the same run without a loop: the first model, never
retrained. ``--quick`` uses a stream of 8,000 rows instead of 20,000.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raymlops.demo import DemoOptions, generate_stream, run_demo
from raymlops.settings import Settings


class Stopwatch:
    """Progress that keeps the time of each stage."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, float]] = []

    def stage(self, name: str, detail: str = "") -> None:
        self._marks.append((name, time.monotonic()))
        print(f"{name}: {detail}", flush=True)

    def trial(self, trial: Any) -> None:
        return None

    def note(self, text: str) -> None:
        return None

    def seconds(self) -> dict[str, float]:
        ends = [*self._marks[1:], ("end", time.monotonic())]
        return {name: round(end[1] - began, 2) for (name, began), end in zip(self._marks, ends, strict=True)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true")
    rows = 8_000 if arguments.parse_args().quick else 20_000
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "stream.parquet"
        generate_stream(rows).to_parquet(data, index=False)
        watch = Stopwatch()
        options = DemoOptions(data=str(data), label="returned", time="ordered_at")
        result = run_demo(options, Settings.read({"RAYMLOPS_HOME": folder}), watch)
    figures = {
        key: result[key]
        for key in ("rows", "failed", "retrainings", "promoted", "metric", "score_loop", "score_static", "seconds")
    }
    print(
        json.dumps(
            {
                "benchmark": "loop",
                "stages_s": watch.seconds(),
                **figures,
                "held_s": result["held_s"],
                "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
                "versions": {
                    name: version(name) for name in ("raymlops", "ray", "raydp", "pyspark", "xgboost", "scikit-learn")
                },
                "peers": {
                    "first model, never retrained": result["score_static"],
                    "persistence": result["score_baseline"],
                },
            }
        )
    )


if __name__ == "__main__":
    main()
