"""A source, read into one frame with its features: by Spark on Ray where that pays, else without a JVM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import ray

from raymlops.data.combined import CombinedSource, combine
from raymlops.data.features import FeatureFunction, apply_features
from raymlops.data.features_parity import parity
from raymlops.data.files import bytes_of, is_small, plain_types, read_files
from raymlops.data.raw import OnRaw, learn_raw
from raymlops.data.ray_dp import OnPlan, Progress, SparkOnRay
from raymlops.data.ray_handoff import hand_over
from raymlops.data.ray_read import Step, arrange, empty_of, plain, plan_of, read_source, with_features
from raymlops.data.served import ServedSource
from raymlops.data.snapshot import order_by_time
from raymlops.data.sources import FileSource, FrameSource, RayDatasetSource, Source, check_columns
from raymlops.data.sql import SQLSource, planned, read_range
from raymlops.errors import DataError, RaymlopsError, SparkUnavailable
from raymlops.lake import Lake
from raymlops.settings import Settings
from raymlops.store import Store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How a source is read, whichever it is; see :func:`prepare_frame`."""

    features: FeatureFunction | None
    settings: Settings
    say: Progress
    deadline_s: float
    hidden: tuple[str, ...] = ()
    on_raw: OnRaw | None = None
    on_plan: OnPlan | None = None

    def keep(self, source: Source) -> tuple[str | None, ...]:
        """Columns the features function does not see."""
        return (source.label, source.time, *self.hidden)


def prepare_frame(
    source: Source,
    features: FeatureFunction | None,
    settings: Settings,
    progress: Progress | None = None,
    *,
    deadline_s: float = 300.0,
    on_raw: OnRaw | None = None,
    hidden: tuple[str, ...] = (),
    on_plan: OnPlan | None = None,
) -> pd.DataFrame:
    """The source's rows with their features, its label and its time, in time order; rows without a label are left out.

    A :class:`SparkSource`, a large :class:`FileSource` and a ``jdbc:`` one are read by Spark on Ray, where the features
    function runs on Arrow batches; when Spark is lost or a step passes ``deadline_s``, the whole session is started once
    more. All others start no JVM. ``on_raw`` is told the columns the function is given, when there is one.

    Raises
    ------
    DataError : no such files or columns, features that fail or are not row-wise, no rows, a time that cannot be read
    NoJava, SparkUnavailable : Spark could not be used
    """
    way = _Way(
        features=features,
        settings=settings,
        say=progress or (lambda _: None),
        deadline_s=deadline_s,
        hidden=hidden,
        on_raw=on_raw,
        on_plan=on_plan,
    )
    return _finished(_made(source, way), source)


def _made(source: Source, way: _Way) -> pd.DataFrame:
    if isinstance(source, CombinedSource):
        # All parts have the same columns; the first one tells them.
        ways = [way, *[replace(way, on_raw=None)] * (len(source.sources) - 1)]
        return combine(source, [_made(part, own) for part, own in zip(source.sources, ways, strict=True)])
    if not wants_spark(source):
        return _without_spark(source, way)
    try:
        return _through_spark(source, way)
    except SparkUnavailable as error:
        way.say(f"{error} Starting Spark once more")
        return _through_spark(source, way)


def wants_spark(source: Source) -> bool:
    """Whether a JVM is started to read it.

    Raises
    ------
    DataError : files that are not there
    """
    if isinstance(source, FileSource):
        if source.engine != "auto":
            return source.engine == "spark"
        files, form, _ = source.expand()
        return not is_small(files, form)
    if isinstance(source, SQLSource):
        return source.address().startswith("jdbc:")
    return not isinstance(source, (FrameSource, RayDatasetSource, ServedSource))


# --- without a JVM -------------------------------------------------------------------------------------


def _without_spark(source: Source, way: _Way) -> pd.DataFrame:
    way.say(f"reading {source.describe()}")
    keep = way.keep(source)
    made: list[pd.DataFrame] = []
    for frame in frames_of(source, way.settings):
        if not len(frame) and made:
            continue
        if frame.empty and isinstance(source, ServedSource):
            return frame  # nothing was served yet, and of no rows no features can be made
        check_columns(map(str, frame.columns), source)
        given = arrange(frame, source, way.hidden)
        if not made:
            parity(way.features, given.drop(columns=[name for name in keep if name in given.columns]))
            if way.features is not None and way.on_raw is not None:
                way.on_raw(learn_raw(given, keep))
        made.append(apply_features(way.features, given, keep))
    if not made:
        raise DataError(f"The source ({source.describe()}) has no rows.")
    return pd.concat(made, ignore_index=True) if len(made) > 1 else made[0]


def frames_of(source: Source, settings: Settings) -> Iterator[pd.DataFrame]:
    """The rows of a source that wants no JVM, as one frame or in blocks, before features."""
    if isinstance(source, FrameSource):
        yield source.to_pandas()
    elif isinstance(source, FileSource):
        files, form, _ = source.expand()
        yield plain(read_files(files, form))
    elif isinstance(source, SQLSource):
        yield plain(plain_types(_read_sql(source), source.describe()))
    elif isinstance(source, RayDatasetSource):
        yield from _blocks(source)
    elif isinstance(source, ServedSource):
        store = Store(settings.store)
        try:
            yield source.read(Lake(settings.lake), store)
        finally:
            store.close()


def _blocks(source: RayDatasetSource) -> Iterator[pd.DataFrame]:
    given = source.dataset
    dataset: Any = given if hasattr(given, "iter_batches") else given()
    if not hasattr(dataset, "iter_batches"):
        raise DataError(
            f"The function of a RayDatasetSource returned {type(dataset).__name__}: return a ray.data.Dataset."
        )
    context = dataset.context
    before, context.execution_options.preserve_order = context.execution_options.preserve_order, True
    try:
        for table in dataset.iter_batches(batch_size=_BATCH_ROWS, batch_format="pyarrow"):
            yield plain(plain_types(table, source.describe()))
    finally:
        context.execution_options.preserve_order = before


def _read_sql(source: SQLSource) -> pa.Table:
    """All parts, side by side as Ray tasks where there are several."""
    with planned(source) as (parts, snapshot):
        url, statement = source.address(), source.statement
        if len(parts) == 1:
            return read_range(url, statement, parts[0], None)
        # In a dictionary the URL, which may hold a password, is shown by no list of tasks.
        read: Any = ray.remote(num_cpus=0.5, max_retries=2)(_read_part)
        tasks = [
            read.remote({"url": url, "statement": statement, "part": part, "snapshot": snapshot}) for part in parts
        ]
        return pa.concat_tables([_whole(part) for part in ray.get(tasks)], promote_options="permissive")


def _read_part(what: dict[str, Any]) -> pa.Table | RaymlopsError:
    """One part; an error as a value, so that it arrives whole."""
    try:
        return read_range(what["url"], what["statement"], what["part"], what["snapshot"])
    except RaymlopsError as error:
        return error


def _whole(part: pa.Table | RaymlopsError) -> pa.Table:
    if isinstance(part, RaymlopsError):
        raise part
    return part


# --- through Spark ---------------------------------------------------------------------------------------


def _through_spark(source: Source, way: _Way) -> pd.DataFrame:
    way.say("starting Spark on Ray")
    jars = source.jars if isinstance(source, SQLSource) else ()
    size = bytes_of(source.expand()[0]) if isinstance(source, FileSource) else None
    spark_on_ray = SparkOnRay(way.settings, deadline_s=way.deadline_s, jars=jars, progress=way.say, data_bytes=size)
    with spark_on_ray as spark:
        return read_frame(spark_on_ray, spark, source, way.features, way.say, way.on_raw, way.hidden, way.on_plan)


def read_frame(
    spark_on_ray: SparkOnRay,
    spark: SparkSession,
    source: Source,
    features: FeatureFunction | None,
    say: Progress,
    on_raw: OnRaw | None = None,
    hidden: tuple[str, ...] = (),
    on_plan: OnPlan | None = None,
) -> pd.DataFrame:
    """The source with its features, in the source's order, through a Spark that runs; each step has its deadline."""
    say("reading with Spark")

    def read() -> tuple[DataFrame, Step | None]:
        frame = read_source(spark, source)
        check_columns(frame.columns, source)
        made, step = with_features(frame, source, features, on_raw, hidden)
        if on_plan is not None:
            on_plan(plan_of(made), frame.inputFiles())
        return made, step

    frame, step = spark_on_ray.step("reading the source", read)
    say("taking the partitions from Spark")
    tables = spark_on_ray.step("handing the rows over", lambda: list(hand_over(frame, spark_on_ray.folder(), step)))
    if not tables and step is not None:
        raise DataError(f"The source ({source.describe()}) has no rows.")
    return plain(*tables or [spark_on_ray.step("handing the rows over", lambda: empty_of(frame))])


def _finished(frame: pd.DataFrame, source: Source) -> pd.DataFrame:
    labelled = frame[frame[source.label].notna()] if source.label in frame.columns else frame
    if labelled.empty:
        where = source.describe()
        raise DataError(f"The source ({where}) gave {len(frame)} rows, none of them with a label {source.label!r}.")
    return order_by_time(labelled, source.time)
