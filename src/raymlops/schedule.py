"""Cron expressions of five fields: when the next minute that fits comes. Times are UTC, so no hour is missing or double."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from raymlops.errors import ConfigError

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, start=1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_HORIZON_DAYS = 8 * 366 + 1
"""A 29 February may be eight years away (2096 to 2104)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A parsed expression: the values each field accepts; days of the week from 0 (Sunday) to 6.

    As in Vixie's cron a day fits when either day field fits, if both are restricted, and when both fit otherwise.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, text: str, field: str = "schedule") -> Cron:
        """From ``"minute hour day-of-month month day-of-week"``: ``*``, numbers, names, ``a-b``, ``/step``, lists.

        Raises
        ------
        ConfigError : names the part that does not fit, or says that no day ever does
        """
        if not isinstance(text, str):
            raise ConfigError(f"{field}={text!r} is not a schedule: give a cron expression such as '0 3 * * mon'.")
        parts = _SHORT.get(text.strip().lower(), text).lower().split()
        if len(parts) != len(_FIELDS):
            raise ConfigError(
                f"{field}={text!r} has {len(parts)} fields: give five (minute, hour, day of month, month, day of week), "
                "such as '0 3 * * mon'."
            )
        sets = [_values(part, spec, f"{field}={text!r}") for part, spec in zip(parts, _FIELDS, strict=True)]
        cron = cls(
            minutes=sets[0],
            hours=sets[1],
            days=sets[2],
            months=sets[3],
            weekdays=frozenset(day % 7 for day in sets[4]),
            either_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
        )
        cron._next_day(datetime(2096, 3, 1, tzinfo=timezone.utc), f"{field}={text!r}")
        return cron

    def next_after(self, at: float) -> float:
        """The first fitting minute later than ``at``; both in wall seconds."""
        start = datetime.fromtimestamp(at - at % 60, tz=timezone.utc) + timedelta(minutes=1)
        day = start.replace(hour=0, minute=0)
        while True:
            day = self._next_day(day, "schedule")
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    found = day.replace(hour=hour, minute=minute)
                    if found >= start:
                        return found.timestamp()
            day += timedelta(days=1)

    def _next_day(self, day: datetime, what: str) -> datetime:
        for _ in range(_HORIZON_DAYS):
            if day.month in self.months and self._day_fits(day):
                return day
            day += timedelta(days=1)
        raise ConfigError(f"{what} never comes: no such day is in any of its months. Give days that its months have.")

    def _day_fits(self, day: datetime) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week


def _values(part: str, spec: tuple[str, int, int, dict[str, int]], what: str) -> frozenset[int]:
    name, low, high, _ = spec
    found: set[int] = set()
    for item in part.split(","):
        match = re.fullmatch(r"(\*|[a-z0-9]+)(?:-([a-z0-9]+))?(?:/(\d+))?", item)
        if match is None or (match[1] == "*" and match[2]):
            raise ConfigError(f"{what}: {item!r} is no {name}. Give *, a number, a-b, or one of these with /step.")
        step = int(match[3] or 1)
        if match[1] == "*":
            first, last = low, high
        else:
            first = _number(match[1], spec, what)
            # a/step means from a to the end.
            last = _number(match[2], spec, what) if match[2] else high if match[3] else first
        if step < 1 or last < first:
            raise ConfigError(f"{what}: {item!r} is an empty {name}. Give a range that rises and a step of at least 1.")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, spec: tuple[str, int, int, dict[str, int]], what: str) -> int:
    name, low, high, names = spec
    value = names.get(text, int(text) if text.isdigit() else -1)
    if not low <= value <= high:
        known = f", or {', '.join(names)}" if names else ""
        raise ConfigError(f"{what}: {text!r} is no {name}. Give {low} to {high}{known}.")
    return value
