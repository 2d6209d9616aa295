"""How a source becomes a Spark frame, how features run in Spark, and how Arrow becomes plain pandas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from raymlops.data.features import FeatureFunction, apply_features
from raymlops.data.features_parity import parity
from raymlops.data.files import json_names, read_url, separator_of
from raymlops.data.raw import OnRaw, learn_raw
from raymlops.data.sources import FileSource, Format, Source, SparkSource
from raymlops.data.sql import SQLSource
from raymlops.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

Step = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
_SAMPLE_ROWS = 1000


def read_source(spark: SparkSession, source: Source) -> DataFrame:
    """The source as a Spark frame.

    Raises
    ------
    DataError : nothing to read, or ``prepare`` did not return a Spark frame
    """
    from pyspark.sql import DataFrame

    if isinstance(source, SparkSource):
        frame = source.prepare(spark)
        if not isinstance(frame, DataFrame):
            raise DataError(f"prepare returned {type(frame).__name__}: it must return a Spark DataFrame.")
        return frame
    if isinstance(source, FileSource):
        files, form, local = source.expand()
        if not local:
            return _read_remote(spark, list(files), form)
        return _read_local(spark, list(files), form)
    if isinstance(source, SQLSource):
        return _read_jdbc(spark, source)
    raise ConfigError(f"{type(source).__name__} is not a source that Spark can read: use FileSource or SparkSource.")


def _read_local(spark: SparkSession, files: list[str], form: Format) -> DataFrame:
    paths = [_escaped(path) for path in files]
    if form == "parquet":
        if _has_nanoseconds(files[0]):  # what pandas writes; Spark's own reader refuses them
            return _read_remote(spark, files, form)
        return spark.read.parquet(*paths)
    if form == "orc":
        return spark.read.orc(paths)
    if form == "json":
        frame = spark.read.json(paths, mode="FAILFAST")
        first = [name for name in json_names(files[0]) if name in frame.columns]
        names = [*first, *(name for name in frame.columns if name not in first)]
        return frame.select(*(f"`{name}`" for name in names))
    return _read_csv(spark, paths, separator_of(files[0]))


def _has_nanoseconds(path: str) -> bool:
    import pyarrow.parquet as arrow_parquet

    try:
        schema = arrow_parquet.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    return any(pa.types.is_timestamp(kind) and kind.unit == "ns" for kind in schema.types)


def _read_jdbc(spark: SparkSession, source: SQLSource) -> DataFrame:
    """Through the driver on Spark's class path, in ranges of the partition column."""
    options = {"url": source.address(), "dbtable": source.statement}
    if source.driver is not None:
        options["driver"] = source.driver
    if source.partition is not None and source.partitions > 1:
        jvm: Any = spark._jvm
        dialect = jvm.org.apache.spark.sql.jdbc.JdbcDialects.get(options["url"])
        column = dialect.quoteIdentifier(source.partition)
        ends = f"(SELECT min({column}) AS low, max({column}) AS high FROM {source.statement}) AS ends"
        low, high = spark.read.format("jdbc").options(**{**options, "dbtable": ends}).load().collect()[0]
        if low is not None:
            options |= {"partitionColumn": source.partition, "numPartitions": str(source.partitions)}
            options |= {"lowerBound": str(low), "upperBound": str(high)}
    return spark.read.format("jdbc").options(**options).load()


def _escaped(path: str) -> str:
    """Spark takes a path as a glob; these are names of files."""
    return "file://" + "".join(f"\\{c}" if c in "*?[]{}\\" else c for c in path)


def _read_csv(spark: SparkSession, paths: list[str], separator: str) -> DataFrame:
    from pyspark.sql import functions as f

    frame = spark.read.csv(
        paths,
        header=True,
        inferSchema=True,
        sep=separator,
        escape='"',
        ignoreLeadingWhiteSpace=True,
        ignoreTrailingWhiteSpace=True,
        mode="FAILFAST",
    )
    # Spark reads an empty field as null but a quoted empty one as "": both are missing.
    text = [name for name, kind in frame.dtypes if kind == "string"]
    return (
        frame.withColumns({name: f.when(f.col(f"`{name}`") != "", f.col(f"`{name}`")) for name in text})
        if text
        else frame
    )


def _read_remote(spark: SparkSession, urls: list[str], form: Format) -> DataFrame:
    """Files that fsspec can reach: each is read by a Spark task of its own, with the types of the first."""
    separator = separator_of(urls[0]) if form == "csv" else ""
    schema = read_url(urls[0], form, separator=separator).schema
    # Large strings and the like have no Spark counterpart; the frame's schema decides and each table is cast to it.
    listed = spark.createDataFrame([(url,) for url in urls], "url string").repartitionByRange(len(urls), "url")

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from raymlops.data.files import read_url

        for batch in batches:
            for url in batch.column("url").to_pylist():
                yield from read_url(url, form, schema, separator).to_batches(max_chunksize=10_000)

    return listed.mapInArrow(read, _spark_schema(schema))


def _spark_schema(schema: pa.Schema) -> StructType:
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(schema, prefer_timestamp_ntz=True)


# --- features in Spark -----------------------------------------------------------------------------------


def with_features(
    frame: DataFrame,
    source: Source,
    features: FeatureFunction | None,
    on_raw: OnRaw | None = None,
    hidden: tuple[str, ...] = (),
) -> tuple[DataFrame, Step | None]:
    """``frame`` without the dropped columns, and what makes the features of its rows, when there is a function for it.

    The rows cross from the JVM once: who writes them down makes the features (``step`` of
    :func:`raymlops.data.ray_handoff.hand_over`). The function travels by value, so workers need not be able to import the user's module. Types are found on the first
    thousand rows, on which parity is checked too; ``on_raw`` is told what the function is made of. ``hidden`` are dropped
    columns that stay, unseen by the function.
    """
    frame = _plain_types(frame.drop(*(name for name in source.drop if name not in hidden)))
    if features is None:
        return frame, None
    keep = (source.label, source.time, *hidden)
    sample, made = spark_features(frame, keep, features, _SAMPLE_ROWS)
    if sample.empty:
        raise DataError(f"The source ({source.describe()}) has no rows.")
    kept = [name for name in keep if name]
    parity(features, sample.drop(columns=kept), made_in_spark=made.drop(columns=kept))
    if on_raw is not None:
        on_raw(learn_raw(sample, keep))
    schema = _types_of(frame, sample, apply_features(features, sample, keep))
    return frame, _in_arrow(frame, _by_batch(features, keep, schema), schema)


def spark_features(
    frame: DataFrame, keep: tuple[str | None, ...], features: FeatureFunction, rows: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """At most ``rows`` rows of a frame as pandas, and what Spark makes of the same rows in the same order.

    Raises
    ------
    DataError : the function fails on them
    """
    frame = _plain_types(frame)
    limited = frame.limit(rows).persist()  # collected twice: both must be the same rows
    try:
        sample = _collected(limited)
        if sample.empty:
            return sample, sample
        schema = _types_of(frame, sample, apply_features(features, sample, keep))
        return sample, _collected(limited.mapInPandas(_by_batch(features, keep, schema), schema))
    finally:
        limited.unpersist()


def _collected(frame: DataFrame) -> pd.DataFrame:
    return plain(pa.Table.from_batches(frame._collect_as_arrow(), _arrow_schema(frame)))


def _by_batch(
    features: FeatureFunction, keep: tuple[str | None, ...], schema: StructType
) -> Callable[[Iterable[Any]], Iterator[pd.DataFrame]]:
    """The function as Spark calls it, with the code of its module inside."""
    by_value = pickled_by_value(features)
    names = list(schema.names)

    def run(batches: Iterable[Any]) -> Iterator[pd.DataFrame]:
        import cloudpickle

        from raymlops.data.features import apply_features

        function = cloudpickle.loads(by_value)
        for batch in batches:
            yield apply_features(function, batch, keep)[names]

    return run


def _in_arrow(frame: DataFrame, run: Callable[[Iterable[Any]], Iterator[pd.DataFrame]], schema: StructType) -> Step:
    """What ``mapInPandas`` makes of a frame's rows, from Arrow and to Arrow, by the code it has for that."""
    from pyspark.sql.pandas.types import to_arrow_schema

    conf = frame.sparkSession.conf
    zone = conf.get("spark.sql.session.timeZone")
    safe = str(conf.get("spark.sql.execution.pandas.convertToArrowArraySafely", "false")).lower() == "true"
    kind = pa.struct(list(to_arrow_schema(schema)))

    def step(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark.sql.pandas.serializers import ArrowStreamPandasUDFSerializer

        spark: Any = ArrowStreamPandasUDFSerializer(zone, safe, True, df_for_struct=True)
        for made in run(spark.arrow_to_pandas(batch.to_struct_array()) for batch in batches):
            yield pa.RecordBatch.from_struct_array(spark._create_batch((made, kind)).column(0))

    return step


def pickled_by_value(function: Callable[..., Any]) -> bytes:
    """``function`` with the code of its own module, so that it loads where that module cannot be imported."""
    import cloudpickle

    module = sys.modules.get(getattr(function, "__module__", "") or "")
    if (
        module is None
        or module.__name__ == "__main__"
        or module.__name__ in cloudpickle.list_registry_pickle_by_value()
    ):
        return bytes(cloudpickle.dumps(function))
    cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(function))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _plain_types(frame: DataFrame) -> DataFrame:
    """Decimals as doubles: models take no others, and pandas would hold them as objects."""
    from pyspark.sql import functions as f
    from pyspark.sql.types import DecimalType

    decimals = [field.name for field in frame.schema.fields if isinstance(field.dataType, DecimalType)]
    return frame.withColumns({name: f.col(f"`{name}`").cast("double") for name in decimals}) if decimals else frame


def _arrow_schema(frame: DataFrame) -> pa.Schema:
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(frame.schema)


def _types_of(frame: DataFrame, given: pd.DataFrame, made: pd.DataFrame) -> StructType:
    """A column that came through with its type keeps Spark's; a new one is a double, a boolean, a time or text."""
    from pyspark.sql.types import StructField, StructType

    known = {field.name: field.dataType for field in frame.schema.fields}
    fields = []
    for name in made.columns:
        through = name in known and made[name].dtype == given[name].dtype
        fields.append(StructField(str(name), known[name] if through else _type_of(made[name])))
    return StructType(fields)


def _type_of(series: pd.Series) -> DataType:
    from pyspark.sql.types import BooleanType, DoubleType, StringType, TimestampNTZType

    if pd.api.types.is_bool_dtype(series):
        return BooleanType()
    if pd.api.types.is_numeric_dtype(series):
        return DoubleType()
    return TimestampNTZType() if pd.api.types.is_datetime64_any_dtype(series) else StringType()


def plan_of(frame: DataFrame) -> str:
    """Spark's plans of a frame: parsed, analysed, optimised, physical."""
    jvm_frame: Any = frame._jdf
    return str(jvm_frame.queryExecution().toString())


# --- Arrow to pandas ---------------------------------------------------------------------------------------


def plain(*tables: pa.Table) -> pd.DataFrame:
    """Arrow tables of the same columns as one pandas frame: times naive in UTC, dates as times, decimals as floats, whole numbers
    as 64-bit ones, codes as the texts they stand for."""
    return pa.concat_tables([table.cast(_plain_schema(table.schema)) for table in tables]).to_pandas()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    fields = []
    for field in schema:
        kind = field.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            kind = pa.timestamp("us")
        elif pa.types.is_decimal(kind):
            kind = pa.float64()
        elif pa.types.is_integer(kind):
            kind = pa.int64()
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def empty_of(frame: DataFrame) -> pa.Table:
    """The columns of a Spark frame, without rows."""
    return _arrow_schema(frame).empty_table()


def arrange(frame: pd.DataFrame, source: Source, hidden: tuple[str, ...] = ()) -> pd.DataFrame:
    """A frame as Spark would hand it over: checked for its columns, without the dropped ones, text names."""
    frame = frame.rename(columns=str)
    return frame.drop(columns=[name for name in source.drop if name not in hidden])
