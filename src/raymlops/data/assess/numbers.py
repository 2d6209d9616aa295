"""What is wrong with numbers: infinite, too large, far outside, negative where they cannot be, or standing for missing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.data.assess.facts import Facts, Table
from raymlops.data.assess.result import CheckResult, result

# Words in the name of a quantity that has no negative values.
_POSITIVE = re.compile(
    r"(^|_)(duration|elapsed|age|ages|years|months|weeks|days|hours|minutes|seconds|secs|ms|count|qty|quantity|distance"
    r"|length|weight|height|size)(_|$)"
)
_START = re.compile(r"(^|_)(start|started|begin|from|opened|created|pickup|departure)(_|$)")
_END = re.compile(r"(^|_)(end|ended|stop|to|until|closed|finished|dropoff|arrival)(_|$)")
_CODES = frozenset({-9.0, -99.0} | {sign * float("9" * digits) for digits in range(3, 10) for sign in (-1, 1)})
_FAR, _GAP = 30.0, math.log(8.0)
_MOST_OUTLIERS = 0.01


def words(name: str) -> str:
    """A column's name in lower case with ``_`` between its words."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower())


def infinite(table: Table) -> Iterator[CheckResult]:
    found = [column for column in table.inputs if column.infinite]
    for column in found:
        message = f"Column {column.name!r} is infinite in {column.infinite} rows."
        advice = "They count as missing: find the division by zero or the overflow that made them."
        yield result(f"infinite:{column.name}", "warn", column.infinite, 0, message, advice)
    if not found:
        yield result("infinite", "pass", 0, 0, "No value is infinite.")


def huge(table: Table) -> Iterator[CheckResult]:
    found = [column for column in table.inputs if column.huge]
    for column in found:
        assert column.values is not None
        finite = np.abs(column.values[np.isfinite(column.values)])
        message = (
            f"Column {column.name!r} holds {column.huge} values larger than a float32 takes (3.4e38), up to "
            f"{float(finite.max()):.3g}."
        )
        advice = "They count as missing: repair the source, or take the logarithm in features=."
        yield result(f"huge:{column.name}", "warn", column.huge, 0, message, advice)
    if not found:
        yield result("huge", "pass", 0, 0, "No value is too large for a float32.")


def outliers(table: Table) -> Iterator[CheckResult]:
    """Few values far outside, with nothing between them and the rest.

    A long tail is no fault. What is named lies 30 interquartile ranges or more from the median *and* is at least eight
    times as far out as the next value, which tails of ordinary data hardly do but slipped units and codes do.
    """
    found = False
    for column in table.inputs:
        if column.kind != "number" or column.finite.size < 50:
            continue
        far = _far(column.finite)
        if far is None:
            continue
        found = True
        low, high, nearest_out = far
        outside = column.finite[(column.finite < low) | (column.finite > high)]
        message = (
            f"Column {column.name!r} has {len(outside)} values far outside: all others lie between {low:.4g} and "
            f"{high:.4g}, the nearest of these is {nearest_out:.4g}."
        )
        advice = "Look for slipped units, decimal signs and codes for missing; repair or clip them in features=."
        yield result(f"outliers:{column.name}", "warn", len(outside), 0, message, advice)
    if not found:
        yield result("outliers", "pass", 0, 0, "No value lies far outside with a gap before it.")


def _far(values: npt.NDArray[np.floating[Any]]) -> tuple[float, float, float] | None:
    """The ends of the bulk and the nearest value outside of it; ``None`` when there is no gap."""
    part = values[:: max(1, len(values) // 20_000)]
    low, middle, high = (float(q) for q in np.percentile(part, (25, 50, 75)))
    spread = high - low
    if spread <= 0:
        return None
    farthest = max(abs(float(values.max()) - middle), abs(float(values.min()) - middle))
    if farthest < _FAR * spread:
        return None
    distance = np.abs(values.astype(np.float64) - middle) / spread
    beyond = np.sort(distance[distance > 1.0])
    logs = np.log(beyond)
    gaps = np.flatnonzero((np.diff(logs) > _GAP) & (beyond[1:] >= _FAR))
    if not len(gaps):
        return None
    edge, first_out = beyond[gaps[0]], beyond[gaps[0] + 1]
    outside = distance >= first_out
    if outside.mean() > _MOST_OUTLIERS:
        return None
    inside = values[distance <= edge]
    return float(inside.min()), float(inside.max()), float(values[outside][np.argmin(distance[outside])])


def sentinel(table: Table) -> Iterator[CheckResult]:
    """Numbers such as -999 that stand for missing: an extreme value, repeated, with nothing near it."""
    limit, found = table.spec.limit("sentinel"), False
    for column in table.inputs:
        if column.kind != "number" or not column.finite.size:
            continue
        lowest, highest = float(column.finite.min()), float(column.finite.max())
        for code in (lowest, highest):
            if code not in _CODES or not _isolated(column, code):
                continue
            share = float(np.count_nonzero(column.finite == code)) / column.rows
            if share >= limit:
                found = True
                message = f"Column {column.name!r} is {code:g} in {share:.1%} of the rows, far from all other values."
                advice = "It looks like a code for missing: make it missing in features= (.replace)."
                yield result(f"sentinel:{column.name}", "warn", share, limit, message, advice)
    if not found:
        yield result("sentinel", "pass", 0, limit, "No number looks like a code for missing.")


def _isolated(column: Facts, code: float) -> bool:
    """The only negative value, or as far from the nearest other value as all others from each other."""
    others = column.finite[column.finite != code]
    if not others.size:
        return False
    nearest, spread = float(np.abs(others - code).min()), float(others.max() - others.min())
    return nearest > 0 and ((code < 0 <= float(others.min())) or nearest >= max(spread, 1.0))


def negative(table: Table) -> Iterator[CheckResult]:
    """A few negative values in what cannot be negative: durations, counts, ages; ends before their starts."""
    found = False
    for column in table.inputs:
        if column.kind == "duration" or (column.kind == "number" and _POSITIVE.search(words(column.name))):
            below = int(np.count_nonzero(column.finite < 0))
            # Mostly negative, or with as many below zero as above it, is a quantity that is measured around a zero.
            if 0 < below <= 0.2 * max(column.finite.size, 1):
                found = True
                message = f"Column {column.name!r} is negative in {below} rows, which its name does not allow."
                advice = "Look for swapped times, time zones and codes for missing."
                yield result(f"negative:{column.name}", "warn", below, 0, message, advice)
    for start, end in _spans(table):
        assert start.values is not None
        assert end.values is not None
        below = int(np.count_nonzero(end.values < start.values))
        if 0 < below <= 0.2 * table.rows:
            found = True
            message = f"Column {end.name!r} lies before {start.name!r} in {below} rows: a negative duration."
            advice = "Look for swapped columns and time zones."
            yield result(f"negative:{end.name}", "warn", below, 0, message, advice)
    if not found:
        yield result("negative", "pass", 0, 0, "No duration, count or age is negative.")


def _spans(table: Table) -> Iterator[tuple[Facts, Facts]]:
    """Pairs of time columns whose names say start and end of one thing."""
    times = [column for column in table.inputs if column.kind == "time"]
    starts = {_START.sub("_", words(c.name)).strip("_"): c for c in times if _START.search(words(c.name))}
    ends = {_END.sub("_", words(c.name)).strip("_"): c for c in times if _END.search(words(c.name))}
    for stem in starts.keys() & ends.keys():
        if starts[stem] is not ends[stem]:
            yield starts[stem], ends[stem]
