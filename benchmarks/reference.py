"""What the monitor compares with: the newest 10,000 held-out rows, or counts of the whole held-out period.

    python benchmarks/reference.py [--quick] [--seed N] [--rows N ...] [--streams NAME ...]

Streams of 20 columns (``drift_streams.py``): independent rows, AR(1) with 0.8 and 0.98, and independent rows with a day of 24,000
rows, whose level moves by a tenth, three tenths or one standard deviation in all columns, or by one in three of them. A version
holds out some rows before the stream begins (``--rows``: 20,000 are less than a day, 240,000 are ten), and the real monitor, with its
budget of one false alarm in 1,000 windows, judges 100 windows of 1,000 rows by each reference: flags while nothing changes, and
windows until a shift of 0.25 standard deviations in one column (the last, which has no day where only three have) is found. The
last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from drift_streams import CHANGE, COLUMNS, WINDOW, WINDOWS, autoregressive

from raymlops.data.schema import Column, DataContract
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.registry.package import REFERENCE_ROWS, Reference
from raymlops.sketch.period import CHUNK, PeriodPlan, counted
from raymlops.sketch.profile import SCORE, Profile, with_score

DAY = 24_000
SHIFT = 0.25
NAMES = tuple(f"c{i}" for i in range(COLUMNS))
CONTRACT = DataContract(
    columns=tuple(Column(name=name, kind="number", nullable=True, minimum=None, maximum=None) for name in NAMES),
    label="y",
    task="regression",
    classes=(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """``level``: how far the day moves the columns up and down, of which it moves so many."""

    phi: float = 0.0
    level: float = 0.0
    moved: int = COLUMNS


STREAMS = {
    "iid": Kind(),
    "ar8": Kind(phi=0.8),
    "ar98": Kind(phi=0.98),
    "day .1": Kind(level=0.1),
    "day .3": Kind(level=0.3),
    "day 1": Kind(level=1.0),
    "day 1 in 3": Kind(level=1.0, moved=3),
}


def draw(kind: Kind, rows: int, seed: int) -> np.ndarray:
    """``(rows, 20)`` float32; the day begins anywhere."""
    x = autoregressive(kind.phi, rows, seed)
    start = np.random.default_rng(seed + 9000).uniform(0, 2 * np.pi)
    x[:, : kind.moved] += kind.level * np.sin(start + 2 * np.pi * np.arange(rows) / DAY)[:, None]
    return x


def score(x: np.ndarray) -> np.ndarray:
    return x[:, :5].sum(axis=1).astype(np.float64)


def period_of(x: np.ndarray) -> Profile:
    """Of held-out rows, as a training makes it."""
    rows = with_score(x, score(x))
    spread = rows[np.linspace(0, len(rows) - 1, REFERENCE_ROWS).astype(int)]
    plan = PeriodPlan.learn(spread, (*NAMES, SCORE), {})
    parts = (plan.count(k, rows[k * CHUNK : (k + 1) * CHUNK]) for k in range(-(-len(rows) // CHUNK)))
    return plan.profile(counted(parts), ordered=True)


def flags(reference: str, held: np.ndarray, profile: Profile, live: np.ndarray) -> tuple[list[bool], dict[str, int]]:
    """Of each window whether any evidence flags it; and how often which test did."""
    newest = held[-REFERENCE_ROWS:]
    kept = Reference(columns=NAMES, x=newest, scores=score(newest), losses=np.abs(newest[:, 0]), ordered=True)
    spec = Monitor(second_opinion="off", reference="period" if reference == "period" else "recent")
    watcher, found, tests = Watcher(spec, kept, CONTRACT, None, profile), [], dict[str, int]()
    for start in range(0, len(live), WINDOW):
        window = live[start : start + WINDOW]
        watcher.observe(window, score(window), float(start))
        (report,) = watcher.step(0.0)
        drifted = {item.name for item in report.evidence if item.drifted}
        found.append(bool(drifted))
        for name in drifted:
            tests[name] = tests.get(name, 0) + 1
    return found, tests


def measure(kind: Kind, rows: int, seeds: range) -> dict[str, Any]:
    """By reference: false alarms for 1,000 windows, delays, the tests behind the false alarms, and what was still judged."""
    quiet: dict[str, list[bool]] = {"recent": [], "period": []}
    tests: dict[str, dict[str, int]] = {"recent": {}, "period": {}}
    delays: dict[str, list[int | None]] = {"recent": [], "period": []}
    for seed in seeds:
        x = draw(kind, rows + WINDOWS * WINDOW, seed)
        held, live = x[:rows], x[rows:]
        changed = live.copy()
        changed[CHANGE * WINDOW :, -1] += SHIFT
        profile = period_of(held)
        for reference in quiet:
            found, by = flags(reference, held, profile, live)
            quiet[reference] += found
            for name, count in by.items():
                tests[reference][name] = tests[reference].get(name, 0) + count
            after = flags(reference, held, profile, changed)[0][CHANGE:]
            delays[reference].append(next((i + 1 for i, flag in enumerate(after) if flag), None))
    return {
        reference: {
            "false_alarms_per_1000": round(1000 * sum(found) / len(found), 2),
            "windows": len(found),
            "by": tests[reference],
            "delay": _median(delays[reference]),
        }
        for reference, found in quiet.items()
    }


def _median(values: list[int | None]) -> float | None:
    found = statistics.median_low([float("inf") if value is None else value for value in values])
    return None if found == float("inf") else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds instead of ten")
    parser.add_argument("--seed", type=int, default=3000)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 240_000], help="held out")
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # numpy reads it once, when it is loaded
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **threads})
    seeds = range(options.seed, options.seed + (2 if options.quick else 10))
    print(
        "stream".ljust(12) + "held out".rjust(10) + "  reference  false alarms/1,000 windows   windows to find .25 sd"
    )
    found: dict[str, dict[str, Any]] = {}
    for rows in options.rows:
        for name in options.streams:
            cells = found.setdefault(str(rows), {})[name] = measure(STREAMS[name], rows, seeds)
            for reference, cell in cells.items():
                late = "never" if cell["delay"] is None else cell["delay"]
                told = f"{cell['false_alarms_per_1000']:>14} of {cell['windows']:<8}{late!s:>12}   {cell['by']}"
                print(name.ljust(12) + f"{rows:,}".rjust(10) + f"  {reference:9}" + told, flush=True)
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "reference", "held_out": found, "day_rows": DAY, "machine": machine}))


if __name__ == "__main__":
    main()
