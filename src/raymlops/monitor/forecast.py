"""When the next refit is due, from how earlier versions aged: an interval with its censoring, or ``unforecastable``.

Two views of the same history. Excess loss by age, monotone (isotonic regression: Barlow et al. 1972), read off where it
crosses what is accepted; it counts only if it predicts a version it has not seen better than a constant does. And the
survival of versions until their loss left its limits (Kaplan and Meier 1958), with Greenwood's variance on the log-log
scale, whose median has an interval (Brookmeyer and Crowley 1982) also when many versions were replaced while still well.
Ageing of models as a thing to be learnt from refits: Vela et al., Scientific Reports 12, 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_FAILED = 3
_LEAST_BLOCKS = 4
_Z = 1.2815515655446004  # 80 % two-sided


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One version that served.

    Attributes
    ----------
    age_s : how long it served until its loss left its limits, or until it was replaced or now
    failed : the loss left its limits; otherwise the life is censored
    ages_s, excess : block by block, age and mean loss over the promised one, relative (0.1 = 10 % more)
    """

    version: int
    age_s: float
    failed: bool
    ages_s: tuple[float, ...] = ()
    excess: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """When the present version's refit is due, in seconds after its training.

    Attributes
    ----------
    due_s : best guess; ``None`` when unforecastable
    low_s, high_s : 80 % interval; ``high_s`` is ``None`` when the history gives no upper end
    lives, censored : versions looked at, and how many of them were replaced while still well
    method : ``ageing`` (excess loss by age), ``survival``, or ``unforecastable``
    """

    due_s: float | None
    low_s: float | None
    high_s: float | None
    lives: int
    censored: int
    method: str
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(lives: Sequence[Life], tolerance: float = 0.10) -> Forecast:
    """When a version trained like the earlier ones is due; ``tolerance`` is the accepted relative rise of the loss."""
    lives = [life for life in lives if life.age_s > 0]
    failed = sum(life.failed for life in lives)
    censored = len(lives) - failed
    low, median, high = median_interval([life.age_s for life in lives], [life.failed for life in lives])
    crossing = _ageing(lives, tolerance)
    told = f"{len(lives)} versions, {censored} of them replaced while still within their limits"
    if crossing is not None:
        lower = crossing if low is None else min(low, crossing)
        upper = None if high is None else max(high, crossing)
        note = f"the loss is {tolerance:.0%} over its promise at an age of {span(crossing)} ({told})"
        return _made(crossing, lower, upper, lives, censored, "ageing", note)
    if median is not None and failed >= _LEAST_FAILED:
        note = f"half of the versions left their limits by an age of {span(median)} ({told})"
        return _made(median, low, high, lives, censored, "survival", note)
    note = f"unforecastable: age does not tell the loss, and too few versions left their limits ({told})"
    return _made(None, None, None, lives, censored, "unforecastable", note)


def _made(
    due: float | None,
    low: float | None,
    high: float | None,
    lives: Sequence[Life],
    censored: int,
    method: str,
    note: str,
) -> Forecast:
    return Forecast(due_s=due, low_s=low, high_s=high, lives=len(lives), censored=censored, method=method, note=note)


def survival(ages: Sequence[float], failed: Sequence[bool]) -> tuple[NDArray[np.float64], ...]:
    """Kaplan-Meier: failure ages, survival after each, and its 80 % interval (log-log scale, Greenwood's variance)."""
    order = np.argsort(ages, kind="stable")
    at, events = np.asarray(ages, dtype=np.float64)[order], np.asarray(failed, dtype=bool)[order]
    times, left, alive, variance = [], [], 1.0, 0.0
    low: list[float] = []
    high: list[float] = []
    for time in np.unique(at[events]):
        risk, deaths = int((at >= time).sum()), int((events & (at == time)).sum())
        alive *= 1 - deaths / risk
        variance += deaths / (risk * (risk - deaths)) if risk > deaths else math.inf
        times.append(float(time))
        left.append(alive)
        if alive <= 0 or alive >= 1 or not math.isfinite(variance):
            low.append(0.0 if alive <= 0 else alive)
            # After the last failure of all nothing is left to estimate the upper end with: it stays where it was.
            high.append(high[-1] if alive <= 0 and high else alive)
            continue
        error = _Z * math.sqrt(variance) / abs(math.log(alive))
        low.append(alive ** math.exp(error))
        high.append(alive ** math.exp(-error))
    return tuple(np.asarray(part) for part in (times, left, low, high))


def median_interval(ages: Sequence[float], failed: Sequence[bool]) -> tuple[float | None, float | None, float | None]:
    """Lower end, median and upper end of the age at failure; ``None`` where the curve does not come down to a half."""
    times, left, low, high = survival(ages, failed)

    def first(curve: NDArray[np.float64]) -> float | None:
        below = np.flatnonzero(curve <= 0.5)
        return float(times[below[0]]) if below.size else None

    return first(low), first(left), first(high)


def _ageing(lives: Sequence[Life], tolerance: float) -> float | None:
    """Age at which the monotone fit of excess loss crosses the tolerance, if age predicts unseen versions' losses."""
    aged = [life for life in lives if len(life.ages_s) >= 2]
    if len(aged) < 3 or sum(len(life.ages_s) for life in aged) < _LEAST_BLOCKS * 3:
        return None
    by_age = by_mean = 0.0
    for held in aged:
        others = [life for life in aged if life is not held]
        x, y = _pooled(others)
        ages, excess = np.asarray(held.ages_s), np.asarray(held.excess)
        by_age += float(((np.interp(ages, x, isotonic(y)) - excess) ** 2).sum())
        by_mean += float(((y.mean() - excess) ** 2).sum())
    if by_age >= by_mean:
        return None
    x, y = _pooled(aged)
    above = np.flatnonzero(isotonic(y) > tolerance)
    return float(x[above[0]]) if above.size and x[above[0]] > 0 else None


def _pooled(lives: Sequence[Life]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = np.concatenate([np.asarray(life.ages_s, dtype=np.float64) for life in lives])
    y = np.concatenate([np.asarray(life.excess, dtype=np.float64) for life in lives])
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def isotonic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing sequence ``(n,)`` nearest to ``values`` in squares (pool adjacent violators)."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        means.append(float(value))
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            size = sizes[-2] + sizes[-1]
            means[-2:] = [(means[-2] * sizes[-2] + means[-1] * sizes[-1]) / size]
            sizes[-2:] = [size]
    return np.repeat(means, sizes)


def span(duration_s: float) -> str:
    """A duration for people.

    >>> span(5400.0)
    '1.5 h'
    """
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if duration_s >= size:
            return f"{duration_s / size:.3g} {unit}"
    return f"{duration_s:.3g} s"
