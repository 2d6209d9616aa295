"""From a Spark frame to arrays a model can be fitted on: raymlops against the ways that Spark, RayDP and Ray Data offer.

    python benchmarks/handoff.py [--quick] [--rows N ...] [--rounds N] [--mixed] [--ways WAY ...] [--results FILE]

Two tables: 28 float32 columns and a label, at 1, 5 and 20 million rows; and a mixed one of 10 categories, 5 texts, 5 timestamps and a label,
at 1 million rows. Spark makes their values from the row's number while it hands them over, which costs next to nothing, so that the
hand-over is measured and not a scan. Each way gets the same frame in the same kind of Spark session on Ray, in a process of its own,
and is timed from there to a float32 matrix with contiguous rows, category codes of one dictionary, the label
as float64 and times as 64-bit integers. Texts stay texts. One small table is handed over first, so that no way pays for starting
Python workers. The rounds of a way run in one session; their median counts.

- raymlops: ``spark_arrays``
- toPandas: ``DataFrame.toPandas()`` with Arrow, then NumPy; the driver has 6 GB of heap, the collector and compiler for it, and no limit on results
- parquet: Spark writes uncompressed Parquet to the same disk, ``ray.data.read_parquet`` reads it
- from_spark: ``ray.data.from_spark``

The last two are filled into arrays by raymlops' own code, block by block. Peak memory is what all processes of the way (Ray, JVMs,
Python workers) hold in anonymous and mapped pages and in /dev/shm, sampled five times a second in a
run of its own that is not timed, less what they held before; as a multiple of the
arrays' own size. Pages of files that nobody has mapped are the system's cache and are not counted, for any way. Every way's column sums are
compared. The last line is JSON. ``--quick``: 1 million rows, 1 round. With ``--results`` what was measured is kept in a file, and what is
in it is not measured again: the tables can be done in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness import machine, versions

WAYS = ("raymlops", "toPandas", "parquet", "from_spark")
FEATURES, PART_ROWS, WARM_ROWS, WARM_PARTS = 28, 250_000, 20_000, 4
CATEGORIES, TEXTS, TIMES = ([f"{letter}{i}" for i in range(n)] for letter, n in (("c", 10), ("s", 5), ("t", 5)))
LIMIT_S = 240


# --- the tables ------------------------------------------------------------------------------------------


def floats(spark: Any, rows: int, parts: int) -> Any:
    numbers = [f"cast({part(i, 20)} as float) as f{i:02d}" for i in range(FEATURES)]
    return spark.range(0, rows, 1, parts).selectExpr(*numbers, f"cast({part(99, 1)} as int) as y")


def mixed(spark: Any, rows: int, parts: int) -> Any:
    values = ", ".join(f"'value-{i:02d}'" for i in range(64))
    categories = [f"array({values})[cast({part(i, 6)} as int)] as {name}" for i, name in enumerate(CATEGORIES)]
    texts = [
        f"concat('text ', cast(id + {i} as string), cast({part(20 + i, 30)} as string)) as {name}"
        for i, name in enumerate(TEXTS)
    ]
    times = [f"timestamp_micros(1700000000000000 + {part(30 + i, 40)}) as {name}" for i, name in enumerate(TIMES)]
    label = f"cast({part(99, 1)} as int) as y"
    return spark.range(0, rows, 1, parts).selectExpr(*categories, *texts, *times, label)


def part(number: int, bits: int) -> str:
    """Some bits of a product of the row's number: no two columns alike, and next to nothing to compute."""
    return f"shiftright(((id + 1) * {2654435761 + 2 * 7919 * number}L) & {2**48 - 1}L, {48 - bits})"


# --- the ways --------------------------------------------------------------------------------------------


def run_raymlops(frame: Any, session: Any, texts: tuple[str, ...]) -> Any:
    from raymlops.data.ray_handoff import spark_arrays

    return spark_arrays(frame, session.folder(), label="y", texts=texts)


def run_topandas(frame: Any, session: Any, texts: tuple[str, ...]) -> Any:
    import pandas as pd

    from raymlops.data.arrays import TrainingArrays

    made = frame.toPandas()
    times = [name for name in made.columns if made[name].dtype.kind == "M"]
    names = [name for name in made.columns if name not in (*texts, *times, "y")]
    coded = {name: pd.Categorical(made[name]) for name in names if made[name].dtype == object}
    if coded:
        x = np.column_stack(
            [np.where(c.codes < 0, np.nan, c.codes).astype(np.float32) for c in (coded[name] for name in names)]
        )
    else:
        x = np.ascontiguousarray(made[names].to_numpy(np.float32))
    return TrainingArrays(
        x=x,
        names=tuple(names),
        categories={name: tuple(c.categories) for name, c in coded.items()},
        label=made["y"].to_numpy(np.float64),
        times={name: made[name].to_numpy("datetime64[us]") for name in times},
        texts={name: made[name] for name in texts},
    )


def run_parquet(frame: Any, session: Any, texts: tuple[str, ...]) -> Any:
    import ray

    folder = session.folder()
    frame.write.option("compression", "none").parquet(folder)
    made = in_order(ray.data.read_parquet(folder), texts)
    shutil.rmtree(folder)
    return made


def run_from_spark(frame: Any, session: Any, texts: tuple[str, ...]) -> Any:
    import ray
    from raydp.spark.dataset import release_spark_recoverable

    made = in_order(ray.data.from_spark(frame), texts)
    release_spark_recoverable(frame)
    return made


def in_order(dataset: Any, texts: tuple[str, ...]) -> Any:
    from raymlops.data.arrays import training_arrays

    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return training_arrays(dataset.iter_batches(batch_format="pyarrow", batch_size=None), label="y", texts=texts)


# --- one way in a process of its own -----------------------------------------------------------------------


def held(me: psutil.Process) -> int:
    """Bytes in anonymous and mapped pages of all processes below this one, shared pages by their share, and in /dev/shm."""
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_File")))
    shared = os.statvfs("/dev/shm")
    return total * 1024 + (shared.f_blocks - shared.f_bfree) * shared.f_frsize


class Peak(threading.Thread):
    """The most that was held while it ran."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._me, self._ended, self.most = psutil.Process(), threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, held(self._me))

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return self.most


def child(way: str, rows: int, kind: str, rounds: int) -> None:
    """Prints one line of JSON: seconds of each round, and peak memory of a last one, because sampling costs time."""
    from raymlops.data.ray_dp import PLANS_ONLY, SparkOnRay
    from raymlops.loop.ray_connect import connect
    from raymlops.settings import Settings

    class Session(SparkOnRay):
        def _configs(self, on_helper: bool) -> dict[str, str]:
            configs = super()._configs(on_helper)
            if way == "toPandas":  # all rows pass the driver
                options = configs["spark.driver.extraJavaOptions"].replace(PLANS_ONLY, "")
                configs |= {"spark.driver.memory": "6g", "spark.driver.maxResultSize": "0"}
                configs |= {"spark.driver.extraJavaOptions": options}
            return configs

    with tempfile.TemporaryDirectory() as home:
        settings = Settings.read({**os.environ, "RAYMLOPS_HOME": home, "RAYMLOPS_RAY_ADDRESS": "local"})
        settings.ensure_home()
        connect(settings)
        texts = tuple(TEXTS) if kind == "mixed" else ()
        work: Callable[..., Any] = globals()[f"run_{way.lower()}"]
        session = Session(settings, deadline_s=LIMIT_S)
        with session as spark:
            if way == "from_spark":
                session._context._cluster.connect_spark_driver_to_ray()
            make = globals()[kind]
            for _ in range(2):
                work(make(spark, WARM_ROWS, WARM_PARTS), session, texts)
            before = held(psutil.Process())
            seconds, sums, size = [], [], 0
            for turn in range(rounds + 1):
                peak = Peak()
                if turn == rounds:
                    peak.start()
                began = time.perf_counter()
                made = work(make(spark, rows, max(WARM_PARTS, rows // PART_ROWS)), session, texts)
                took = time.perf_counter() - began
                if turn < rounds:
                    seconds.append(took)
                else:
                    most = peak.stop()
                sums = [
                    len(made.x),
                    *np.nansum(made.x, axis=0, dtype=np.float64).round(1).tolist(),
                    float(made.label.sum()),
                ]
                sums += [int(times.astype("int64").sum() % 10**15) for times in made.times.values()]
                size = made.x.nbytes + made.label.nbytes + sum(t.nbytes for t in made.times.values())
                assert made.x.flags.c_contiguous
                del made
            told = {"seconds": seconds, "peak": most - before, "whole": most, "size": size, "sums": sums}
            print(json.dumps(told), flush=True)


def measure(way: str, rows: int, kind: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--way", way, "--rows", str(rows), "--kind", kind, "--rounds", str(rounds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"it did not finish {rounds + 1} rounds within {LIMIT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no words"])[-1][:300]}
    # A JVM may have the last word.
    told: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return told


def compare(rows: int, kind: str, rounds: int, ways: Sequence[str], known: Known) -> dict[str, Any]:
    """All ways on one table, and those whose results are known."""
    found: dict[str, Any] = {}
    for way in WAYS:
        told = known.get(f"{rows} {kind} {way}")
        if told is None:
            if way not in ways:
                continue
            told = measure(way, rows, kind, rounds)
            known.keep(f"{rows} {kind} {way}", told)
        found[way] = (
            told
            if "failed" in told
            else {
                "seconds": round(statistics.median(told["seconds"]), 2),
                "rounds": [round(value, 2) for value in told["seconds"]],
                "peak_ratio": round(told["peak"] / told["size"], 2),
                "peak_gib": round(told["whole"] / 2**30, 2),
                "sums": told["sums"],
            }
        )
        print(f"{rows:,} rows, {kind}, {way}: {found[way] | {'sums': None}}", flush=True)
    fine = {way: item for way, item in found.items() if "failed" not in item}
    sums = [item.pop("sums") for item in fine.values()]
    for other in sums[1:]:
        np.testing.assert_allclose(other, sums[0], rtol=1e-6, atol=1.0)
    best = min((way for way in fine if way != "raymlops"), key=lambda way: fine[way]["seconds"], default="none")
    ratio = fine[best]["seconds"] / fine["raymlops"]["seconds"] if best != "none" and "raymlops" in fine else None
    return {"rows": rows, "kind": kind, "best_peer": best, "ratio": ratio and round(ratio, 2), "ways": found}


class Known:
    """What was measured before, in a file where there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._told: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def get(self, name: str) -> dict[str, Any] | None:
        return self._told.get(name)

    def keep(self, name: str, told: dict[str, Any]) -> None:
        self._told[name] = told
        if self._path is not None:
            self._path.write_text(json.dumps(self._told))


def tables(options: argparse.Namespace) -> Iterator[tuple[int, str, int]]:
    """Rows, kind and rounds of each comparison."""
    for rows in options.rows or ([1_000_000] if options.quick else [1_000_000, 5_000_000, 20_000_000]):
        if not options.mixed:
            yield rows, "floats", options.rounds or (1 if options.quick or rows > 5_000_000 else 3)
    if options.mixed or not (options.quick or options.rows):
        yield (options.rows or [1_000_000])[0], "mixed", options.rounds or 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--mixed", action="store_true", help="the mixed table only")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS, help="these only")
    parser.add_argument("--results", type=Path, help="a file that keeps what was measured")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options.way, options.rows[0], options.kind, options.rounds)
        return
    load, known = machine(), Known(options.results)
    made = []
    for rows, kind, rounds in tables(options):
        made.append(compare(rows, kind, rounds, options.ways, known))
    wide = {item["rows"]: item for item in made if item["kind"] == "floats"}
    ratios = {
        f"ratio_best_peer_{rows // 10**6}m": wide.get(rows, {}).get("ratio") for rows in (10**6, 5 * 10**6, 20 * 10**6)
    }
    judged = wide.get(5_000_000) or (list(wide.values()) or made)[-1]
    print(
        json.dumps(
            {
                "benchmark": "handoff",
                **ratios,
                "peak_memory_ratio": judged["ways"].get("raymlops", {}).get("peak_ratio"),
                "best_peer": judged["best_peer"],
                "tables": made,
                "machine": load,
                "versions": versions("raymlops", "ray", "raydp", "pyspark", "pyarrow", "pandas", "numpy"),
            }
        )
    )


if __name__ == "__main__":
    main()
