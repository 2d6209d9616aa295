"""The data contract: which columns the model takes, of which kind and range; checks frames and requests against it."""

from __future__ import annotations

import itertools
import math
import operator
import reprlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.data.rows import FlatRows
from raymlops.errors import ContractViolation, DataError, OutOfRange, nearest

Task = Literal["binary", "multiclass", "regression"]
Kind = Literal["number", "integer", "boolean", "category"]
Class = str | int | float | bool

_MAX_FAILURES = 10
_ENOUGH = 100
_MAX_CATEGORIES = 1000
_MAX_CLASSES = 20
_FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_WHOLE = 2**53  # from here on a double no longer tells neighbouring whole numbers apart
# A whole number for a column of fractions must be one that a double holds.
_MAX_INT = {"number": MAX_WHOLE, "integer": 2**63 - 1}
_NAN = float("nan")
# The exact types a JSON parser hands over for each kind; anything else takes the slower, explaining path.
_FAST_TYPES: dict[str, frozenset[type]] = {
    "number": frozenset((float, int)),
    "integer": frozenset((int,)),
    "boolean": frozenset((bool,)),
    "category": frozenset((str,)),
}
_WORDS = {"number": "number", "integer": "integer", "boolean": "boolean", "category": "category (text)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One input of the model.

    Attributes
    ----------
    nullable : missing values were seen when the contract was learned. NaN and infinities count as missing
    minimum, maximum : range seen, ``None`` for categories and for a column without values
    categories : sorted values of a category
    """

    name: str
    kind: Kind
    nullable: bool
    minimum: float | None
    maximum: float | None
    categories: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        plain = {name: getattr(self, name) for name in ("name", "kind", "nullable", "minimum", "maximum")}
        return plain | {"categories": list(self.categories)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Column:
        return cls(**{**data, "categories": tuple(data["categories"])})


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Rows as they were sent: ``values`` float64 ``(n_rows, n_features)``, NaN for null. No column is a category."""

    columns: tuple[Column, ...]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Group:
    """Columns that are encoded together: those of one kind, and each category by itself."""

    indices: list[int]
    values: Callable[[Sequence[Any]], list[Any]]
    accepted: frozenset[type]
    nullable: bool
    codes: dict[str, float] | None

    @classmethod
    def of(cls, indices: list[int], columns: Sequence[Column]) -> _Group:
        first = columns[indices[0]]
        pick = operator.itemgetter(*(columns[index].name for index in indices))
        many = len(indices) > 1

        def values(rows: Sequence[Any]) -> list[Any]:
            if isinstance(rows, FlatRows):
                width = len(rows.names)
                if len(indices) == width:
                    return rows.values
                parts = [rows.values[index::width] for index in indices]
                return list(itertools.chain.from_iterable(zip(*parts, strict=True))) if many else parts[0]
            return list(itertools.chain.from_iterable(map(pick, rows)) if many else map(pick, rows))

        codes = {v: float(i) for i, v in enumerate(first.categories)} if first.kind == "category" else None
        nullable = any(columns[index].nullable for index in indices)
        return cls(indices, values, _FAST_TYPES[first.kind], nullable, codes)

    def fill(self, rows: Sequence[Any], out: npt.NDArray[np.float64]) -> bool:
        """Write the columns' values into ``out``; ``False`` when a value is of a type that has to be looked at.

        Nulls of a group in which one column may be null become NaN: :attr:`_Plan.strict` tells where they may not.
        """
        values = self.values(rows)
        types = set(map(type, values))
        if types <= self.accepted:
            if self.codes is not None:
                values = [self.codes.get(value, _NAN) for value in values]
        elif self.nullable and types <= self.accepted | {type(None)}:
            codes = self.codes
            values = [_NAN if v is None else v if codes is None else codes.get(v, _NAN) for v in values]
        else:
            return False
        # struct reads a float in a fifth of the time numpy takes for one; it refuses text.
        flat = np.frombuffer(struct.pack(f"{len(values)}d", *values))
        if len(self.indices) == out.shape[1]:
            out[:] = flat.reshape(out.shape)
        else:
            out[:, self.indices] = flat.reshape(len(rows), len(self.indices))
        return True


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a contract's rows are encoded fast.

    Attributes
    ----------
    strict : columns in which a number that is not finite is a violation (an unseen category is NaN and no violation)
    """

    names: tuple[str, ...]
    groups: tuple[_Group, ...]
    strict: npt.NDArray[np.bool_]
    integers: list[int]
    textual: bool

    @classmethod
    def of(cls, columns: tuple[Column, ...]) -> _Plan:
        by_kind: dict[str, list[int]] = {}
        for index, column in enumerate(columns):
            key = f"category {index}" if column.kind == "category" else column.kind
            by_kind.setdefault(key, []).append(index)
        return cls(
            names=tuple(column.name for column in columns),
            groups=tuple(_Group.of(indices, columns) for indices in by_kind.values()),
            strict=np.array([c.kind != "category" and not c.nullable for c in columns], dtype=bool),
            integers=by_kind.get("integer", []),
            textual=any(column.kind == "category" for column in columns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataContract:
    """Columns in model order, label, task and sorted classes (binary: the positive one is ``classes[1]``)."""

    columns: tuple[Column, ...]
    label: str
    task: Task
    classes: tuple[Class, ...] = ()
    _plan: _Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plan", _Plan.of(self.columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The input columns, in the order of the encoded matrix."""
        return tuple(column.name for column in self.columns)

    @property
    def categorical(self) -> list[int]:
        """Indices of the category columns in the encoded matrix."""
        return [i for i, column in enumerate(self.columns) if column.kind == "category"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {
            "columns": [column.to_dict() for column in self.columns],
            "label": self.label,
            "task": self.task,
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataContract:
        columns = tuple(Column.from_dict(column) for column in data["columns"])
        return cls(columns=columns, label=data["label"], task=data["task"], classes=tuple(data["classes"]))

    # --- inputs ------------------------------------------------------------------------------------

    def encode(self, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        """The model's matrix, float32, shape (n_rows, n_features).

        Numbers as they are, booleans 0 and 1, a category as the index of its value; missing values and unseen
        categories are NaN. Columns the contract does not name are ignored.

        Raises
        ------
        ContractViolation : a missing column, a wrong type, a missing value where none was seen
        """
        failures = [_missing_column(name, frame.columns) for name in self.names if name not in frame.columns]
        out = np.full((len(frame), len(self.columns)), np.nan, dtype=np.float32)
        for index, column in enumerate(self.columns):
            if column.name in frame.columns:
                failure = _encode_series(column, frame[column.name], out[:, index])
                if failure:
                    failures.append(failure)
        if failures:
            raise refuse(failures)
        return out

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
        """As :meth:`encode`, from rows as a JSON parser gives them; no pandas, strict types.

        ``true`` is no number, ``"1"`` is no number; an integer is a number. Unknown columns are refused.
        """
        return self.encode_sent(rows)[0]

    def encode_sent(self, rows: Sequence[Mapping[str, Any]]) -> tuple[npt.NDArray[np.float32], Sent | None]:
        """As :meth:`encode_rows`, and the values as they were sent.

        The second is ``None`` where a float64 does not hold what was sent: text, whole numbers from 2**53 on, and rows
        that only the slower, explaining path took. Raises what :meth:`encode_rows` raises.
        """
        plan = self._plan
        if not rows or not plan.names:
            return self._encode_slowly(rows), None
        try:
            if isinstance(rows, FlatRows):
                if rows.names != plan.names:
                    return self.encode_sent(list(rows))
            elif set(map(len, rows)) != {len(plan.names)}:
                return self._encode_slowly(rows), None
            whole = np.empty((len(rows), len(plan.names)), dtype=np.float64)
            for group in plan.groups:
                if not group.fill(rows, whole):
                    return self._encode_slowly(rows), None
        except (KeyError, TypeError, OverflowError, struct.error):
            return self._encode_slowly(rows), None
        with np.errstate(over="ignore"):
            out = whole.astype(np.float32)
        ordinary = np.abs(whole) < MAX_WHOLE
        if ordinary.all():
            return out, None if plan.textual else Sent(self.columns, whole)
        # What is missing needs a column that lets it; what is large may be a whole number that is too large.
        finite = np.isfinite(out)
        large = np.argwhere(np.abs(whole) >= MAX_WHOLE)
        if (~finite & plan.strict).any() or any(type(rows[i][plan.names[j]]) is int for i, j in large):
            return self._encode_slowly(rows), None
        if not finite.all():
            out[np.isinf(out)] = np.nan
        if plan.textual or (plan.integers and (np.abs(whole[:, plan.integers]) >= MAX_WHOLE).any()):
            return out, None
        return out, Sent(self.columns, whole)

    def _encode_slowly(self, rows: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Each value on its own, with the reason when it fails; accepts NumPy scalars and whole floats for integers."""
        failures: list[str] = []
        out_of_range = 0
        out = np.full((len(rows), len(self.columns)), np.nan, dtype=np.float32)
        known = set(self.names)
        for number, row in enumerate(rows):
            if len(failures) >= _ENOUGH:
                break  # each further sentence costs more than its row
            if not isinstance(row, Mapping):
                failures.append(f"row {number}: expected an object of columns, got {_show(row)}")
                continue
            for name in row:
                if name not in known:
                    if len(failures) >= _ENOUGH:
                        break
                    failures.append(
                        f"column {str(name)[:60]!r}: not in the contract (row {number}).{nearest(str(name), known)}"
                    )
            for index, column in enumerate(self.columns):
                if column.name not in row:
                    failures.append(
                        _missing_column(column.name, list(islice((c for c in row if c not in known), 100)))
                        + f" (row {number})"
                    )
                    continue
                code = _encode_value(column, row[column.name])
                if code is None:
                    failures.append(sentence_for(column, row[column.name], number))
                    out_of_range += _is_out_of_range(column, row[column.name])
                else:
                    out[number, index] = code
        if failures:
            raise refuse(failures, OutOfRange if out_of_range == len(failures) else ContractViolation)
        return out

    def decode_row(self, x: npt.NDArray[np.float32]) -> dict[str, Any]:
        """An encoded row, shape (n_features,), as a request would hold it: :meth:`encode_rows` gives it back."""
        row: dict[str, Any] = {}
        for column, value in zip(self.columns, x.tolist(), strict=True):
            if value != value:
                row[column.name] = None
            elif column.kind == "category":
                row[column.name] = column.categories[int(value)]
            else:
                row[column.name] = {"integer": int, "boolean": bool}.get(column.kind, float)(value)
        return row

    # --- labels ------------------------------------------------------------------------------------

    def encode_label(self, values: Any) -> npt.NDArray[np.float64]:
        """Labels as float64, shape (n,): the class index, or the value itself for regression.

        Raises
        ------
        ContractViolation : a class that was not there when the contract was learned, a missing or non-finite label
        """
        series = pd.Series(values).reset_index(drop=True)
        if self.task == "regression":
            numbers = np.asarray(pd.to_numeric(series, errors="coerce"), dtype=np.float64)
            bad = ~np.isfinite(numbers)
        else:
            lookup = {value: float(index) for index, value in enumerate(self.classes)}
            numbers = np.asarray(series.astype(object).map(lookup), dtype=np.float64)
            bad = np.isnan(numbers)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ContractViolation(self._label_message(series.iloc[row]) + f" (row {row})")
        return numbers

    def check_label(self, value: Any) -> Class:
        """The label as a plain JSON scalar.

        Raises
        ------
        ContractViolation : not a class of this contract, or not a finite number for regression
        """
        if isinstance(value, np.generic):
            value = value.item()
        if self.task == "regression":
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        else:
            for known in self.classes:
                if value == known and isinstance(value, bool) == isinstance(known, bool):
                    return known
        raise ContractViolation(self._label_message(value))

    def _label_message(self, value: Any) -> str:
        if self.task == "regression":
            return f"label {self.label!r}: expected a finite number, got {_show(value)}"
        classes = ", ".join(repr(known) for known in self.classes[:_MAX_FAILURES])
        more = f" and {len(self.classes) - _MAX_FAILURES} more" if len(self.classes) > _MAX_FAILURES else ""
        return f"label {self.label!r}: expected one of {classes}{more}, got {_show(value)}"


# --- learning ----------------------------------------------------------------------------------------


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


def learn_contract(frame: pd.DataFrame, label: str, task: Task | None = None, drop: Iterable[str] = ()) -> DataContract:
    """The contract that ``frame`` keeps: every column but the label and ``drop`` (give the time column there).

    Raises
    ------
    DataError : a missing label, no inputs, repeated names, a column of a type no model takes (each with what to do)
    """
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if repeated:
        raise DataError(f"Columns {', '.join(map(repr, repeated))} appear more than once: rename or drop them.")
    if label not in frame.columns:
        raise DataError(f"The data has no label column {label!r}.{nearest(label, map(str, frame.columns))}")
    left_out = {label, *drop}
    columns = tuple(_learn_column(str(name), frame[name]) for name in frame.columns if name not in left_out)
    if not columns:
        raise DataError(
            f"The data has no column besides {', '.join(sorted(left_out))}: there is nothing to learn from."
        )
    task = task or infer_task(frame[label])
    return DataContract(
        columns=columns, label=label, task=task, classes=() if task == "regression" else _classes(frame[label])
    )


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
        f"{_show(present.iloc[0])}): make it numbers, booleans or text in features=, or drop it."
    )


def _learn_number(name: str, series: pd.Series, kind: Kind) -> Column:
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    usable = values[np.abs(values) <= _FLOAT32_MAX]
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


# --- encoding one column, one value --------------------------------------------------------------------


def _encode_series(column: Column, series: pd.Series, out: npt.NDArray[np.float32]) -> str | None:
    """Fill ``out``; the description of the first failure, if any."""
    dtype = series.dtype
    numeric = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
    if column.kind in ("number", "integer") and numeric:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        missing = ~(np.abs(values) <= _FLOAT32_MAX)
        bad = missing & (not column.nullable)
        if column.kind == "integer":
            bad |= ~missing & (values != np.floor(values))
        out[:] = np.where(missing, np.nan, values)
    elif column.kind == "boolean" and dtype == np.bool_:
        out[:] = series.to_numpy()
        return None
    elif column.kind == "category" and not numeric and not pd.api.types.is_bool_dtype(dtype):
        objects = series.astype(object)
        missing = objects.isna().to_numpy()
        out[:] = objects.map({value: float(code) for code, value in enumerate(column.categories)}).to_numpy(
            dtype=np.float64
        )
        text = np.fromiter((isinstance(value, str) for value in objects), dtype=bool, count=len(objects))
        bad = (missing & (not column.nullable)) | (~missing & ~text)
    else:
        codes = [_encode_value(column, value) for value in series.astype(object)]
        bad = np.array([code is None for code in codes], dtype=bool)
        out[:] = [_NAN if code is None else code for code in codes]
    if not bad.any():
        return None
    row = int(np.flatnonzero(bad)[0])
    return sentence_for(column, series.iloc[row], row)


def _encode_value(column: Column, value: Any) -> float | None:
    """The code of one value, or ``None`` when the contract refuses it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return _NAN if column.nullable else None
    if column.kind == "category":
        return (
            float(column.categories.index(value))
            if value in column.categories
            else _NAN
            if isinstance(value, str)
            else None
        )
    if isinstance(value, bool):
        return float(value) if column.kind == "boolean" else None
    if column.kind == "boolean" or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and abs(value) > _MAX_INT[column.kind]:
        return None
    if abs(value) > _FLOAT32_MAX:
        return _NAN if column.nullable else None
    if column.kind == "integer" and value != int(value):
        return None
    return float(value)


# --- sentences -----------------------------------------------------------------------------------------


def _show(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a number of more than 60 digits"
    # Of a large value only the beginning is made into text.
    text = "null" if value is None else reprlib.repr(value) if isinstance(value, (list, dict)) else repr(value)[:200]
    return text if len(text) <= 60 else text[:57] + "…"


def _is_out_of_range(column: Column, value: Any) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and column.kind in ("number", "integer")
    limit = _MAX_INT.get(column.kind, 0) if isinstance(value, int) else _FLOAT32_MAX
    return numeric and abs(value) > limit


def sentence_for(column: Column, value: Any, row: int) -> str:
    """What was expected of a value and what came."""
    if _is_out_of_range(column, value):
        most = _MAX_INT[column.kind] if isinstance(value, int) else _FLOAT32_MAX
        return (
            f"column {column.name!r}: expected {_WORDS[column.kind]} within ±{most:.4g}, got {_show(value)} (row {row})"
        )
    return f"column {column.name!r}: expected {_WORDS[column.kind]}, got {_show(value)} (row {row})"


def violates(column: Column, value: Any) -> bool:
    """Whether the contract refuses one value of a column."""
    return _encode_value(column, value) is None


def _missing_column(name: str, given: Iterable[Any]) -> str:
    others = [str(column) for column in given]
    hint = nearest(name, others) if others else ""
    return f"column {name!r}: missing{'.' + hint if ' Did you mean' in hint else ''}"


def refuse(failures: list[str], kind: type[ContractViolation] = ContractViolation) -> ContractViolation:
    """The error to raise for rows: ten of the failures as text, all of them counted."""
    shown = failures[:_MAX_FAILURES]
    least = "at least " if len(failures) >= _ENOUGH else ""
    more = f"; and {least}{len(failures) - len(shown)} more" if len(failures) > len(shown) else ""
    return kind(f"The rows break the data contract: {'; '.join(shown)}{more}", {"failures": shown})
