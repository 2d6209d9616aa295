"""The calendar: times that cannot be read, lie in the future, jump with the clock, leave gaps, or are old."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.data.assess.facts import Facts, Table
from raymlops.data.assess.result import CheckResult, Verdict, result

_OFFSET = re.compile(r"(Z|[+-]\d{2}:?\d{2})$")
_HOUR, _DAY = 3600.0, 86_400.0
_SLACK_S = 300.0  # clocks of two machines differ
_OLDEST, _LATEST = -2_208_988_800.0, 7_258_118_400.0  # 1900 and 2200


def time(table: Table) -> Iterator[CheckResult]:
    if table.times is None:
        return
    missing = int(np.isnan(table.times).sum())
    message = f"The time {table.time!r} is missing or unreadable in {missing} rows."
    verdict: Verdict = "fail" if missing else "pass"
    yield result("time", verdict, missing, 0, message, "Drop or repair those rows.")


def calendars(table: Table) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Names and seconds of the columns that hold times of the calendar, the row's own time first."""
    if table.times is not None and table.dated:
        yield str(table.time), table.times
    for column in table.inputs:
        if column.kind == "time" and column.values is not None:
            yield column.name, np.asarray(column.values, dtype=np.float64)


def future(table: Table) -> Iterator[CheckResult]:
    found = False
    for name, seconds in calendars(table):
        late = (seconds > table.now + _SLACK_S) & (seconds < _LATEST)
        if late.any():
            found = True
            message = (
                f"{name!r} lies in the future in {int(late.sum())} rows, up to {when(float(seconds[late].max()))}."
            )
            advice = "Look for swapped day and month, time zones, and planned dates: what is planned is no observation."
            yield result(f"future:{name}", "warn", int(late.sum()), 0, message, advice)
    if not found:
        yield result("future", "pass", 0, 0, "No date lies in the future.")


def dates(table: Table) -> Iterator[CheckResult]:
    """Dates that stand for missing: the zero of Unix clocks, and what lies outside 1900 to 2200."""
    found = False
    for name, seconds in calendars(table):
        odd = (seconds < _OLDEST) | (seconds > _LATEST) | (seconds == 0.0)
        usual = ~odd & ~np.isnan(seconds)
        if odd.any() and (not usual.any() or float(np.abs(seconds[usual]).min()) > 365 * _DAY):
            found = True
            message = f"{name!r} is {when(float(seconds[odd][0]))} or the like in {int(odd.sum())} rows."
            advice = "Such dates stand for missing: make them missing."
            yield result(f"dates:{name}", "warn", int(odd.sum()), 0, message, advice)
    if not found:
        yield result("dates", "pass", 0, 0, "No date stands for missing.")


def zones(table: Table) -> Iterator[CheckResult]:
    """Times with several offsets from UTC in one column, and local times without a zone, told by the hours that
    clocks skip in spring and repeat in autumn."""
    found = False
    columns = [column for column in table.inputs if column.kind in ("time", "text")]
    own = [table.columns[table.time]] if table.time and table.dated else []
    for column in (*own, *columns):
        offsets = _offsets(column)
        if len(offsets) > 1:
            found = True
            message = f"{column.name!r} mixes offsets from UTC: {', '.join(offsets[:6])}."
            advice = "They are compared as UTC. If they are meant as local times, convert them first."
            yield result(f"timezone:{column.name}", "warn", len(offsets), 1, message, advice)
    for name, seconds in calendars(table):
        days = _clock_changes(seconds)
        if days:
            found = True
            message = f"{name!r} repeats or skips an hour on {', '.join(days[:4])}: local time without a zone."
            advice = "Give it its zone and convert it to UTC: .dt.tz_localize(ZONE).dt.tz_convert('UTC')."
            yield result(f"timezone:{name}", "warn", len(days), 0, message, advice)
    if not found:
        yield result("timezone", "pass", 0, 0, "No sign of mixed time zones or of clock changes.")


def _offsets(column: Facts) -> list[str]:
    """Offsets from UTC at the ends of texts, or of time objects, in a sample of the rows."""
    if pd.api.types.is_datetime64_any_dtype(column.series.dtype):
        return []
    part = column.series.dropna().iloc[:: max(1, len(column.series) // 5000)].head(5000)
    if column.kind == "time":
        zones = {str(getattr(value, "tzinfo", None) and value.utcoffset()) for value in part}
        return sorted(zones) if len(zones) > 1 else []
    texts = [str(value) for value in part]
    if not texts or sum(text[:1].isdigit() and ":" in text for text in texts) < 0.9 * len(texts):
        return []
    found = [match[1] if (match := _OFFSET.search(text)) else "none" for text in texts]
    return sorted(set(found))


def _clock_changes(seconds: npt.NDArray[np.float64]) -> list[str]:
    """Sundays on which the hours before dawn have double or no rows, in a series that has as many in every hour."""
    seconds = seconds[~np.isnan(seconds)]
    if len(seconds) < 24 * 60:
        return []
    hours = np.floor(seconds / _HOUR).astype(np.int64)
    hours -= hours.min()
    if hours.max() > 40 * len(hours):
        return []
    counts = np.bincount(hours)
    usual = float(np.median(counts))
    if usual < 1 or (counts == usual).mean() < 0.95:
        return []
    first = int(np.floor(seconds.min() / _HOUR))
    found = []
    for hour in np.flatnonzero((counts >= 2 * usual) | (counts == 0)):
        at = datetime.fromtimestamp((first + int(hour)) * _HOUR, tz=timezone.utc)
        neighbours = counts[max(hour - 1, 0) : hour + 2]
        alone = len(neighbours) == 3 and neighbours[0] == usual == neighbours[2]
        # Clocks go back on a Sunday in autumn of either hemisphere and forward on one in spring.
        season = at.month in (3, 4, 9, 10, 11)
        if at.weekday() == 6 and at.hour <= 3 and season and alone:
            found.append(at.strftime("%Y-%m-%d"))
    return found


def gaps(table: Table) -> Iterator[CheckResult]:
    """The longest time without a row, as a share of the whole span, when steps are otherwise far shorter."""
    if table.times is None or not table.dated:
        return
    times = np.sort(table.times[table.times <= table.now + _SLACK_S])
    if len(times) < 100 or times[-1] <= times[0]:
        return
    limit = table.spec.limit("gaps")
    steps = np.diff(times)
    at = int(np.argmax(steps))
    share = float(steps[at] / (times[-1] - times[0]))
    # What is usual: of a series of single days with many rows each, the day.
    usual = float(np.quantile(steps[steps > 0], 0.98))
    verdict: Verdict = "warn" if share > limit and steps[at] > 10 * usual else "pass"
    message = (
        f"The longest time without a row is {span(float(steps[at]))}, from {when(times[at])} to {when(times[at + 1])}."
    )
    advice = "Look for a file or a partition that is missing."
    yield result("gaps", verdict, share, limit, message, advice)


def freshness(table: Table) -> Iterator[CheckResult]:
    if table.times is None or not table.dated or np.isnan(table.times).all():
        return
    limit = table.spec.limit("freshness")
    newest = float(np.nanmax(table.times))
    age = table.now - newest
    asked = f"at most {span(limit)} is asked for" if np.isfinite(limit) else "no limit is set"
    message = f"The newest row is of {when(newest)}, {span(max(age, 0.0))} ago; {asked}."
    advice = "Check what should have delivered since, or raise Assess(max_age=)."
    yield result("freshness", "warn" if age > limit else "pass", age, limit, message, advice)


def time_travel(table: Table) -> Iterator[CheckResult]:
    """Columns whose times lie after the time of the row: what they tell was not known then."""
    if table.times is None or not table.dated:
        return
    limit, found = table.spec.limit("time_travel"), False
    for column in table.inputs:
        if column.kind != "time" or column.values is None:
            continue
        late = column.values > table.times + 1.0
        share = float(late.mean())
        if share > limit:
            found = True
            ahead = float(np.median(column.values[late] - table.times[late]))
            message = f"{column.name!r} lies after the row's time {table.time!r} in {share:.1%} of the rows, by {span(ahead)}."
            advice = (
                "It, and what was filled in with it, was not known at that time: drop it, or join as of the row's time."
            )
            yield result(f"time_travel:{column.name}", "warn", share, limit, message, advice)
    if not found:
        yield result("time_travel", "pass", 0, limit, "No column's times lie after the row's.")


def when(seconds: float) -> str:
    """Seconds since 1970 as a date and time in UTC."""
    try:
        return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.4g} seconds from 1970"


def span(seconds: float) -> str:
    """A duration in words."""
    for unit, size in (("years", 365.25 * _DAY), ("days", _DAY), ("hours", _HOUR), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
