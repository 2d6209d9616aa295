"""What a snapshot teaches a contract: the kind, range and categories of each column, the task and the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from raymlops.data.schema_column import FLOAT32_MAX, Class, Column, Kind, Task, show
from raymlops.errors import DataError, nearest

_MAX_CATEGORIES = 1000
_MAX_CLASSES = 20


def infer_task(series: pd.Series) -> Task:
    """What kind of question the label asks.

    Two distinct values are binary; text, booleans and integers with at most twenty are multiclass; the rest is
    regression.

    Raises
    ------
    DataError : text with more distinct values than classes make sense for
    """
    values = series.dropna()
    distinct = len(_distinct(values))
    if distinct == 2:
        return "binary"
    countable = pd.api.types.is_bool_dtype(values) or pd.api.types.is_integer_dtype(values)
    textual = not countable and not pd.api.types.is_numeric_dtype(values)
    if (countable or textual) and distinct <= _MAX_CLASSES:
        return "multiclass"
    if textual:
        raise DataError(
            f"The label {series.name!r} holds {distinct} distinct texts: too many for classes "
            f"(at most {_MAX_CLASSES}), and text cannot be regressed. Group the classes, or give a numeric label."
        )
    return "regression"


def learn_columns(
    frame: pd.DataFrame,
    label: str,
    task: Task | None = None,
    drop: Iterable[str] = (),
    stated: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[tuple[Column, ...], Task, tuple[Class, ...]]:
    """The columns that ``frame`` keeps but for the label and ``drop``, the task and the classes.

    ``stated`` holds attributes of columns that are not learned but taken as they are, by column; a column whose kind is
    stated is not searched for one.

    Raises
    ------
    DataError : as :func:`raymlops.data.schema.learn_contract` says
    """
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if repeated:
        raise DataError(f"Columns {', '.join(map(repr, repeated))} appear more than once: rename or drop them.")
    if label not in frame.columns:
        raise DataError(f"The data has no label column {label!r}.{nearest(label, map(str, frame.columns))}")
    left_out = {label, *drop}
    said = stated or {}
    columns = tuple(
        _column(str(name), frame[name], said.get(str(name), {})) for name in frame.columns if name not in left_out
    )
    if not columns:
        raise DataError(
            f"The data has no column besides {', '.join(sorted(left_out))}: there is nothing to learn from."
        )
    task = task or infer_task(frame[label])
    return columns, task, () if task == "regression" else _classes(frame[label])


def _column(name: str, series: pd.Series, stated: Mapping[str, Any]) -> Column:
    if "kind" not in stated:
        return replace(_learn_column(name, series), **stated)
    kind = stated["kind"]
    given: dict[str, Any] = {"minimum": None, "maximum": None, "nullable": bool(series.isna().any())}
    if kind in ("number", "integer") and pd.api.types.is_numeric_dtype(series.dtype):
        seen = _learn_number(name, series, kind)
        given |= {"minimum": seen.minimum, "maximum": seen.maximum, "nullable": seen.nullable}
    elif kind == "boolean":
        given |= {"minimum": 0.0, "maximum": 1.0}
    elif kind == "category" and "categories" not in stated:
        given["categories"] = _learn_column(name, series).categories
    return Column(name=name, **{**given, **stated})


def _learn_column(name: str, series: pd.Series) -> Column:
    present = series.dropna()
    dtype = series.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return Column(name=name, kind="boolean", nullable=len(present) < len(series), minimum=0.0, maximum=1.0)
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return _learn_number(name, series, "integer" if pd.api.types.is_integer_dtype(dtype) else "number")
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        raise DataError(
            f"Column {name!r} holds times ({dtype}), which models do not take: make numbers of it in features= "
            "(hour of day, days since …), name it as time=, or drop it."
        )
    distinct = _distinct(present) if _hashable(present) else []
    kinds = {_kind_of(value) for value in distinct} if distinct or present.empty else {"object"}
    nullable = len(present) < len(series)
    if kinds <= {"text"}:  # a column of nulls only is an empty category, which the assessment then reports
        categories = sorted(str(value) for value in distinct)
        if len(categories) > _MAX_CATEGORIES:
            raise DataError(
                f"Column {name!r} holds {len(categories)} distinct texts (at most {_MAX_CATEGORIES}): it looks like "
                "free text or an identifier. Drop it, or group its values in features=."
            )
        return Column(
            name=name, kind="category", nullable=nullable, minimum=None, maximum=None, categories=tuple(categories)
        )
    if kinds == {"boolean"}:
        return Column(name=name, kind="boolean", nullable=nullable, minimum=0.0, maximum=1.0)
    if kinds == {"number"}:
        whole = all(isinstance(value, (int, np.integer)) for value in present)
        return _learn_number(name, pd.to_numeric(series), "integer" if whole else "number")
    raise DataError(
        f"Column {name!r} mixes or holds values no model takes ({', '.join(sorted(kinds))}; for example "
        f"{show(present.iloc[0])}): make it numbers, booleans or text in features=, or drop it."
    )


def _learn_number(name: str, series: pd.Series, kind: Kind) -> Column:
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    usable = values[np.abs(values) <= FLOAT32_MAX]
    lowest, highest = (float(usable.min()), float(usable.max())) if len(usable) else (None, None)
    return Column(name=name, kind=kind, nullable=len(usable) < len(values), minimum=lowest, maximum=highest)


def _classes(series: pd.Series) -> tuple[Class, ...]:
    values = [value.item() if isinstance(value, np.generic) else value for value in _distinct(series.dropna())]
    if all(isinstance(value, float) and value.is_integer() for value in values):
        values = [int(value) for value in values]  # integers that a missing label once turned into floats
    kinds = {_kind_of(value) for value in values}
    if len(kinds) > 1 or not kinds <= {"text", "number", "boolean"}:
        raise DataError(
            f"The label {series.name!r} holds values of several kinds ({', '.join(sorted(kinds))}): give one kind."
        )
    return tuple(sorted(values))


def _distinct(series: pd.Series) -> list[Any]:
    """The values of a series without its repetitions. ``Series.unique`` takes texts for equal that differ only behind a
    NUL character."""
    if pd.api.types.is_numeric_dtype(series.dtype):
        return list(series.unique())
    return list(dict.fromkeys(series.tolist()))


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    return "number" if isinstance(value, (int, float, np.integer, np.floating)) else type(value).__name__


def _hashable(series: pd.Series) -> bool:
    return not any(isinstance(value, (list, dict, set, np.ndarray)) for value in series.head(1000))
