"""Spark on two raylets, one of which is killed by a task that runs there. Run by ``test_ray_losses.py`` in a process of its own.

Prints what came of it and then waits, with Spark running, to be killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import ray
from ray.cluster_utils import Cluster

from raymlops.data.handed import ray_node
from raymlops.data.ray_dp import SparkOnRay, ensure_java
from raymlops.data.ray_prepare import read_frame
from raymlops.data.sources import SparkSource
from raymlops.data.spark_size import Shape
from raymlops.settings import Settings

ROWS, PARTITIONS = 4000, 8


class WholeCpus(SparkOnRay):
    """Executors that take a CPU each, so that each node has room for one."""

    def _configs(self, on_helper: bool) -> dict[str, str]:
        return {**super()._configs(on_helper), "spark.ray.raydp_spark_executor.actor.resource.cpu": "1"}


def kills_its_node_once(node: str, raylet: int, marker: str) -> Any:
    def work(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            if ray_node() == node and not Path(marker).exists():
                Path(marker).touch()
                psutil.Process(raylet).kill()
            yield batch

    return work


def executors_of(spark: Any) -> int:
    """How many run, once both do: the session is there before they are."""
    running, end = 0, time.monotonic() + 60
    while running < 2 and time.monotonic() < end:
        time.sleep(0.1)
        running = spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() - 1
    return int(running)


def main() -> None:
    settings = Settings.read({**os.environ, "RAYMLOPS_HOME": sys.argv[1]})
    settings.ensure_home()
    ensure_java(settings)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    raylet = second.all_processes["raylet"][0].process.pid
    marker = str(Path(sys.argv[1]) / "killed")

    def prepare(spark: Any) -> Any:
        rows = spark.range(0, ROWS, 1, PARTITIONS).selectExpr("id", "id % 2 y")
        return rows.mapInPandas(kills_its_node_once(second.node_id, raylet, marker), rows.schema)

    shape = Shape(executors=2, cores=1, memory="512m")
    spark_on_ray = WholeCpus(settings, shape=shape, deadline_s=120.0)
    with spark_on_ray as spark:
        running = executors_of(spark)
        frame = read_frame(spark_on_ray, spark, SparkSource(prepare, label="y"), None, lambda _: None)
        told = {"rows": len(frame), "sum": int(frame["id"].sum()), "killed": Path(marker).exists()}
        sys.stdout.write(json.dumps({**told, "executors": running}) + "\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
