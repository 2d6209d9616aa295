"""Columns of one number type as one column of a Spark frame, which Spark takes for bytes; see :mod:`raymlops.data.packed`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from raymlops.data.packed import Pack
from raymlops.data.row_bytes import KINDS, RowBytes

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
    packs = _packs_of(frame, alone)
    if not packs or _repeats(frame):
        return frame, ()
    made, _ = _packed(frame, packs)
    names = {item.name for item in packs}
    return _under(made, lambda x: "binary" if x in names else None), packs


def as_bytes_of_rows(frame: DataFrame, alone: Collection[str] = ()) -> tuple[DataFrame, RowBytes] | None:
    """The frame with whole rows as one column of text, which holds their bytes, but for some columns packed as by :func:`pack`;
    ``None`` where a type has no such form."""
    from pyspark.sql import functions as f

    if _repeats(frame) or not all(kind in KINDS for _, kind in frame.dtypes) or not frame.columns:
        return None
    packs = _packs_of(frame, alone)
    made, rest = _packed(frame, packs)
    kinds = dict(frame.dtypes)
    row = f.struct(*(_column(name).alias(f"c{index}") for index, name in enumerate(made.columns))).alias("row")
    # What a row's texts hold nobody knows before; a word of 16 letters by chance is not among it.
    ends_with = secrets.token_hex(8) if "string" in kinds.values() else "\n"
    form = RowBytes(packs=packs, singles=tuple((name, kinds[name]) for name in rest), ends_with=ends_with)
    return _under(made.select(row), lambda _: "string"), form


def _packs_of(frame: DataFrame, alone: Collection[str]) -> tuple[Pack, ...]:
    by_kind: dict[str, list[str]] = {}
    for name, kind in frame.dtypes:
        if kind in _KINDS and name not in alone:
            by_kind.setdefault(kind, []).append(name)
    return tuple(
        Pack(name=f"packed {kind}", kind=_KINDS[kind], columns=tuple(names))
        for kind, names in by_kind.items()
        if len(names) >= _LEAST
    )


def _packed(frame: DataFrame, packs: Sequence[Pack]) -> tuple[DataFrame, list[str]]:
    """The frame with its arrays first, and the names of the columns that are in none."""
    from pyspark.sql import functions as f

    inside = {name for item in packs for name in item.columns}
    rest = [name for name in frame.columns if name not in inside]
    arrays = [f.array(*map(_column, item.columns)).alias(item.name) for item in packs]
    return frame.select(*arrays, *map(_column, rest)), rest


def _under(frame: DataFrame, other: Callable[[str], str | None]) -> DataFrame:
    """The same rows under a schema that calls arrays and structures bytes or text: a row of Spark's holds all as a place and a length."""
    from pyspark.sql import DataFrame

    session: Any = frame.sparkSession
    told = json.loads(frame.schema.json())
    for field in told["fields"]:
        field["type"] = other(field["name"]) or field["type"]
    schema = session._jvm.org.apache.spark.sql.types.DataType.fromJson(json.dumps(told))
    java: Any = frame._jdf
    rows = java.queryExecution().toRdd()
    return DataFrame(session._jsparkSession.internalCreateDataFrame(rows, schema, False), session)


def _column(name: str) -> Column:
    from pyspark.sql import functions as f

    return f.col("`" + name.replace("`", "``") + "`")


def _repeats(frame: DataFrame) -> bool:
    """Whether a name does not tell a column: Spark does not look at upper and lower case."""
    return len({name.lower() for name in frame.columns}) < len(frame.columns)
