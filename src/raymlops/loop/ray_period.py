"""A held-out period counted by Spark's workers on Ray: they read the snapshot's file, encode, score and count, and send back counts."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa

from raymlops.by_value import dumps_by_value
from raymlops.data.ray_dp import Progress, SparkOnRay
from raymlops.errors import RaymlopsError
from raymlops.registry.native import defined_by
from raymlops.sketch.period import PeriodPart, counted

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from raymlops.loop.held_period import PeriodWork
    from raymlops.settings import Settings


def count_in_spark(work: PeriodWork, settings: Settings, progress: Progress) -> PeriodPart | None:
    """Count in a Spark of its own, as large as preparing the same file would start; ``None`` when that failed, which ``progress``
    is told: a training that is nearly done is not given up for what its own process can count as well."""
    try:
        spark_on_ray = SparkOnRay(settings, progress=progress, data_bytes=work.stored_bytes)
        with spark_on_ray as spark:
            return count_with(spark_on_ray, spark, work)
    except (RaymlopsError, OSError, pickle.PickleError) as error:
        progress(f"{error} Counting without Spark, which gives the same")
        return None


def count_with(spark_on_ray: SparkOnRay, spark: SparkSession, work: PeriodWork) -> PeriodPart:
    """Count in a Spark that runs."""
    tasks = work.tasks()
    # By value: a model may be of a class of the user's own, in a module that the workers do not have.
    content = dumps_by_value(work, (*defined_by(work.model.before), *defined_by(work.model.after)))

    def count(batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        mine: PeriodWork = pickle.loads(content)
        for batch in batches:
            for number in batch.column(0).to_pylist():
                part = mine.count_stored(tasks[number])
                yield pa.RecordBatch.from_pydict({"part": [part.to_bytes()]})

    frame = spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(count, "part binary")
    rows = spark_on_ray.step("counting the held-out rows", frame.collect)
    return counted(PeriodPart.from_bytes(bytes(row["part"])) for row in rows)
