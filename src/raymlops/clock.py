"""Where the time comes from: one protocol, so that tests and the simulator can own it."""

from __future__ import annotations

import re
import time
from typing import Protocol

from raymlops.errors import ConfigError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Clock(Protocol):
    """Wall time for records, monotonic time for durations; both in seconds."""

    def now(self) -> float: ...

    def monotonic(self) -> float: ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to.

    >>> clock = ManualClock(100.0)
    >>> clock.advance(2.5)
    >>> clock.now()
    102.5
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


def seconds(value: float | int | str, field: str) -> float:
    """A duration in seconds from a number of seconds or a string such as ``"7d"``, ``"1.5h"``, ``"250ms"``.

    >>> seconds("1h", "cooldown")
    3600.0

    Raises
    ------
    ConfigError : anything else, or a negative duration
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        result = float(value)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", str(value))
        if match is None:
            raise ConfigError(
                f"{field}={value!r} is not a duration: give seconds, or a number with ms, s, m, h, d or w."
            )
        result = float(match[1]) * _UNITS[match[2]]
    if not 0 <= result < float("inf"):
        raise ConfigError(f"{field}={value!r} is not a duration: it must be finite and not negative.")
    return result
