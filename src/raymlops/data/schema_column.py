"""One input of the model: its kind, what it may hold, its code, and the sentence that refuses a value."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.errors import ContractViolation, nearest

Task = Literal["binary", "multiclass", "regression"]
Kind = Literal["number", "integer", "boolean", "category"]
Class = str | int | float | bool

MAX_FAILURES = 10
ENOUGH = 100
FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_WHOLE = 2**53  # from here on a double no longer tells neighbouring whole numbers apart
# A whole number for a column of fractions must be one that a double holds.
_MAX_INT = {"number": MAX_WHOLE, "integer": 2**63 - 1}
NAN = float("nan")
_WORDS = {"number": "number", "integer": "integer", "boolean": "boolean", "category": "category (text)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One input of the model.

    Attributes
    ----------
    nullable : missing values were seen when the contract was learned. NaN and infinities count as missing
    minimum, maximum : range seen, ``None`` for categories and for a column without values; nothing is refused by them
    categories : sorted values of a category
    low, high : what a number may be at least and at most; a contract that was learned sets none
    closed : a text that is none of ``categories`` is refused; otherwise it counts as missing
    """

    name: str
    kind: Kind
    nullable: bool
    minimum: float | None
    maximum: float | None
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    closed: bool = False

    @property
    def bounded(self) -> bool:
        return self.closed or self.low is not None or self.high is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        names = ("name", "kind", "nullable", "minimum", "maximum", "low", "high", "closed")
        return {name: getattr(self, name) for name in names} | {"categories": list(self.categories)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Column:
        return cls(**{**data, "categories": tuple(data["categories"])})


def rule_kind(column: Column) -> str:
    """What a column is to a rule: ``number``, ``boolean`` or ``text``."""
    return {"integer": "number", "category": "text"}.get(column.kind, column.kind)


# --- encoding one column, one value --------------------------------------------------------------------


def encode_series(column: Column, series: pd.Series, out: npt.NDArray[np.float32]) -> str | None:
    """Fill ``out``; the description of the first failure, if any."""
    bad = series_codes(column, series, out)
    if not bad.any():
        return None
    row = int(np.flatnonzero(bad)[0])
    return sentence_for(column, series.iloc[row], row)


def series_codes(column: Column, series: pd.Series, out: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Fill ``out`` with the codes of a column; true where its type, or a null, is refused, ``(n_rows,)``."""
    dtype = series.dtype
    numeric = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
    if column.kind in ("number", "integer") and numeric:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        missing = ~(np.abs(values) <= FLOAT32_MAX)
        bad = missing & (not column.nullable)
        if column.kind == "integer":
            bad |= ~missing & (values != np.floor(values))
        out[:] = np.where(missing, np.nan, values)
    elif column.kind == "boolean" and dtype == np.bool_:
        out[:] = series.to_numpy()
        bad = np.zeros(len(series), dtype=bool)
    elif column.kind == "category" and not numeric and not pd.api.types.is_bool_dtype(dtype):
        objects = series.astype(object)
        missing = objects.isna().to_numpy()
        out[:] = objects.map({value: float(code) for code, value in enumerate(column.categories)}).to_numpy(
            dtype=np.float64
        )
        text = np.fromiter((isinstance(value, str) for value in objects), dtype=bool, count=len(objects))
        bad = (missing & (not column.nullable)) | (~missing & ~text)
    else:
        codes = [encode_value(column, value) for value in series.astype(object)]
        bad = np.array([code is None for code in codes], dtype=bool)
        out[:] = [NAN if code is None else code for code in codes]
    return bad


def encode_value(column: Column, value: Any) -> float | None:
    """The code of one value, or ``None`` when the contract refuses it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return NAN if column.nullable else None
    if column.kind == "category":
        return (
            float(column.categories.index(value))
            if value in column.categories
            else NAN
            if isinstance(value, str)
            else None
        )
    if isinstance(value, bool):
        return float(value) if column.kind == "boolean" else None
    if column.kind == "boolean" or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) > _MAX_INT[column.kind]:
        return None
    if abs(value) > FLOAT32_MAX:
        return NAN if column.nullable else None
    if column.kind == "integer" and value != int(value):
        return None
    return float(value)


# --- sentences -----------------------------------------------------------------------------------------


def show(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    # Of a large value only the beginning is made into text.
    text = "null" if value is None else reprlib.repr(value) if isinstance(value, (list, dict)) else repr(value)[:200]
    return text if len(text) <= 60 else text[:57] + "…"


def is_out_of_range(column: Column, value: Any) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and column.kind in ("number", "integer")
    limit = _MAX_INT.get(column.kind, 0) if isinstance(value, int) else FLOAT32_MAX
    return numeric and abs(value) > limit


def sentence_for(column: Column, value: Any, row: int) -> str:
    """What was expected of a value and what came."""
    if is_out_of_range(column, value):
        most = _MAX_INT[column.kind] if isinstance(value, int) else FLOAT32_MAX
        return (
            f"column {column.name!r}: expected {_WORDS[column.kind]} within ±{most:.4g}, got {show(value)} (row {row})"
        )
    return f"column {column.name!r}: expected {_WORDS[column.kind]}, got {show(value)} (row {row})"


def violates(column: Column, value: Any) -> bool:
    """Whether the contract refuses one value of a column."""
    return encode_value(column, value) is None


def missing_column(name: str, given: Iterable[Any]) -> str:
    others = [str(column) for column in given]
    hint = nearest(name, others) if others else ""
    return f"column {name!r}: missing{'.' + hint if ' Did you mean' in hint else ''}"


def refuse(failures: list[str], kind: type[ContractViolation] = ContractViolation) -> ContractViolation:
    """The error to raise for rows: ten of the failures as text, all of them counted."""
    shown = failures[:MAX_FAILURES]
    least = "at least " if len(failures) >= ENOUGH else ""
    more = f"; and {least}{len(failures) - len(shown)} more" if len(failures) > len(shown) else ""
    return kind(f"The rows break the data contract: {'; '.join(shown)}{more}", {"failures": shown})
