"""Rows and data sets against a contract: each violation with what was expected, what came, in how many rows, and one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.data.contract_rules import Rule, Vector
from raymlops.data.schema_column import MAX_FAILURES, Column, rule_kind, sentence_for, series_codes, show
from raymlops.errors import ConfigError, ContractViolation, nearest

if TYPE_CHECKING:
    from raymlops.data.contract import Declared
    from raymlops.data.schema import DataContract

Bools = npt.NDArray[np.bool_]
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that is not as the contract says.

    Attributes
    ----------
    what : such as ``column 'age'``, ``rule 'adult'``, ``unique (customer, day)``
    expected, got : in words; ``got`` is the first example
    rows, of : how many rows, of how many; ``rows`` is 0 where it is no matter of rows
    row : number of the example's row
    """

    what: str
    expected: str
    got: str
    rows: int = 0
    of: int = 0
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, got {self.got}{self.where}"

    @property
    def where(self) -> str:
        if self.row is None:
            return ""
        more = f" and {self.rows - 1:,} more of {self.of:,} rows" if self.rows > 1 else ""
        return f" (row {self.row}{more})"


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """A contract's limits over the encoded matrix: tells at once that nothing can be wrong.

    Attributes
    ----------
    low, high : ``(n_features,)``, one float32 step inside the limits, for a value that rounding has moved
    closed : indices of the columns that take their categories only
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    closed: list[int]

    @classmethod
    def of(cls, columns: Sequence[Column]) -> Bounds:
        infinity = np.float32(np.inf)
        with np.errstate(over="ignore"):
            low = [-infinity if c.low is None else np.nextafter(np.float32(c.low), infinity) for c in columns]
            high = [infinity if c.high is None else np.nextafter(np.float32(c.high), -infinity) for c in columns]
        closed = [index for index, column in enumerate(columns) if column.closed]
        return cls(np.array(low, dtype=np.float32), np.array(high, dtype=np.float32), closed)

    def doubt(self, x: npt.NDArray[np.float32]) -> bool:
        """Whether a value of ``(n_rows, n_features)`` may be outside: a closer look at what was sent will tell."""
        near = bool((x < self.low).any() or (x > self.high).any())
        return near or bool(self.closed and np.isnan(x[:, self.closed]).any())


def check_rows(contract: DataContract, rows: Sequence[Mapping[str, Any]], limits: bool = True) -> None:
    """Request rows that keep the types, against the limits, if ``limits``, and the rules of rows.

    Raises
    ------
    ContractViolation : as :func:`violation_error` words it
    """
    names = set(bounded_columns(contract, limits))
    vectors = {
        column.name: Vector.of_values([row[column.name] for row in rows], rule_kind(column))
        for column in contract.columns
        if column.name in names
    }
    found = row_violations(contract, vectors, len(rows), lambda name, row: rows[row][name], limits)
    if found:
        raise violation_error(found)


def check_frame(contract: DataContract, frame: pd.DataFrame, limits: bool = True) -> None:
    """As :func:`check_rows`, of a frame with the contract's columns."""
    vectors = {name: Vector.of_series(frame[name]) for name in bounded_columns(contract, limits)}
    found = row_violations(contract, vectors, len(frame), lambda name, row: frame[name].iloc[row], limits)
    if found:
        raise violation_error(found)


def broken_rows(contract: DataContract, vectors: Mapping[str, Vector], rows: int) -> Bools:
    """True for each row that keeps the types but breaks a limit or a rule of rows, ``(rows,)``."""
    broken = np.zeros(rows, dtype=bool)
    for column in contract.columns:
        if column.bounded:
            for _, mask in _limits(column, vectors[column.name]):
                broken |= mask
    for rule in contract.row_rules:
        broken |= rule.broken(vectors, rows)
    return broken


def row_violations(
    contract: DataContract,
    vectors: Mapping[str, Vector],
    rows: int,
    value: Callable[[str, int], Any],
    limits: bool = True,
) -> list[Violation]:
    """What breaks the limits and the rules of rows; ``value`` gives the example to show."""
    found: list[Violation] = []
    for column in contract.columns if limits else ():
        if column.bounded:
            got = partial(_shown, value, column.name)
            for expected, mask in _limits(column, vectors[column.name]):
                found += _of_mask(f"column {column.name!r}", expected, mask, got)
    for rule in contract.row_rules:
        found += _of_rule(rule, vectors, rows, value)
    return found


def check_data(
    contract: DataContract,
    frame: pd.DataFrame,
    *,
    time: str | None,
    now: float,
    served: bool = False,
    learned: Collection[str] = (),
) -> tuple[str, ...]:
    """A data set against everything the contract says: columns, types, nulls, limits, label, rules, uniqueness, freshness.

    Parameters
    ----------
    time : the column that holds the time of each row; without it, freshness cannot be judged
    now : seconds since 1970
    served : the rows are what an endpoint was asked: each stands for itself, without keys and without the source's time
    learned : columns that need no look, because what is said of them was learned from this very frame

    Returns
    -------
    what does not apply to served rows, in words

    Raises
    ------
    ContractViolation : as :func:`violation_error` words it
    """
    found: list[Violation] = []
    for name in (*contract.names, contract.label):
        if name not in frame.columns:
            hint = nearest(name, map(str, frame.columns))
            found.append(Violation(what=f"column {name!r}", expected="to be there", got=f"no such column.{hint}"))
    if contract.others == "refuse":
        found += other_columns(frame, {*contract.names, contract.label, time, *named_columns(contract)})
    there = frozenset(map(str, frame.columns))
    looked_at = {column.name for column in contract.columns if column.bounded} | _named_in_rules(contract)
    vectors = {name: Vector.of_series(frame[name]) for name in looked_at & there}
    for column in contract.columns:
        if column.name in there and column.name not in learned:
            found += _of_column(column, frame[column.name], vectors.get(column.name))
    if contract.label in there:
        found += _of_label(contract, frame[contract.label])
    skipped = [f"rule {rule.name!r}" for rule in contract.rules if served and not rule.columns <= there]
    for rule in contract.rules:
        if rule.columns <= there:
            found += _of_rule(rule, vectors, len(frame), lambda name, row: frame[name].iloc[row])
        elif not served:
            found.append(_absent(f"rule {rule.name!r}", rule.columns - there, there))
    if served:
        skipped += [f"unique ({', '.join(key)})" for key in contract.unique]
        skipped += ["freshness"] * (contract.max_age_s is not None)
    else:
        found += _of_keys(contract, frame, there)
        if contract.max_age_s is not None:
            found += _of_freshness(contract.max_age_s, None if time is None else frame[time], now)
    if found:
        raise violation_error(found)
    return tuple(skipped)


def named_columns(said: DataContract | Declared) -> frozenset[str]:
    """The columns that keys and rules name."""
    return frozenset().union(*said.unique, _named_in_rules(said))


def _named_in_rules(said: DataContract | Declared) -> frozenset[str]:
    return frozenset().union(*(rule.columns for rule in said.rules))


def violation_error(found: Sequence[Violation]) -> ContractViolation:
    """The error to raise: ten of the violations as text, all of them counted, the ten as facts in ``details``."""
    shown = found[:MAX_FAILURES]
    more = f"; and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return ContractViolation(
        f"The rows break the data contract: {'; '.join(map(str, shown))}{more}",
        {"failures": [str(item) for item in shown], "violations": [asdict(item) for item in shown]},
    )


# --- one kind of violation each --------------------------------------------------------------------------


def bounded_columns(contract: DataContract, limits: bool = True) -> list[str]:
    """The columns that rules of rows and, if ``limits``, limits look at."""
    named = frozenset().union(*(rule.columns for rule in contract.row_rules))
    return [column.name for column in contract.columns if (limits and column.bounded) or column.name in named]


def _shown(value: Callable[[str, int], Any], name: str, row: int) -> str:
    return show(value(name, row))


def _of_mask(what: str, expected: str, mask: Bools, got: Callable[[int], str]) -> list[Violation]:
    rows = np.flatnonzero(mask)
    if not len(rows):
        return []
    first = int(rows[0])
    return [Violation(what=what, expected=expected, got=got(first), rows=len(rows), of=len(mask), row=first)]


def _limits(column: Column, vector: Vector) -> list[tuple[str, Bools]]:
    """Each limit a column has, in words, and the rows behind it. Nulls are no matter of limits."""
    known = ~vector.null
    made: list[tuple[str, Bools]] = []
    if column.low is not None and vector.kind == "number":
        made.append((f"at least {column.low:g}", known & (vector.values < column.low)))
    if column.high is not None and vector.kind == "number":
        made.append((f"at most {column.high:g}", known & (vector.values > column.high)))
    if column.closed and vector.kind == "text":
        allowed = frozenset(column.categories)
        seen = np.fromiter((v in allowed for v in vector.values), dtype=bool, count=len(vector.values))
        listed = ", ".join(map(repr, column.categories[:_SHOWN]))
        more = f" and {len(column.categories) - _SHOWN} more" if len(column.categories) > _SHOWN else ""
        made.append((f"one of {listed}{more}", known & ~seen))
    return made


def _of_column(column: Column, series: pd.Series, vector: Vector | None) -> list[Violation]:
    bad = series_codes(column, series, np.empty(len(series), dtype=np.float32))
    what = f"column {column.name!r}"
    missing = bad & series.isna().to_numpy()
    found = _of_mask(what, "no nulls", missing, lambda row: show(series.iloc[row]))
    typed = bad & ~missing
    if typed.any():
        first = int(np.flatnonzero(typed)[0])
        expected = sentence_for(column, series.iloc[first], first).split(": expected ", 1)[1].rsplit(", got ", 1)[0]
        found += _of_mask(what, expected, typed, lambda row: show(series.iloc[row]))
    for expected, mask in () if vector is None else _limits(column, vector):
        found += _of_mask(what, expected, mask & ~bad, lambda row: show(series.iloc[row]))
    return found


def _of_label(contract: DataContract, series: pd.Series) -> list[Violation]:
    if contract.task == "regression":
        numbers = np.asarray(pd.to_numeric(series, errors="coerce"), dtype=np.float64)
        return _of_mask(
            f"label {contract.label!r}", "a finite number", ~np.isfinite(numbers), lambda row: show(series.iloc[row])
        )
    known = series.astype(object).isin(list(contract.classes)).to_numpy()
    listed = ", ".join(map(repr, contract.classes[:_SHOWN]))
    return _of_mask(f"label {contract.label!r}", f"one of {listed}", ~known, lambda row: show(series.iloc[row]))


def _of_rule(rule: Rule, vectors: Mapping[str, Vector], rows: int, value: Callable[[str, int], Any]) -> list[Violation]:
    try:
        mask = rule.broken(vectors, rows)
    except ConfigError as error:
        return [Violation(what=f"rule {rule.name!r}", expected=rule.check, got=error.message)]

    def got(row: int) -> str:
        return ", ".join(f"{name} = {show(value(name, row))}" for name in sorted(rule.columns)[:_SHOWN])

    return _of_mask(f"rule {rule.name!r}", rule.check, mask, got)


def _of_keys(contract: DataContract, frame: pd.DataFrame, there: frozenset[str]) -> list[Violation]:
    """Rows whose key another row has too; a key with a null in it is none, as in SQL."""
    found: list[Violation] = []
    for key in contract.unique:
        what = f"unique ({', '.join(key)})"
        if absent := set(key) - there:
            found.append(_absent(what, absent, there))
            continue
        keys = frame[list(key)]
        repeated = keys.duplicated(keep=False).to_numpy() & keys.notna().all(axis=1).to_numpy()

        def got(row: int, keys: pd.DataFrame = keys) -> str:
            return f"({', '.join(show(item) for item in keys.iloc[row])}) more than once"

        found += _of_mask(what, "each key once", repeated, got)
    return found


def _of_freshness(max_age_s: float, series: pd.Series | None, now: float) -> list[Violation]:
    what = "freshness"
    if series is None:
        return [Violation(what=what, expected="a time column", got="a source without time=")]
    limit = f"the newest {series.name} at most {age_text(max_age_s)} old"
    if not pd.api.types.is_datetime64_any_dtype(series):
        return [Violation(what=what, expected=f"times in {series.name}", got=f"{series.dtype}, which has no date")]
    vector = Vector.of_series(series)
    if vector.null.all():
        return [Violation(what=what, expected=limit, got="no time at all")]
    newest = float(vector.values[~vector.null].max())
    if now - newest > max_age_s:
        when = pd.Timestamp(newest, unit="s").isoformat()
        return [Violation(what=what, expected=limit, got=f"{when}, {age_text(round(now - newest))} old")]
    late = ~vector.null & (vector.values > now)
    return _of_mask(what, "no time in the future", late, lambda row: str(series.iloc[row]))


def age_text(seconds: float) -> str:
    """A duration as :func:`raymlops.clock.seconds` reads it back: ``7d``, ``36h``, ``90.5s``."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s" if seconds < 1e5 and seconds == float(f"{seconds:g}") else f"{seconds!r}s"


def _absent(what: str, absent: Iterable[str], there: Iterable[str]) -> Violation:
    name = min(absent)
    return Violation(what=what, expected=f"a column {name!r}", got=f"none of that name.{nearest(name, there)}")


def other_columns(frame: pd.DataFrame, known: Collection[str | None]) -> list[Violation]:
    """The columns of a data set that a contract with ``others: refuse`` does not know."""
    return [
        Violation(what=f"column {str(name)!r}", expected="only columns of the contract", got="one more")
        for name in frame.columns
        if name not in known
    ]
