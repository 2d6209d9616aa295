"""One Spark session for all tests that do not end theirs: starting one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from raymlops.data.ray_dp import SparkOnRay
from raymlops.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class SharedSpark:
    """A session that starts when somebody wants it, and again after somebody has ended it."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._stack = settings, ExitStack()
        self._running: tuple[SparkOnRay, SparkSession] | None = None

    def session(self) -> tuple[SparkOnRay, SparkSession]:
        if self._running is None:
            spark_on_ray = SparkOnRay(self._settings)
            self._running = (spark_on_ray, self._stack.enter_context(spark_on_ray))
        return self._running

    def end(self) -> None:
        self._running = None
        self._stack.close()


@pytest.fixture(scope="session")
def shared_spark(spark_ready: Settings) -> Iterator[SharedSpark]:
    shared = SharedSpark(spark_ready)
    yield shared
    shared.end()


@pytest.fixture
def session(shared_spark: SharedSpark) -> tuple[SparkOnRay, SparkSession]:
    return shared_spark.session()


@pytest.fixture
def no_spark(shared_spark: SharedSpark, spark_ready: Settings) -> Settings:
    """For tests that start their own: a process has one session at a time."""
    shared_spark.end()
    return spark_ready
