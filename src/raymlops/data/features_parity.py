"""Whether a features function gives a row the same wherever it runs: in a frame, alone, as a request brings it, in Spark.

What is learned from one and served by another is wrong in silence. So each way is run on the same rows, compared value by
value, and where they differ further runs find out why: twice the same, in another order, among other rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from raymlops.data.features import FeatureFunction, apply_features
from raymlops.data.raw import frame_of, learn_raw
from raymlops.data.schema_column import MAX_WHOLE
from raymlops.errors import DataError, RaymlopsError

WHOLE, AGAIN, ALONE, REQUEST, SPARK = "whole", "again", "alone", "request", "spark"
WORDS = {
    WHOLE: "in one pandas frame",
    AGAIN: "in the same frame once more",
    ALONE: "as a frame of one row",
    REQUEST: "as a request over HTTP holds it",
    SPARK: "in Spark",
}
PARITY_ROWS = 20
_EXAMPLES = 3
_MAX_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row's value in each way that was run, as text."""

    row: int
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A column that is not the same everywhere.

    Attributes
    ----------
    ways : which ways differ from the whole frame
    rows : how many rows differ in any of them
    """

    column: str
    ways: tuple[str, ...]
    rows: int
    examples: tuple[Example, ...]
    cause: str

    def __str__(self) -> str:
        shown = "; ".join(
            f"row {item.row}: {', '.join(f'{way} {value}' for way, value in item.values.items())}"
            for item in self.examples
        )
        return f"column {self.column!r} differs in {self.rows} row(s) ({shown}). Likely cause: {self.cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What came of it.

    Attributes
    ----------
    failures : what the function said where it failed in one way and not in the whole frame
    """

    rows: int
    ways: tuple[str, ...]
    columns: tuple[str, ...]
    differences: tuple[Difference, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.differences and not self.failures

    def require(self) -> None:
        """Raises :class:`DataError` with the differences when there are any."""
        if not self.agrees:
            raise DataError(
                f"The features function does not give a row the same everywhere. {self._findings('; ')}",
                {"parity": self.to_dict()},
            )

    def text(self) -> str:
        """For a person: one finding a line."""
        if not self.ways:
            return "no features function: the columns are what the source gives"
        ways = ", ".join(f"{way} ({WORDS[way]})" for way in self.ways)
        head = f"{self.rows} rows, {len(self.columns)} columns: {ways}"
        return f"{head}\n{'all agree' if self.agrees else self._findings(chr(10))}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "agrees": self.agrees}

    def _findings(self, between: str) -> str:
        said = [*self.failures, *map(str, self.differences)]
        more = [f"and {len(said) - _MAX_SHOWN} more"] if len(said) > _MAX_SHOWN else []
        return between.join(said[:_MAX_SHOWN] + more)


def parity(
    function: FeatureFunction | None,
    frame: pd.DataFrame,
    rows: int = PARITY_ROWS,
    made_in_spark: pd.DataFrame | None = None,
) -> None:
    """Check a function, if there is one, on at most ``rows`` rows spread over ``frame``; what a run does before it reads all.

    Raises
    ------
    DataError : the columns that differ, with values and likely cause
    """
    if function is not None and len(frame):
        some = np.unique(np.linspace(0, len(frame) - 1, rows).astype(int))
        compare(function, frame.iloc[some], None if made_in_spark is None else made_in_spark.iloc[some]).require()


def compare(function: FeatureFunction, frame: pd.DataFrame, made_in_spark: pd.DataFrame | None = None) -> Parity:
    """Run ``function`` on each row of ``frame`` in each way.

    Parameters
    ----------
    frame : what the function is given: without label, time and hidden columns
    made_in_spark : what Spark made of the same rows, in the same order

    Raises
    ------
    DataError : the function fails on the whole frame
    """
    frame = frame.reset_index(drop=True)
    whole = apply_features(function, frame)
    failures: list[str] = []
    ways = {
        AGAIN: _tried(AGAIN, failures, lambda: apply_features(function, frame)),
        ALONE: _each(ALONE, failures, len(frame), lambda row: apply_features(function, frame.iloc[[row]])),
    }
    if _sendable(frame):
        rows, raw = _requests(frame), learn_raw(frame)
        ways[REQUEST] = _each(
            REQUEST, failures, len(frame), lambda row: apply_features(function, frame_of(raw, [rows[row]]))
        )
    if made_in_spark is not None:
        ways[SPARK] = made_in_spark.reset_index(drop=True)
    ran = {way: made for way, made in ways.items() if made is not None}
    for way, made in ran.items():
        lost = sorted(set(map(str, whole.columns)) ^ set(map(str, made.columns)))
        if lost:
            failures.append(f"{WORDS[way]} the function makes other columns than in the whole frame: {', '.join(lost)}")
    differences = _differences(function, frame, whole, ran)
    columns = tuple(map(str, whole.columns))
    return Parity(
        rows=len(frame), ways=(WHOLE, *ways), columns=columns, differences=differences, failures=tuple(failures)
    )


def _differences(
    function: FeatureFunction, frame: pd.DataFrame, whole: pd.DataFrame, ran: Mapping[str, pd.DataFrame]
) -> tuple[Difference, ...]:
    found: list[Difference] = []
    probe: pd.DataFrame | None = None
    for name in whole.columns:
        apart = {way: _unlike(whole[name], made[name]) for way, made in ran.items() if name in made.columns}
        ways = tuple(way for way, mask in apart.items() if mask.any())
        if not ways:
            continue
        if probe is None:
            probe = _reversed(function, frame)
        rows = np.flatnonzero(np.logical_or.reduce([apart[way] for way in ways]))
        examples = tuple(
            Example(
                row=int(row),
                values={WHOLE: _shown(whole[name].iloc[row])} | {way: _shown(ran[way][name].iloc[row]) for way in ways},
            )
            for row in rows[:_EXAMPLES]
        )
        by_order = name in probe.columns and bool(_unlike(whole[name], probe[name]).any())
        cause = _cause(ways, by_order, whole[name], {way: ran[way][name] for way in ways}, frame)
        found.append(Difference(column=str(name), ways=ways, rows=len(rows), examples=examples, cause=cause))
    return tuple(found)


def _cause(
    ways: tuple[str, ...], by_order: bool, whole: pd.Series, others: Mapping[str, pd.Series], frame: pd.DataFrame
) -> str:
    if AGAIN in ways:
        return "it is not the same twice: random numbers, the clock, or state that outlives a call"
    if ALONE in ways and by_order:
        return (
            "it depends on the order of the rows (shift, diff, cumsum, ffill, first seen): the server sees rows alone"
        )
    if ALONE in ways:
        return (
            "it uses the other rows (mean, rank, quantiles, category codes, counts): the server sees rows alone; use "
            "constants, not statistics of the frame"
        )
    if ways == (REQUEST,):
        times = [str(name) for name in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[name])]
        if times:
            return f"{', '.join(times)} come as text in requests: begin with pd.to_datetime"
        return (
            "values have other types in requests: whole numbers without a missing one are integers, all else is float"
        )
    other = others[ways[0]]
    if _timed(whole) or _timed(other):
        return "times lose their zone: make them UTC and naive (dt.tz_convert('UTC').dt.tz_localize(None)) or numbers"
    if whole.map(lambda value: isinstance(value, (int, np.integer)) and abs(int(value)) >= MAX_WHOLE).any():
        return "whole numbers from 2**53 on do not survive as doubles, which Spark makes of new columns"
    if whole.isna().to_numpy().tolist() != other.isna().to_numpy().tolist():
        return "a missing value is another thing in Spark (null in an integer column makes it float; NaN is no null)"
    return "Spark holds new columns as doubles, booleans, times or text, and calls the function batch by batch"


# --- ways ------------------------------------------------------------------------------------------------


def _tried(way: str, failures: list[str], run: Callable[[], pd.DataFrame]) -> pd.DataFrame | None:
    try:
        return run()
    except RaymlopsError as error:
        failures.append(f"{WORDS[way]}: {error.message}")
        return None


def _each(way: str, failures: list[str], rows: int, run: Callable[[int], pd.DataFrame]) -> pd.DataFrame | None:
    """Each row by itself; ``None`` when the function fails on one, which is then told."""
    made = []
    for row in range(rows):
        try:
            made.append(run(row))
        except RaymlopsError as error:
            failures.append(f"row {row} {WORDS[way]}: {error.message}")
            return None
    names = list(dict.fromkeys(name for part in made for name in part.columns))
    # Values are kept as they are: a common type for all rows would hide what is looked for.
    columns = {
        name: pd.Series([part[name].iloc[0] if name in part.columns else None for part in made], dtype=object)
        for name in names
    }
    return pd.DataFrame(columns, index=range(rows))


def _reversed(function: FeatureFunction, frame: pd.DataFrame) -> pd.DataFrame:
    made = apply_features(function, frame.iloc[::-1])
    return made.iloc[::-1].reset_index(drop=True)


def _requests(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as a JSON parser gives them: times as text, null for what is missing."""
    return [
        json.loads(json.dumps({str(name): _sent(value) for name, value in row.items()}))
        for row in frame.astype(object).to_dict("records")
    ]


def _sent(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str) and pd.isna(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if isinstance(value, (str, bool, int)) or (isinstance(value, float) and np.isfinite(value)) else None


def _sendable(frame: pd.DataFrame) -> bool:
    """Whether requests can hold such rows at all: lists and maps in a column, which only Spark has, are no request's."""
    return not any(
        frame[name].map(lambda value: isinstance(value, (list, dict, bytes, np.ndarray))).any() for name in frame
    )


# --- values ----------------------------------------------------------------------------------------------


def _unlike(left: pd.Series, right: pd.Series) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([not same(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)], dtype=bool)


def same(left: Any, right: Any) -> bool:
    """Equal to a model: numbers up to rounding, missing is missing, truth values are no numbers."""
    if pd.api.types.is_scalar(left) and pd.isna(left):
        return bool(pd.api.types.is_scalar(right) and pd.isna(right))
    truths = (bool, np.bool_)
    if isinstance(left, truths) or isinstance(right, truths):
        return isinstance(left, truths) and isinstance(right, truths) and bool(left == right)
    numeric = (int, float, np.number)
    if isinstance(left, numeric) and isinstance(right, numeric):
        if any(isinstance(value, (int, np.integer)) and abs(int(value)) >= MAX_WHOLE for value in (left, right)):
            return bool(left == right)
        return bool(left == right or np.isclose(float(left), float(right), rtol=1e-9, atol=1e-12))
    return type(left) is type(right) and bool(left == right)


def _timed(series: pd.Series) -> bool:
    return bool(series.map(lambda value: isinstance(value, pd.Timestamp)).any())


def _shown(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)[:60]
