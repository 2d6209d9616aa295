"""Cron expressions: what fits, what comes next, what is refused."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from raymlops.errors import ConfigError
from raymlops.schedule import Cron


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("text", "after", "then"),
    [
        ("* * * * *", "2026-01-01T00:00:00", "2026-01-01T00:01:00"),
        ("0 3 * * mon", "2026-01-01T00:00:00", "2026-01-05T03:00:00"),
        ("0 3 * * 7", "2026-01-01T00:00:00", "2026-01-04T03:00:00"),
        ("*/20 9-10 * * *", "2026-01-01T09:40:30", "2026-01-01T10:00:00"),
        ("5/25 0 * * *", "2026-01-01T00:30:00", "2026-01-01T00:55:00"),
        ("0 0 29 feb *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("0 0 13 * fri", "2026-01-01T00:00:00", "2026-01-02T00:00:00"),
        ("0 0 13 * fri", "2026-01-09T00:00:00", "2026-01-13T00:00:00"),
        ("0 0 13 * *", "2026-01-01T00:00:00", "2026-01-13T00:00:00"),
        ("30 4 1,15 jan-mar *", "2026-03-15T04:30:00", "2027-01-01T04:30:00"),
        ("@weekly", "2026-01-01T12:00:00", "2026-01-04T00:00:00"),
    ],
)
def test_the_next_fitting_minute(text: str, after: str, then: str) -> None:
    assert Cron.parse(text).next_after(at(after)) == at(then)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 3 * *", "has 4 fields: give five"),
        ("60 3 * * *", "'60' is no minute. Give 0 to 59"),
        ("0 3 * moon *", "'moon' is no month. Give 1 to 12, or jan, feb"),
        ("0 3 31 feb *", "never comes"),
        ("0 5-3 * * *", "'5-3' is an empty hour"),
        ("*/0 3 * * *", "'*/0' is an empty minute"),
        ("*-3 3 * * *", "'*-3' is no minute"),
        (5, "schedule=5 is not a schedule"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cron.parse(text)
    assert sentence in str(caught.value)
