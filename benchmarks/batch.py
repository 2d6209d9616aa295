"""Bulk scoring: rows a second of `raymlops batch`, of Spark with `mlflow.pyfunc.spark_udf`, and of a pandas loop.

    python benchmarks/batch.py [--quick] [--rows N] [--rounds N]

One XGBoost model (28 float features, 200 trees of depth 6) over Parquet files of 250,000 rows; each system reads them, predicts
and writes id and probability as Parquet. Every system runs in a process of its own, rounds are interleaved, and the clock runs
from when its cluster or session is up to when the last file is written, so loading the model counts and starting Ray or a JVM
does not. The contract's checks, the record of parts and the drift report are on for raymlops; the peers have none.

- spark_udf: local[cores], one partition a file, Arrow batches of 65,536 rows, one thread a Python worker, environment ``local``
- pandas: blocks of 65,536 rows, the native model with as many threads as there are cores

Peak memory is the proportional set size of the system's whole process tree, sampled twice a second (the Ray and Spark daemons
included), in a run of its own that is not timed, because sampling costs time. All answers are compared. The last line is JSON. Default: 5,000,000 rows, 3 rounds; ``--quick``: 1,000,000 rows, 2 rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

NAME, FEATURES, FILE_ROWS, BLOCK_ROWS = "bench", 28, 250_000, 65_536
COLUMNS = [f"f{index:02d}" for index in range(FEATURES)]
SYSTEMS = ("raymlops", "spark_udf", "pandas")


def prepare(folder: Path, rows: int) -> None:
    """The input files, and one model as a package of raymlops and as an MLflow model."""
    import mlflow.xgboost
    import xgboost

    from raymlops.data.schema import learn_contract
    from raymlops.lake import Lake
    from raymlops.registry.package import Reference, build_package, upload
    from raymlops.search.estimators import XGBoostEstimator
    from raymlops.store import Store

    settings = settings_of(folder)
    settings.ensure_home()
    rng = np.random.default_rng(0)
    learnt = rng.normal(size=(50_000, FEATURES)).astype(np.float32)
    y = (learnt[:, :4].sum(axis=1) + learnt[:, 4] * learnt[:, 5] + rng.normal(size=len(learnt)) > 0).astype(float)
    contract = learn_contract(pd.DataFrame(learnt, columns=COLUMNS).assign(label=y.astype(int)), "label")
    estimator = XGBoostEstimator({"max_depth": 6, "learning_rate": 0.1}, "binary", 2, 200, 0).fit(learnt, y)
    scores = np.asarray(estimator.predict(learnt[:10_000]), dtype=float)
    reference = Reference(
        columns=contract.names, x=learnt[:10_000], scores=scores, losses=(scores - y[:10_000]) ** 2, ordered=False
    )
    build_package(folder / "package", estimator, contract, None, reference, {})
    digest = upload(Lake(settings.lake), f"packages/{NAME}/1", folder / "package")
    store = Store(settings.store)
    store.put("versions", f"{NAME}/1", {"package_key": f"packages/{NAME}/1", "digest": digest})
    store.put("routing", NAME, {"number": 1, "champion": 1})
    store.put("endpoints", NAME, {"url": "http://127.0.0.1:1", "direct_url": "http://127.0.0.1:1"})
    store.close()
    booster = xgboost.Booster(params={"nthread": 1}, model_file=folder / "package" / "model.json")
    mlflow.xgboost.save_model(booster, str(folder / "mlflow"))
    (folder / "in").mkdir()
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        size = min(FILE_ROWS, rows - start)
        block = rng.normal(size=(size, FEATURES)).astype(np.float32)
        columns = {"id": np.arange(start, start + size)} | {name: block[:, i] for i, name in enumerate(COLUMNS)}
        pq.write_table(pa.table(columns), folder / "in" / f"{number:04d}.parquet")


def settings_of(folder: Path) -> Any:
    from raymlops.settings import Settings

    return Settings.read({"RAYMLOPS_HOME": str(folder / "home"), "RAYMLOPS_RAY_ADDRESS": "local"})


# --- the systems: each returns seconds ---------------------------------------------------------------------


def run_raymlops(folder: Path, output: Path) -> float:
    from raymlops import Endpoint
    from raymlops.loop.ray_connect import connect

    settings = settings_of(folder)
    connect(settings)
    began = time.monotonic()
    Endpoint(NAME, settings).batch(f"{folder}/in/*.parquet", str(output))
    return time.monotonic() - began


def run_spark_udf(folder: Path, output: Path) -> float:
    from raymlops.data.ray_dp import java_environment

    java = java_environment(settings_of(folder))
    os.environ.update({name: java[name] for name in ("JAVA_HOME", "PATH") if name in java})
    os.environ["PYSPARK_PYTHON"] = sys.executable
    import mlflow.pyfunc
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    spark = (
        SparkSession.builder.master(f"local[{os.cpu_count()}]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", BLOCK_ROWS)
        .config("spark.sql.files.maxPartitionBytes", 1 << 30)
        .config("spark.sql.files.openCostInBytes", 1 << 30)
        .getOrCreate()
    )
    spark.range(1).count()  # the session is up
    began = time.monotonic()
    predict = mlflow.pyfunc.spark_udf(spark, str(folder / "mlflow"), result_type="double", env_manager="local")
    rows = spark.read.parquet(f"{folder}/in")
    rows.select("id", predict(f.struct(*COLUMNS)).alias("probability")).write.parquet(str(output))
    took = time.monotonic() - began
    spark.stop()
    return took


def run_pandas(folder: Path, output: Path) -> float:
    import xgboost

    output.mkdir()
    began = time.monotonic()
    booster = xgboost.Booster(params={"nthread": os.cpu_count()}, model_file=folder / "package" / "model.json")
    for path in sorted((folder / "in").glob("*.parquet")):
        writer = None
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BLOCK_ROWS):
            frame = batch.to_pandas()
            frame["probability"] = booster.inplace_predict(frame[COLUMNS])
            table = pa.Table.from_pandas(frame[["id", "probability"]], preserve_index=False)
            writer = writer or pq.ParquetWriter(output / path.name, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return time.monotonic() - began


# --- measuring -----------------------------------------------------------------------------------------------


class Memory(threading.Thread):
    """Samples the proportional set size of a process and everything it started."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = psutil.Process(pid), threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.5):
            total = 0
            for process in self._tree():
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue  # it ended between listing and looking
            self.peak_mb = max(self.peak_mb, total / 1e6)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        self._ended.set()
        self.join()


def measure(system: str, folder: Path, output: Path, *, memory: bool) -> float:
    """Seconds, or peak megabytes, of one run in a process of its own."""
    command = [sys.executable, __file__, "--system", system, "--folder", str(folder), "--output", str(output)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()) if system == "pandas" else "1"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ)
        watch = Memory(process.pid)
        if memory:
            watch.start()
        said, _ = process.communicate()
        if memory:
            watch.end()
        errors.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"{system} failed:\n{errors.read()[-4000:]}")
    return watch.peak_mb if memory else float(said.strip().splitlines()[-1])


def answers(output: Path) -> np.ndarray[Any, Any]:
    """Probabilities in the order of the ids, every id once."""
    frame = pq.read_table(output, columns=["id", "probability"]).to_pandas().sort_values("id", ignore_index=True)
    assert (frame.id.to_numpy() == np.arange(len(frame))).all(), f"{output}: a row is missing or there twice"
    return frame.probability.to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(globals()[f"run_{options.system}"](options.folder, options.output))
        return
    rows = options.rows or (1_000_000 if options.quick else 5_000_000)
    rounds = options.rounds or (2 if options.quick else 3)
    seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    peaks: dict[str, float] = dict.fromkeys(SYSTEMS, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, rows)
        expected = None
        for turn in range(rounds + 1):
            for system in SYSTEMS if turn % 2 == 0 else SYSTEMS[::-1]:
                output = folder / f"out-{system}-{turn}"
                figure = measure(system, folder, output, memory=turn == rounds)
                found = answers(output)
                assert len(found) == rows, f"{system} wrote {len(found)} of {rows} rows"
                expected = found if expected is None else expected
                np.testing.assert_allclose(found, expected, atol=1e-5)
                if turn == rounds:
                    peaks[system] = figure
                    print(f"{system}: peak {figure:,.0f} MB", flush=True)
                else:
                    seconds[system].append(figure)
                    print(f"{system}: {rows / figure:,.0f} rows/s, {figure:.1f} s", flush=True)
        summary = json.loads((folder / "out-raymlops-0" / "_raymlops" / "summary.json").read_text())
    rates = {system: rows / statistics.median(seconds[system]) for system in SYSTEMS}
    best = max(SYSTEMS[1:], key=rates.__getitem__)
    print(
        json.dumps(
            {
                "benchmark": "batch",
                "rows": rows,
                "rounds": rounds,
                "ratio_best_peer": round(rates["raymlops"] / rates[best], 3),
                "best_peer": best,
                "rows_per_s": round(rates["raymlops"]),
                "peak_mb": round(peaks["raymlops"]),
                "runtime": summary["runtime"],
                "systems": {
                    system: {"rows_per_s": round(rates[system]), "peak_mb": round(peaks[system])} for system in SYSTEMS
                },
                "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
                "versions": {
                    name: version(name) for name in ("raymlops", "ray", "pyspark", "mlflow", "xgboost", "onnxruntime")
                },
            }
        )
    )


if __name__ == "__main__":
    main()
