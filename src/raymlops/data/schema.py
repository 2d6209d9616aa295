"""The data contract: which columns the model takes, of which kind and range; checks frames and requests against it."""

from __future__ import annotations

import itertools
import math
import operator
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.data.contract_checks import Bounds, check_frame, check_rows
from raymlops.data.contract_rules import Rule, check_types
from raymlops.data.rows import FlatRows
from raymlops.data.schema_column import (
    ENOUGH,
    MAX_FAILURES,
    MAX_WHOLE,
    Class,
    Column,
    Kind,
    Task,
    encode_series,
    encode_value,
    is_out_of_range,
    missing_column,
    refuse,
    rule_kind,
    sentence_for,
    show,
    violates,
)
from raymlops.data.schema_learn import infer_task, learn_columns
from raymlops.errors import ContractViolation, OutOfRange, nearest

__all__ = [
    "MAX_WHOLE",
    "Class",
    "Column",
    "DataContract",
    "Kind",
    "Sent",
    "Task",
    "infer_task",
    "learn_contract",
    "refuse",
    "sentence_for",
    "violates",
]

Others = Literal["learn", "refuse"]

_NAN = float("nan")
# The exact types a JSON parser hands over for each kind; anything else takes the slower, explaining path.
_FAST_TYPES: dict[str, frozenset[type]] = {
    "number": frozenset((float, int)),
    "integer": frozenset((int,)),
    "boolean": frozenset((bool,)),
    "category": frozenset((str,)),
}


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
    """Columns in model order, label, task and sorted classes (binary: the positive one is ``classes[1]``).

    Attributes
    ----------
    rules : expressions that must not be false; those over the columns alone hold for requests too
    unique : columns that together name a row; for data sets only, a request knows no other rows
    max_age_s : how old the newest row may be when a data set is read; for data sets only
    others : what becomes of a column the contract does not name: the model learns from it, or the data is refused

    Raises
    ------
    ConfigError : a rule that compares what cannot be compared, two rules of one name
    """

    columns: tuple[Column, ...]
    label: str
    task: Task
    classes: tuple[Class, ...] = ()
    rules: tuple[Rule, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    max_age_s: float | None = None
    others: Others = "learn"
    _plan: _Plan = field(init=False, repr=False, compare=False)
    _free: DataContract | None = field(init=False, repr=False, compare=False)
    _bounds: Bounds = field(init=False, repr=False, compare=False)
    _row_rules: tuple[Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plan", _Plan.of(self.columns))
        check_types(self.rules, kinds_of(self))
        known = set(self.names)
        rules = tuple(rule for rule in self.rules if rule.scope == "rows" and rule.columns <= known)
        object.__setattr__(self, "_row_rules", rules)
        object.__setattr__(self, "_bounds", Bounds.of(self.columns))
        bounded = any(column.bounded for column in self.columns) or bool(rules)
        object.__setattr__(self, "_free", self._without_bounds() if bounded else None)

    @property
    def names(self) -> tuple[str, ...]:
        """The input columns, in the order of the encoded matrix."""
        return tuple(column.name for column in self.columns)

    @property
    def categorical(self) -> list[int]:
        """Indices of the category columns in the encoded matrix."""
        return [i for i, column in enumerate(self.columns) if column.kind == "category"]

    @property
    def row_rules(self) -> tuple[Rule, ...]:
        """The rules that one row settles by what a request holds."""
        return self._row_rules

    @property
    def bounded(self) -> bool:
        """Whether a row has more to keep than its types and where nulls may be."""
        return self._free is not None

    def unbounded(self) -> DataContract:
        """The same columns and label, with types and nulls alone to keep."""
        return self if self._free is None else self._free

    def _without_bounds(self) -> DataContract:
        free = tuple(replace(column, low=None, high=None, closed=False) for column in self.columns)
        return replace(self, columns=free, rules=(), unique=(), max_age_s=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {
            "columns": [column.to_dict() for column in self.columns],
            "label": self.label,
            "task": self.task,
            "classes": list(self.classes),
            "rules": [rule.to_dict() for rule in self.rules],
            "unique": [list(key) for key in self.unique],
            "max_age_s": self.max_age_s,
            "others": self.others,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataContract:
        """What :meth:`to_dict` wrote, or an earlier release without rules."""
        return cls(
            columns=tuple(Column.from_dict(column) for column in data["columns"]),
            label=data["label"],
            task=data["task"],
            classes=tuple(data["classes"]),
            rules=tuple(Rule(**rule) for rule in data.get("rules", ())),
            unique=tuple(tuple(key) for key in data.get("unique", ())),
            max_age_s=data.get("max_age_s"),
            others=data.get("others", "learn"),
        )

    # --- inputs ------------------------------------------------------------------------------------

    def encode(self, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        """The model's matrix, float32, shape (n_rows, n_features).

        Numbers as they are, booleans 0 and 1, a category as the index of its value; missing values and unseen
        categories are NaN. Columns the contract does not name are ignored.

        Raises
        ------
        ContractViolation : a missing column, a wrong type, a missing value where none was seen
        """
        if self._free is not None:
            out = self._free.encode(frame)
            doubt = self._bounds.doubt(out)
            if doubt or self._row_rules:
                check_frame(self, frame, limits=doubt)
            return out
        failures = [missing_column(name, frame.columns) for name in self.names if name not in frame.columns]
        out = np.full((len(frame), len(self.columns)), np.nan, dtype=np.float32)
        for index, column in enumerate(self.columns):
            if column.name in frame.columns:
                failure = encode_series(column, frame[column.name], out[:, index])
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
        if self._free is not None:
            encoded = self._free.encode_sent(rows)
            doubt = self._bounds.doubt(encoded[0])
            if doubt or self._row_rules:
                check_rows(self, rows, limits=doubt)
            return encoded
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
            if len(failures) >= ENOUGH:
                break  # each further sentence costs more than its row
            if not isinstance(row, Mapping):
                failures.append(f"row {number}: expected an object of columns, got {show(row)}")
                continue
            for name in row:
                if name not in known:
                    if len(failures) >= ENOUGH:
                        break
                    failures.append(
                        f"column {str(name)[:60]!r}: not in the contract (row {number}).{nearest(str(name), known)}"
                    )
            for index, column in enumerate(self.columns):
                if column.name not in row:
                    failures.append(
                        missing_column(column.name, list(islice((c for c in row if c not in known), 100)))
                        + f" (row {number})"
                    )
                    continue
                code = encode_value(column, row[column.name])
                if code is None:
                    failures.append(sentence_for(column, row[column.name], number))
                    out_of_range += is_out_of_range(column, row[column.name])
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
            return f"label {self.label!r}: expected a finite number, got {show(value)}"
        classes = ", ".join(repr(known) for known in self.classes[:MAX_FAILURES])
        more = f" and {len(self.classes) - MAX_FAILURES} more" if len(self.classes) > MAX_FAILURES else ""
        return f"label {self.label!r}: expected one of {classes}{more}, got {show(value)}"


def kinds_of(contract: DataContract) -> dict[str, str]:
    """What each column and the label is to a rule: ``number``, ``boolean`` or ``text``."""
    kinds = {column.name: rule_kind(column) for column in contract.columns}
    first = contract.classes[0] if contract.classes else 0.0
    kinds[contract.label] = "text" if isinstance(first, str) else "boolean" if isinstance(first, bool) else "number"
    return kinds


def learn_contract(frame: pd.DataFrame, label: str, task: Task | None = None, drop: Iterable[str] = ()) -> DataContract:
    """The contract that ``frame`` keeps: every column but the label and ``drop`` (give the time column there).

    Raises
    ------
    DataError : a missing label, no inputs, repeated names, a column of a type no model takes (each with what to do)
    """
    columns, task, classes = learn_columns(frame, label, task, drop)
    return DataContract(columns=columns, label=label, task=task, classes=classes)
