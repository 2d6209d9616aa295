"""Columns of one number type as one column of a Spark frame, which Spark takes for bytes; see :mod:`raymlops.data.packed`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from raymlops.data.packed import Pack

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_KINDS = {"float": "float32", "double": "float64", "int": "int32", "bigint": "int64"}
_NUMBERS = ("float", "double", "int", "bigint", "smallint", "tinyint", "boolean")
_LEAST = 3


def as_floats(frame: DataFrame, others: Collection[str | None] = ()) -> DataFrame:
    """Numbers and booleans as float, but for some columns."""
    if _repeats(frame):
        return frame
    return frame.select(
        *(
            _column(name).cast("float").alias(name)
            if name not in others and (kind in _NUMBERS or kind.startswith("decimal"))
            else _column(name)
            for name, kind in frame.dtypes
        )
    )


def pack(frame: DataFrame, alone: Collection[str] = ()) -> tuple[DataFrame, tuple[Pack, ...]]:
    """The frame with three and more columns of one number type as one, which come first, and what was packed; but for some."""
    from pyspark.sql import functions as f

    by_kind: dict[str, list[str]] = {}
    for name, kind in frame.dtypes:
        if kind in _KINDS and name not in alone:
            by_kind.setdefault(kind, []).append(name)
    packs = tuple(
        Pack(name=f"packed {kind}", kind=_KINDS[kind], columns=tuple(names))
        for kind, names in by_kind.items()
        if len(names) >= _LEAST
    )
    if not packs or _repeats(frame):
        return frame, ()
    inside = {name for item in packs for name in item.columns}
    arrays = [f.array(*map(_column, item.columns)).alias(item.name) for item in packs]
    rest = [_column(name) for name in frame.columns if name not in inside]
    return _as_bytes(frame.select(*arrays, *rest), {item.name for item in packs}), packs


def _as_bytes(frame: DataFrame, names: Collection[str]) -> DataFrame:
    """The same rows under a schema that calls arrays bytes: a row of Spark's holds both as a place and a length."""
    from pyspark.sql import DataFrame
    from pyspark.sql.types import BinaryType, StructField, StructType

    fields = [StructField(x.name, BinaryType() if x.name in names else x.dataType, x.nullable) for x in frame.schema]
    session: Any = frame.sparkSession
    schema = session._jvm.org.apache.spark.sql.types.DataType.fromJson(StructType(fields).json())
    java: Any = frame._jdf
    rows = java.queryExecution().toRdd()
    return DataFrame(session._jsparkSession.internalCreateDataFrame(rows, schema, False), session)


def _column(name: str) -> Column:
    from pyspark.sql import functions as f

    return f.col("`" + name.replace("`", "``") + "`")


def _repeats(frame: DataFrame) -> bool:
    """Whether a name does not tell a column: Spark does not look at upper and lower case."""
    return len({name.lower() for name in frame.columns}) < len(frame.columns)
