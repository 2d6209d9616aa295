"""One false-alarm budget a deployment, split over its detectors so that the sum never exceeds it.

Each detector keeps ``P(false alarm in a window) <= its share`` (one-shot tests, Bonferroni) or an expected time to a false
alarm of at least ``1 / share`` windows (bets: e-detectors, Shin, Ramdas and Rinaldo, arXiv:2203.03532). Either way the
expected number of false alarms grows by at most the share a window, and expected numbers add up.
"""

from __future__ import annotations

from dataclasses import dataclass

MONTH_S = 30 * 86_400.0
_ALPHA_RANGE = (1e-8, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Parts of the budget; they sum to at most 1.

    Attributes
    ----------
    outcomes : the loss measured with labels, the alarm that may retrain by itself
    columns : one-shot tests of each column and of the score: values, missing, infinite, range, unseen categories
    persistent : bets on each column's and the score's histogram
    joint : bets on a classifier over all columns
    """

    outcomes: float = 0.5
    columns: float = 0.3
    persistent: float = 0.1
    joint: float = 0.1


SHARES = Shares()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many false alarms a deployment may cost.

    Attributes
    ----------
    alpha : a window of ``window_rows`` rows, over all detectors
    per_month : the same by time instead; ``alpha`` is then ignored
    """

    alpha: float = 1e-3
    per_month: float | None = None
    window_rows: int = 1000

    def of(self, span_s: float, rows: int) -> float:
        """False-alarm probability that ``rows`` rows served over ``span_s`` seconds may spend, all detectors together."""
        if self.per_month is None:
            return self.alpha * rows / self.window_rows
        low, high = _ALPHA_RANGE
        return min(max(self.per_month * max(span_s, 0.0) / MONTH_S, low), high)

    def alarms_per_month(self, span_s: float, rows: int) -> float | None:
        """Expected false alarms in 30 days of traffic like this at the most; ``None`` when no time passed."""
        if self.per_month is not None:
            return self.per_month
        return self.of(span_s, rows) * MONTH_S / span_s if span_s > 0 else None
