"""What a features function was trained on: the columns a request must hold, before the function sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from raymlops.data.schema import Column, Kind, refuse, sentence_for, violates
from raymlops.errors import nearest

OnRaw = Callable[[tuple[Column, ...]], None]
_ENOUGH = 100


def learn_raw(frame: pd.DataFrame, leave_out: Iterable[str | None] = ()) -> tuple[Column, ...]:
    """Names and kinds of the columns, but for ``leave_out`` (label and time, which no request carries).

    Missing values are the function's business, so every column may have them. What is neither a number nor a boolean
    comes as text over HTTP: times too.
    """
    skipped = set(leave_out)
    return tuple(
        Column(name=str(name), kind=_kind(frame[name]), nullable=True, minimum=None, maximum=None)
        for name in frame.columns
        if name not in skipped
    )


def _kind(series: pd.Series) -> Kind:
    dtype = series.dtype
    if pd.api.types.is_object_dtype(dtype):
        dtype = series.dropna().infer_objects().dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    if pd.api.types.is_integer_dtype(dtype) and not series.isna().any():
        return "integer"
    return "number" if pd.api.types.is_numeric_dtype(dtype) else "category"


def check_raw(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows against the columns the function was trained on. A column may be left out: the function says if it needs it.

    Raises
    ------
    ContractViolation : an unknown column, a value of another kind
    """
    known = {column.name: column for column in columns}
    failures: list[str] = []
    for number, row in enumerate(rows):
        for name, value in islice(row.items(), _ENOUGH + len(known)):
            column = known.get(name)
            if column is None:
                failures.append(
                    f"column {str(name)[:60]!r}: not one the features are made of (row {number}).{nearest(str(name), known)}"
                )
            elif value is not None and violates(column, value):
                failures.append(sentence_for(column, value, number))
        if len(failures) >= _ENOUGH:
            break
    if failures:
        raise refuse(failures)


def frame_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the frame the function was trained on: columns in its order, with its types, whatever one row holds.

    A number that is null is NaN and not an object, so that a row alone computes as it does among others. Columns that no
    row has are left out; rows must have passed :func:`check_raw`.
    """
    there = [column for column in columns if any(column.name in row for row in rows)]
    return pd.DataFrame({column.name: _series(column, [row.get(column.name) for row in rows]) for column in there})


def _series(column: Column, values: list[Any]) -> pd.Series:
    if column.kind == "number" or (column.kind == "integer" and None in values):
        return pd.Series(values, dtype=np.float64)
    if column.kind == "integer" and all(type(value) is int for value in values):
        return pd.Series(values, dtype=np.int64)
    return pd.Series(values, dtype=bool if column.kind == "boolean" and None not in values else object)
