"""Service levels: how fast the error budget burns, over several windows at once.

A budget of ``1 - target`` of the requests in a period may fail or be slow. A burn rate of 1 spends it exactly; an alert
needs a rate above its factor in a long window, so that it matters, and in a short one, so that it ends when the trouble
does (Google, "The Site Reliability Workbook", 2018, chapter 5: 14.4 over 1 h and 5 min, 6 over 6 h and 30 min, 1 over
3 d and 6 h, for a period of 30 days; windows scale with the period). The two fast ones hold rollouts and retrainings.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymlops.clock import seconds
from raymlops.errors import ConfigError
from raymlops.serving.analysis import LATENCY_EDGES_MS, VariantStats

_MONTH_S = 30 * 86_400.0
_RULES = ((14.4, 3600.0, 300.0, True), (6.0, 21_600.0, 1800.0, True), (1.0, 259_200.0, 21_600.0, False))
"""Factor, long and short window in seconds for 30 days, and whether it holds changes back."""
_SLOTS = 12
_LEAST_BAD = 10
"""One failure in a quiet hour is a rate of any height; with fewer bad requests than this there is no alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """What was promised: ``target`` of the requests answered, and within ``latency_ms``, over ``period``.

    Attributes
    ----------
    latency_ms : a slower answer counts as bad; rounded up to the next bucket of the latency histogram (a third wider
        than the one before). ``None`` counts errors only
    target : share of good requests
    period : over which the budget is counted, seconds or ``"30d"``

    Raises
    ------
    ConfigError : names the field, what was given and what would be accepted
    """

    latency_ms: float | None = None
    target: float = 0.999
    period: float | str = "30d"

    def __post_init__(self) -> None:
        number = isinstance(self.target, (int, float)) and not isinstance(self.target, bool)
        if not number or not 0.5 <= self.target < 1.0:
            raise ConfigError(f"target={self.target!r} leaves no budget to watch: give a share from 0.5 to below 1.")
        if self.latency_ms is not None and not 0 < self.latency_ms <= LATENCY_EDGES_MS[-1]:
            raise ConfigError(
                f"latency_ms={self.latency_ms!r} cannot be measured: give more than 0 up to {LATENCY_EDGES_MS[-1]:g}."
            )
        if seconds(self.period, "period") < 3600:
            raise ConfigError(f"period={self.period!r} is too short for its windows: give at least '1h'.")

    def bad(self, stats: VariantStats) -> int:
        """Requests without an answer, or with one that came late."""
        if self.latency_ms is None:
            return stats.errors
        late = sum(stats.latency[bisect.bisect_left(LATENCY_EDGES_MS, self.latency_ms) + 1 :])
        # A failed request that was also slow counts twice: the histogram does not tell, and too many is the safe side.
        return min(stats.requests, stats.errors + late)


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """One rule's rates, as multiples of what the budget allows."""

    factor: float
    long_s: float
    long_rate: float
    short_rate: float
    alert: bool
    holds: bool

    def __str__(self) -> str:
        return f"{self.long_rate:.1f} times too fast over {self.long_s / 3600:.3g} h, {self.short_rate:.1f} lately"


class ErrorBudget:
    """Counts good and bad requests in rings of fixed size, one for each window of each rule. Not thread-safe."""

    def __init__(self, level: ServiceLevel) -> None:
        self.level = level
        scale = seconds(level.period, "period") / _MONTH_S
        self._rules = [(factor, long * scale, short * scale, holds) for factor, long, short, holds in _RULES]
        spans = sorted({span for _, long, short, _ in self._rules for span in (long, short)})
        self._rings: dict[float, dict[int, tuple[int, int]]] = {span: {} for span in spans}

    def add(self, stats: VariantStats, now: float) -> None:
        """Take what was answered since the last call, at ``now`` (wall seconds)."""
        bad = self.level.bad(stats)
        if stats.requests == 0:
            return
        for span, ring in self._rings.items():
            slot = int(now / span * _SLOTS)
            requests, held = ring.get(slot, (0, 0))
            ring[slot] = (requests + stats.requests, held + bad)
            for old in [key for key in ring if key <= slot - _SLOTS]:
                del ring[old]

    def burns(self, now: float) -> tuple[Burn, ...]:
        """Every rule's rates at ``now``, the fastest first."""
        found = []
        for factor, long, short, holds in self._rules:
            requests, bad = self._count(long, now)
            rates = [self._rate(*self._count(span, now)) for span in (long, short)]
            alert = bad >= _LEAST_BAD and min(rates) > factor and requests > 0
            found.append(
                Burn(factor=factor, long_s=long, long_rate=rates[0], short_rate=rates[1], alert=alert, holds=holds)
            )
        return tuple(found)

    def burning(self, now: float) -> str:
        """Why changes must wait, or ``""``."""
        return next((str(burn) for burn in self.burns(now) if burn.alert and burn.holds), "")

    def _count(self, span: float, now: float) -> tuple[int, int]:
        newest = int(now / span * _SLOTS)
        held = [entry for slot, entry in self._rings[span].items() if newest - _SLOTS < slot <= newest]
        return sum(entry[0] for entry in held), sum(entry[1] for entry in held)

    def _rate(self, requests: int, bad: int) -> float:
        return bad / requests / (1.0 - self.level.target) if requests else 0.0

    def to_dict(self) -> dict[str, Any]:
        rings = {
            repr(span): {str(slot): list(entry) for slot, entry in ring.items()} for span, ring in self._rings.items()
        }
        return {"rings": rings}

    def load(self, body: Mapping[str, Any]) -> None:
        """Go on from :meth:`to_dict`; windows of another service level are left out."""
        for span, ring in self._rings.items():
            held = body["rings"].get(repr(span), {})
            ring.update({int(slot): (entry[0], entry[1]) for slot, entry in held.items()})
