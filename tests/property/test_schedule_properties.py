"""What must hold for every schedule."""

from __future__ import annotations

from datetime import datetime, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.schedule import Cron


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    spread = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    item = st.one_of(st.just("*"), number.map(str), spread, st.integers(1, 20).map(lambda step: f"*/{step}"))
    return st.lists(item, min_size=1, max_size=3).map(",".join)


# Days to the 28th only: others may never come, which parse refuses.
schedules = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7)).map(" ".join)


def fits(cron: Cron, at: float) -> bool:
    when = datetime.fromtimestamp(at, tz=timezone.utc)
    days = (when.day in cron.days, when.isoweekday() % 7 in cron.weekdays)
    day = any(days) if cron.either_day else all(days)
    return when.minute in cron.minutes and when.hour in cron.hours and when.month in cron.months and day


@given(text=schedules, at=st.integers(0, 4_000_000_000))
@settings(max_examples=150, deadline=None)
def test_the_next_time_fits_and_nothing_between_does(text: str, at: int) -> None:
    cron = Cron.parse(text)
    then = cron.next_after(at)
    assert then > at
    assert then % 60 == 0
    assert fits(cron, then)
    first = at - at % 60 + 60
    assert not any(fits(cron, minute) for minute in range(first, min(int(then), first + 3 * 86_400), 60))
    assert cron.next_after(then - 1) == then
    assert cron.next_after(then) > then
