"""One pass over the columns: what each holds, in numbers that the checks then judge. Counts are of all rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.data.assess.spec import Assess
from raymlops.data.schema import Task

Kind = Literal["number", "boolean", "text", "time", "duration", "mixed", "other", "empty"]
Floats = npt.NDArray[np.float64]

FLOAT32_MAX = float(np.finfo(np.float32).max)
_LOOK = 20_000
_KINDS: dict[str, Kind] = {
    "string": "text",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "decimal": "number",
    "boolean": "boolean",
    "datetime": "time",
    "datetime64": "time",
    "date": "time",
    "timedelta": "duration",
    "timedelta64": "duration",
    "empty": "empty",
    "mixed": "mixed",
    "mixed-integer": "mixed",
}
_ONE, _TWO, _STEP = (np.uint64(n) for n in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15))


@dataclass(frozen=True, eq=False, kw_only=True)
class Facts:
    """One column.

    Attributes
    ----------
    values : float64 or float32 ``(n,)`` of a number, boolean, time (seconds) or duration (seconds); NaN when missing
    codes, categories : of a text: the index of each row's value, -1 when missing, and the values in order of appearance
    missing, infinite, huge : rows without a value; with an infinity; with a number that a float32 does not hold
    whole : a number column of an integer type
    """

    name: str
    series: pd.Series
    kind: Kind
    missing: int
    infinite: int = 0
    huge: int = 0
    whole: bool = False
    values: npt.NDArray[np.floating[Any]] | None = None
    codes: npt.NDArray[np.intp] | None = None
    categories: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.series)

    @cached_property
    def finite(self) -> npt.NDArray[np.floating[Any]]:
        """The values that are numbers a float32 holds; none of a text."""
        if self.values is None:
            return np.empty(0)
        clean = not (self.missing or self.infinite or self.huge)
        return self.values if clean else self.values[np.abs(self.values) <= FLOAT32_MAX]

    @cached_property
    def counts(self) -> npt.NDArray[np.intp]:
        """Rows of each category of a text."""
        assert self.codes is not None
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.categories))

    @cached_property
    def mode(self) -> tuple[object, float]:
        """The commonest value and its share of all rows. Of a number only when it has most of the rows."""
        if self.codes is not None:
            if not len(self.counts):
                return None, 0.0
            top = int(np.argmax(self.counts))
            return self.categories[top], float(self.counts[top]) / self.rows
        if self.values is None or not self.finite.size:
            return None, 0.0
        middle = np.median(self.finite[:: max(1, len(self.finite) // _LOOK)])
        return float(middle), float(np.count_nonzero(self.values == middle)) / self.rows

    @cached_property
    def constant(self) -> bool:
        """One value in all rows, or none in any."""
        if self.missing:
            return self.missing == self.rows
        if self.codes is not None:
            return len(self.categories) <= 1
        if self.values is not None:
            return bool(len(self.values)) and bool((self.values == self.values[0]).all())
        return False

    @cached_property
    def distinct(self) -> bool:
        """Every value there is appears once. Looked for in a part first."""
        if self.codes is not None:
            return bool(len(self.counts)) and bool(self.counts.max() == 1)
        values = self.series.to_numpy() if self.whole and not self.missing else self.finite
        part = values[:_LOOK]
        if len(np.unique(part)) < len(part):
            return False
        return len(values) <= len(part) or len(np.unique(values)) == len(values)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """64 bits for the value of each row, shape (n,); equal values give equal bits, whatever their type."""
        if self.codes is not None:
            table = pd.util.hash_array(np.array([*self.categories, ""], dtype=object), categorize=False)
            table[-1] = 1
            return _mixed(table[self.codes])
        if self.values is None:
            return _mixed(pd.util.hash_array(self.series.map(repr).to_numpy(dtype=object), categorize=False))
        plain = self.values.astype(np.float64) + 0.0
        if self.missing:
            plain[np.isnan(plain)] = np.nan
        return _mixed(plain.view(np.uint64))


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """What the checks look at.

    Attributes
    ----------
    names : the inputs, in order
    y : label codes or values, float64 ``(n,)``, NaN where there is none
    times : of each row, seconds or the time column's own numbers, ``(n,)``; ``dated``: they are times of the calendar
    order : row numbers in time order; the given order without a time
    """

    frame: pd.DataFrame
    spec: Assess
    label: str
    time: str | None
    task: Task
    names: tuple[str, ...]
    now: float
    columns: dict[str, Facts]
    y: Floats
    classes: tuple[object, ...]
    times: Floats | None
    dated: bool

    @property
    def rows(self) -> int:
        return len(self.frame)

    @property
    def inputs(self) -> list[Facts]:
        return [self.columns[name] for name in self.names]

    @cached_property
    def order(self) -> npt.NDArray[np.intp]:
        return np.arange(self.rows) if self.times is None else np.argsort(self.times, kind="stable")

    @cached_property
    def hashed(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], dict[str, bytes]]:
        """64 bits for each row's inputs, for its inputs and label, and a digest of each input column."""
        rows, digests = np.zeros(self.rows, dtype=np.uint64), {}
        for column in self.inputs:
            one = column.hashes()
            digests[column.name] = hashlib.blake2b(one.tobytes(), digest_size=16).digest()
            rows = (rows ^ one) * _STEP
        label = _mixed((self.y + 0.0).view(np.uint64))
        return rows, (rows ^ label) * _STEP, digests


def facts_of(name: str, series: pd.Series) -> Facts:
    """Look at one column, whatever it holds."""
    dtype = series.dtype
    if pd.api.types.is_bool_dtype(dtype) or (
        pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype)
    ):
        return _number(name, series, "boolean" if pd.api.types.is_bool_dtype(dtype) else "number")
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        kind: Kind = "duration" if pd.api.types.is_timedelta64_dtype(dtype) else "time"
        return Facts(name=name, series=series, kind=kind, missing=int(series.isna().sum()), values=_seconds(series))
    plain = series.astype(object) if isinstance(dtype, pd.CategoricalDtype) else series
    kind = _KINDS.get(pd.api.types.infer_dtype(plain, skipna=True), "other")
    missing = int(plain.isna().sum())
    if kind == "mixed" and len({type(value) for value in plain.dropna()}) == 1:
        kind = "other"  # lists and the like: of one type, but of none that a model takes
    if kind == "text":
        codes, categories = pd.factorize(plain)
        return Facts(
            name=name, series=plain, kind="text", missing=missing, codes=codes, categories=tuple(map(str, categories))
        )
    if kind in ("number", "boolean"):
        return _number(name, pd.to_numeric(plain.astype(object).map(_float, na_action="ignore")), kind)
    if kind in ("time", "duration"):
        made = read_times(plain) if kind == "time" else pd.to_timedelta(plain, errors="coerce")
        return Facts(name=name, series=plain, kind=kind, missing=missing, values=_seconds(made))
    return Facts(name=name, series=plain, kind=kind, missing=missing)


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _number(name: str, series: pd.Series, kind: Kind) -> Facts:
    if isinstance(series.dtype, np.dtype) and series.dtype.kind == "f":
        values: npt.NDArray[np.floating[Any]] = series.to_numpy()
    else:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    missing = int(np.isnan(values).sum())
    infinite = int(np.isinf(values).sum())
    huge = int((np.abs(values) > FLOAT32_MAX).sum()) - infinite if values.dtype == np.float64 else 0
    whole = pd.api.types.is_integer_dtype(series.dtype)
    return Facts(
        name=name,
        series=series,
        kind=kind,
        missing=missing,
        infinite=infinite,
        huge=huge,
        whole=whole,
        values=values,
    )


def _seconds(series: pd.Series) -> Floats:
    """Times or durations as seconds (times since 1970 in UTC), NaN when missing, shape (n,)."""
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    unit = "datetime64[us]" if series.dtype.kind == "M" else "timedelta64[us]"
    made = series.to_numpy().astype(unit)
    return np.where(np.isnat(made), np.nan, made.astype(np.int64) / 1e6)


def read_times(series: pd.Series) -> pd.Series:
    """Text, dates or zoned times as times in UTC; ``NaT`` where they cannot be read."""
    read = pd.to_datetime(series, errors="coerce", utc=True, format="ISO8601")
    if read.isna().mean() > series.isna().mean() + 0.05:
        read = pd.to_datetime(series, errors="coerce", utc=True)
    return read.dt.tz_localize(None)


def times_of(series: pd.Series) -> tuple[Floats, bool]:
    """A time column as numbers ``(n,)`` in its order, NaN where there is none, and whether they are of the calendar."""
    if pd.api.types.is_numeric_dtype(series.dtype):
        return series.to_numpy(dtype=np.float64, na_value=np.nan), False
    dated = pd.api.types.is_datetime64_any_dtype(series.dtype)
    return _seconds(series if dated else read_times(series)), True


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every bit of the value moves every bit of the result."""
    with np.errstate(over="ignore"):
        bits = bits + _STEP
        bits = (bits ^ (bits >> np.uint64(30))) * _ONE
        bits = (bits ^ (bits >> np.uint64(27))) * _TWO
    return np.asarray(bits ^ (bits >> np.uint64(31)), dtype=np.uint64)
