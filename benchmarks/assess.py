"""The assessment: seconds to a verdict on a million rows, faults named on faulty tables, none on sound ones.

    python benchmarks/assess.py [--data FOLDER] [--quick] [--only faults|clean|speed] [--seed N]

``--data`` is a folder with ``adult/adult_train.csv`` and ``california_housing/housing.csv``, judged with the sound tables.
A fault counts as named when the check that should name it warns or fails, for the column that has it. Faulty tables often
have a second fault that follows from the first (a repeated row is also a row on both sides of the split); these are not
counted. On a sound table every warning counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import machine

from raymlops.data.assess import Assessment, assess
from raymlops.testing.faulty_tables import FAULTS
from raymlops.testing.tables import CLEAN, NOW, Case

REAL = {
    "adult": ("adult/adult_train.csv", "income"),
    "california": ("california_housing/housing.csv", "median_house_value"),
}


def judge(case: Case) -> tuple[Assessment, list[str]]:
    """The assessment, and the names of the checks that warn or fail."""
    found = assess(case.frame, case.label, case.time, case.task, spec=case.spec, now=NOW)
    return found, [check.name for check in found.checks if check.verdict in ("warn", "fail")]


def large(rows: int, columns: int, seed: int) -> pd.DataFrame:
    """Float32 numbers with a tenth of texts, a time and a label that all of them have to do with."""
    rng = np.random.default_rng(seed)
    texts = columns // 10
    x = rng.standard_normal((rows, columns - texts), dtype=np.float32)
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(columns - texts)])
    score = x @ rng.uniform(0.2, 1.0, columns - texts).astype(np.float32)
    for index in range(texts):
        codes = rng.integers(0, 5 * (index + 2), rows)
        score += rng.normal(0, 1.5, codes.max() + 1)[codes].astype(np.float32)
        frame[f"c{index}"] = np.array([f"value {code}" for code in range(codes.max() + 1)], dtype=object)[codes]
    noise = rng.normal(0, float(score.std()), rows)
    at = pd.Timestamp("2025-09-01") + pd.to_timedelta(np.sort(rng.uniform(0, 180 * 86_400, rows)), unit="s")
    return frame.assign(at=at, y=(score + noise > 0).astype(int))


def sound(seed: int, data: Path | None) -> Iterator[tuple[str, Case]]:
    """Twenty sound tables: each generated kind from two seeds, without the last two when there are real ones."""
    made = [(name, run) for run in range(2) for name in CLEAN]
    for name, run in made[: -2 if data else None]:
        yield f"{name} {run}", CLEAN[name](np.random.default_rng((seed, 1, run, list(CLEAN).index(name))))
    if data:
        for name, (path, label) in REAL.items():
            yield name, Case(frame=pd.read_csv(data / path), label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="a hundred thousand rows, every sixth table")
    parser.add_argument("--only", choices=("faults", "clean", "speed"), default=None)
    parser.add_argument("--seed", type=int, default=20_260_301)
    options = parser.parse_args()
    step = 6 if options.quick else 1
    told: dict[str, Any] = {}
    if options.only in (None, "faults"):
        told |= faulty_tables(options.seed, step)
    if options.only in (None, "clean"):
        told |= sound_tables(options.seed, step, options.data)
    if options.only in (None, "speed"):
        told |= speed(100_000 if options.quick else 1_000_000, options.seed)
    print(json.dumps(told | {"machine": machine()}))


def faulty_tables(seed: int, step: int) -> dict[str, Any]:
    """How many faults are named, and which are not."""
    named, missed = 0, []
    faults = list(enumerate(FAULTS.items()))[::step]
    for number, (name, make) in faults:
        case = make(np.random.default_rng((seed, 0, number)))
        _, found = judge(case)
        hit = any(case.check in (one, one.partition(":")[0]) for one in found)
        named += hit
        if not hit:
            missed.append(name)
        print(
            f"{'named' if hit else 'MISSED':6} {name}: {case.check}; found {', '.join(found) or 'nothing'}", flush=True
        )
    return {"faults_named": named, "faults": len(faults), "missed": missed}


def sound_tables(seed: int, step: int, data: Path | None) -> dict[str, Any]:
    """How many sound tables get a warning, and which."""
    flagged, clean = {}, list(sound(seed, data))[::step]
    for name, case in clean:
        result, found = judge(case)
        if found:
            flagged[name] = [check.message for check in result.checks if check.name in found]
        print(
            f"{'FLAGGED' if found else 'clean':7} {name}: {'; '.join(flagged.get(name, ())) or 'nothing found'}",
            flush=True,
        )
    return {"clean_flagged": len(flagged), "clean": len(clean), "flagged": flagged}


def speed(rows: int, seed: int) -> dict[str, Any]:
    """Seconds to a verdict on a large table, and the peak memory of the process with the table."""
    frame = large(rows, 50, seed)
    began, cpu = time.perf_counter(), time.process_time()
    result = assess(frame, "y", "at", now=NOW)
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    warned = [check.name for check in result.warnings] or "no warning"
    print(f"{rows:,} rows × 50 columns: {taken:.1f} s, {cpu:.1f} s of CPU; {warned}")
    return {
        "seconds_1m_x_50" if rows == 1_000_000 else f"seconds_{rows}_x_50": round(taken, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    main()
