"""Point-in-time joins: for each row what was known at its time, and nothing that came later. One meaning in Spark and pandas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from raymlops.clock import seconds
from raymlops.errors import DataError, nearest

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

Frame = TypeVar("Frame", pd.DataFrame, "DataFrame")

_TIME, _SIDE, _LEFT, _RIGHT, _FOUND, _ROW = "__time", "__side", "__left", "__right", "__found", "__row"
_AT = "__at"


def as_of(
    left: Frame,
    right: Frame,
    *,
    by: str | Sequence[str],
    time: str,
    right_time: str | None = None,
    tolerance: float | str | None = None,
    strict: bool = False,
    prefix: str = "",
    matched: str | None = None,
) -> Frame:
    """Each row of ``left`` with the columns of the latest row of ``right`` that has its key and is not later than it.

    Both are pandas or both are Spark frames; every left row is kept, once, with nulls where nothing was known. In Spark
    the two are laid one under the other, sorted once within each key, and the last right row is carried on: no row is
    paired with all earlier ones. A key's rows are sorted in one task; its right rows are not multiplied.

    Parameters
    ----------
    by : the key, one or more columns that both have. A row with a null in it, or in its time, matches nothing
    time, right_time : columns of one type, times or numbers; the same name when only one is given
    tolerance : what is known longer than this is too old: seconds or ``"7d"``; in the column's own units for numbers
    strict : only what is earlier, not what has the same time
    prefix : put before the names of the right columns
    matched : name of a column with the time of the right row that was taken

    Of several right rows with one key and time the greatest is taken, column by column in their order.

    Raises
    ------
    DataError : a column that is not there, a name that both have, times of different types
    """
    plan = _Join.of(left, right, by, time, right_time or time, tolerance, strict, prefix, matched)
    if isinstance(left, pd.DataFrame):
        return _pandas(left, right, plan)
    return _spark(left, right, plan)


@dataclass(frozen=True, slots=True)
class _Join:
    """What is asked for, checked; ``names``: of each right column that is brought, the name it gets."""

    keys: list[str]
    time: str
    right_time: str
    names: dict[str, str]
    within: float | None
    strict: bool
    matched: str | None

    @classmethod
    def of(
        cls,
        left: Any,
        right: Any,
        by: str | Sequence[str],
        time: str,
        right_time: str,
        tolerance: float | str | None,
        strict: bool,
        prefix: str,
        matched: str | None,
    ) -> _Join:
        keys = [by] if isinstance(by, str) else list(by)
        brought = [name for name in map(str, right.columns) if name not in (*keys, right_time)]
        names = {name: prefix + name for name in brought}
        _check(list(map(str, left.columns)), list(map(str, right.columns)), keys, time, right_time, names, matched)
        within = None if tolerance is None else seconds(tolerance, "tolerance")
        return cls(keys, time, right_time, names, within, strict, matched)

    @property
    def added(self) -> list[str]:
        """The new columns' names, in order."""
        return [*self.names.values(), *([self.matched] if self.matched else [])]


def _check(
    left: list[str],
    right: list[str],
    keys: list[str],
    time: str,
    right_time: str,
    names: dict[str, str],
    matched: str | None,
) -> None:
    if not keys:
        raise DataError("as_of needs a key, by=: without one every row would be compared in one task.")
    for side, columns, wanted in (("left", left, [*keys, time]), ("right", right, [*keys, right_time])):
        for name in wanted:
            if name not in columns:
                raise DataError(f"The {side} frame has no column {name!r}.{nearest(name, columns)}")
    made = [*names.values(), *([matched] if matched else [])]
    both = sorted(name for name in {*made} if name in left or made.count(name) > 1)
    if both:
        raise DataError(
            f"Columns {', '.join(map(repr, both))} would be there twice: give prefix= for the right frame's, or drop them."
        )


def _pandas(left: pd.DataFrame, right: pd.DataFrame, plan: _Join) -> pd.DataFrame:
    keys, time, right_time, names, within = plan.keys, plan.time, plan.right_time, plan.names, plan.within
    if left[time].dtype.kind != right[right_time].dtype.kind and not {
        left[time].dtype.kind,
        right[right_time].dtype.kind,
    } <= set("iuf"):
        raise _types(time, str(left[time].dtype), right_time, str(right[right_time].dtype))
    dated = left[time].dtype.kind == "M"
    known = right.dropna(subset=[*keys, right_time])
    known = known.sort_values([right_time, *names], kind="stable", na_position="first")
    known = known.rename(columns=names).rename(columns={right_time: _AT})
    known[_AT] = known[_AT].astype(left[time].dtype if dated else np.float64)
    rows = left.assign(**{_ROW: np.arange(len(left))})
    usable = rows[[*keys, time]].notna().all(axis=1)
    asked = rows[usable].assign(**{_TIME: rows.loc[usable, time].astype(known[_AT].dtype)})
    asked = asked.sort_values(_TIME, kind="stable")
    tolerance = None if within is None else pd.Timedelta(seconds=within) if dated else within
    found = pd.merge_asof(
        asked,
        known,
        left_on=_TIME,
        right_on=_AT,
        by=keys,
        tolerance=tolerance,
        allow_exact_matches=not plan.strict,
    )
    joined = pd.concat([found, rows[~usable]], ignore_index=True).sort_values(_ROW, ignore_index=True)
    if plan.matched:
        joined[plan.matched] = joined[_AT]
    return joined[[*left.columns, *plan.added]].set_index(left.index)


def _spark(left: DataFrame, right: DataFrame, plan: _Join) -> DataFrame:
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    time, right_time, names = plan.time, plan.right_time, plan.names
    left_type, right_type = left.schema[time].dataType, right.schema[right_time].dataType
    if left_type != right_type:
        raise _types(time, left_type.simpleString(), right_time, right_type.simpleString())
    key = [f"__key{index}" for index in range(len(plan.keys))]

    def laid(frame: DataFrame, at: str, side: int) -> list[Column]:
        named = [_of(name).alias(new) for name, new in zip(plan.keys, key, strict=True)]
        return [*named, _of(at).alias(_TIME), f.lit(side).alias(_SIDE)]

    own = f.struct(*(_of(name) for name in left.columns)).alias(_LEFT)
    told = f.struct(_of(right_time).alias(_AT), *(_of(name).alias(new) for name, new in names.items())).alias(_RIGHT)
    known = right.dropna(subset=[*(f"`{name}`" for name in plan.keys), f"`{right_time}`"])
    # At one time a right row comes first, so that the left one sees it; when it must not, last.
    asks, tells = (0, 1) if plan.strict else (1, 0)
    both = left.select(*laid(left, time, asks), own).unionByName(
        known.select(*laid(known, right_time, tells), told), allowMissingColumns=True
    )
    window = Window.partitionBy(*key).orderBy(_TIME, _SIDE, _RIGHT).rowsBetween(Window.unboundedPreceding, 0)
    found = both.withColumn(_FOUND, f.last(_RIGHT, ignorenulls=True).over(window)).where(f.col(_SIDE) == asks)
    if plan.within is not None:
        fresh = f.col(_TIME) <= _later(f.col(f"{_FOUND}.{_AT}"), plan.within, left_type.typeName())
        found = found.withColumn(_FOUND, f.when(fresh, f.col(_FOUND)))
    brought = [f.col(_FOUND)[new].alias(new) for new in names.values()]
    at = [f.col(_FOUND)[_AT].alias(plan.matched)] if plan.matched else []
    return found.select(*(f.col(_LEFT)[name].alias(name) for name in left.columns), *brought, *at)


def _of(name: str) -> Column:
    from pyspark.sql import functions as f

    return f.col(f"`{name}`")


def _later(at: Column, within: float, kind: str) -> Column:
    from pyspark.sql import functions as f

    if kind in ("timestamp", "timestamp_ntz", "date"):
        return at + f.make_dt_interval(secs=f.lit(within))
    return at + f.lit(within)


def _types(time: str, left: str, right_time: str, right: str) -> DataError:
    return DataError(
        f"The left frame's time {time!r} is of type {left}, the right one's {right_time!r} of type {right}: cast one of them."
    )
