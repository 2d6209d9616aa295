"""What a features function was trained on: the columns a request must hold, before the function sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import pandas as pd

from raymlops.data.schema import Column, Kind, refuse, sentence_for, violates
from raymlops.errors import nearest

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
