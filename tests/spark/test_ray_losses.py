"""A process of Spark dies while it prepares: the rows are right, else the session starts once more, else an error says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pytest
import ray
from raydp.spark.ray_cluster_master import RAYDP_SPARK_MASTER_SUFFIX

from raymlops.data.ray_dp import SparkOnRay
from raymlops.data.ray_prepare import prepare_frame
from raymlops.data.sources import SparkSource
from raymlops.data.spark_size import Shape
from raymlops.errors import SparkUnavailable
from raymlops.settings import Settings

ROWS, PARTITIONS = 4000, 8


def jvms(words: str = "", of: psutil.Process | None = None) -> list[psutil.Process]:
    """The JVMs below this process whose command holds these words."""
    found = []
    for process in (of or psutil.Process()).children(recursive=True):
        try:
            if process.name() == "java" and words in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(left: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after a while."""
    _, alive = psutil.wait_procs(left, timeout=30)
    return list(alive)


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within a minute."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


def rows_of(spark: Any, work: Any) -> Any:
    rows = spark.range(0, ROWS, 1, PARTITIONS).selectExpr("id", "cast(id % 7 as double) v", "id % 2 y")
    return rows.mapInPandas(work, rows.schema)


def never_ends(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for batch in batches:
        time.sleep(600)
        yield batch


def kills_its_executor_once(marker: str) -> Any:
    def work(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        from pyspark import TaskContext

        for batch in batches:
            if TaskContext.get().partitionId() == 3:
                try:
                    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    # A worker's parent is Spark's daemon of Python workers, whose parent is the executor.
                    executor = psutil.Process(os.getppid()).parent()
                    assert executor.name() == "java"
                    executor.kill()
            yield batch

    return work


def test_rows_are_right_after_the_master_jvm_and_then_an_executor_were_killed(
    no_spark: Settings, tmp_path: Path
) -> None:
    starts: list[str] = []

    def prepare(spark: Any) -> Any:
        starts.append(spark.sparkContext.appName)
        if len(starts) > 1:
            return rows_of(spark, kills_its_executor_once(str(tmp_path / "killed")))
        (master,) = jvms("AppMasterEntryPoint")
        master.kill()
        return rows_of(spark, never_ends)

    before, said = jvms(), []
    frame = prepare_frame(SparkSource(prepare, label="y"), None, no_spark, said.append, deadline_s=120.0)
    assert len(set(starts)) == 2
    assert (tmp_path / "killed").exists()
    assert any("its application master's JVM has ended" in line and "once more" in line for line in said)
    steps = ["starting Spark on Ray", "reading with Spark", "taking the partitions from Spark"]
    assert [line for line in said if line in steps][-3:] == steps
    assert (Path(no_spark.home) / "logs" / "spark-driver.log").exists()
    # The unbroken run's answer: every row once, in order.
    assert frame["id"].tolist() == list(range(ROWS))
    assert frame["v"].tolist() == [i % 7 for i in range(ROWS)]
    assert not gone([process for process in jvms() if process not in before])


def test_losing_it_twice_is_a_typed_error_and_leaves_no_jvm(no_spark: Settings) -> None:
    starts: list[str] = []

    def prepare(spark: Any) -> Any:
        name = spark.sparkContext.appName
        starts.append(name)
        if len(starts) == 1:
            ray.kill(ray.get_actor(name + RAYDP_SPARK_MASTER_SUFFIX), no_restart=True)
        else:
            spark.sparkContext._gateway.proc.kill()
        return rows_of(spark, never_ends)

    before, said = jvms(), []
    with pytest.raises(SparkUnavailable, match=r"Spark was lost while .*\. Logs: "):
        prepare_frame(SparkSource(prepare, label="y"), None, no_spark, said.append, deadline_s=120.0)
    assert len(set(starts)) == 2
    assert any("Spark was lost while" in line and "its master has died" in line for line in said)
    assert not gone([process for process in jvms() if process not in before])


class SoonIdle(SparkOnRay):
    IDLE_S = 2


def test_executors_are_added_for_a_long_job_and_released_when_idle(no_spark: Settings, tmp_path: Path) -> None:
    """Two executors on the one node: Ray counts a tenth of a CPU for each."""
    enough = tmp_path / "enough"

    def long(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        end = time.monotonic() + 90
        while not enough.exists() and time.monotonic() < end:
            time.sleep(0.1)
        yield from batches

    def executors() -> int:
        """The driver is listed among them."""
        return len(spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) - 1

    with SoonIdle(no_spark, shape=Shape(executors=1, cores=1, memory="512m", most=2)) as spark:
        rows = spark.range(0, 6, 1, 6).mapInArrow(long, "id long")
        job = threading.Thread(target=lambda: rows.write.format("noop").mode("overwrite").save())
        job.start()
        assert soon(lambda: executors() == 2)
        held = ray.available_resources()["memory"]
        enough.touch()
        job.join()
        assert soon(lambda: executors() == 1)
        assert soon(lambda: ray.available_resources()["memory"] > held)
        assert spark.range(60).count() == 60


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Two raylets in a process of its own: this one already belongs to the session's cluster."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYMLOPS_"))}
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), str(tmp_path)]
    # In a folder of its own, for the address is written there that others on this machine would join; its sockets' paths must be short.
    with tempfile.TemporaryDirectory(prefix="rn", ignore_cleanup_errors=True) as short:
        env["RAY_TMPDIR"] = short
        driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield driver
        finally:
            below = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            driver.kill()
            driver.wait()
            for process in below:
                if process.is_running():
                    process.kill()


def test_a_second_node_and_then_the_driver_are_killed(two_nodes: subprocess.Popen[str]) -> None:
    assert two_nodes.stdout is not None
    said = next((line for line in two_nodes.stdout if line.startswith("{")), "")
    assert said, two_nodes.communicate()[1][-3000:]
    told = json.loads(said)
    assert told["executors"] == 2
    assert told["killed"]
    assert (told["rows"], told["sum"]) == (ROWS, sum(range(ROWS)))
    whole = psutil.Process(two_nodes.pid)
    ours, left = whole.children(recursive=True), jvms(of=whole)
    assert len(left) >= 3  # the driver's, the master's and an executor
    try:
        two_nodes.kill()
        two_nodes.wait()
        assert not gone(left)
    finally:
        for process in ours:
            if process.is_running():
                process.kill()
