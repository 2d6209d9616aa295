"""Parity of a features function on a source's own rows, with Spark among the ways where it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from raymlops.data.combined import CombinedSource
from raymlops.data.features import FeatureFunction
from raymlops.data.features_parity import Parity, compare
from raymlops.data.ray_dp import SparkOnRay
from raymlops.data.ray_prepare import frames_of, wants_spark
from raymlops.data.ray_read import arrange, read_source, spark_features
from raymlops.data.sources import FrameSource, Source, check_columns
from raymlops.errors import DataError
from raymlops.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def check_parity(
    source: Source, features: FeatureFunction | None, settings: Settings, *, rows: int = 200, spark: bool = True
) -> Parity:
    """Run ``features`` on ``rows`` rows of ``source`` in every way. Ray must be running where Spark is needed.

    Parameters
    ----------
    spark : also in Spark; a source that is read by Spark needs it anyway

    Raises
    ------
    DataError : no rows, or the function fails on the whole sample
    SparkUnavailable : Spark did not start or answer
    """
    if features is None:
        return Parity(rows=0, ways=(), columns=())
    if isinstance(source, CombinedSource):
        source = source.sources[0]
    if not wants_spark(source):
        given = next(frames_of(source, settings), pd.DataFrame())
        check_columns(map(str, given.columns), source)
        source = FrameSource(given.head(rows), label=source.label, time=source.time, drop=source.drop)
        if not spark:
            return compare(features, _inputs(arrange(source.to_pandas(), source), source))
    spark_on_ray = SparkOnRay(settings)
    with spark_on_ray as session:
        return spark_on_ray.step("comparing the features", lambda: through_spark(session, source, features, rows))


def through_spark(session: SparkSession, source: Source, features: FeatureFunction, rows: int) -> Parity:
    """The comparison in a session that runs."""
    if isinstance(source, FrameSource):
        frame = session.createDataFrame(arrange(source.to_pandas(), source).head(rows))
    else:
        frame = read_source(session, source)
        check_columns(frame.columns, source)
        frame = frame.drop(*source.drop)
    sample, made = spark_features(frame, (source.label, source.time), features, rows)
    if sample.empty:
        raise DataError(f"The source ({source.describe()}) has no rows.")
    return compare(features, _inputs(sample, source), _inputs(made, source))


def _inputs(frame: pd.DataFrame, source: Source) -> pd.DataFrame:
    return frame.drop(columns=[name for name in (source.label, source.time) if name is not None])
