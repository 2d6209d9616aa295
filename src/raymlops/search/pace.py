"""How long a fit takes on more rows and what it gains there, as the climbs of a search have shown. Pure."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

REDUCTION = 3
_RECENT_FITS = 5
# A fit's time grows a little faster than its rows, unless climbs show more; a second thread does not halve it.
_OVER_LINEAR, _MOST_GROWTH, _SPEEDUP = 1.1, 2.0, 0.7
_CLEAR_S = 0.1
# What a step of three times the rows gains, over the step before: of models of one capacity, and of those that grow with the rows.
_FLATTER, _FLATTER_GROWING = 0.7, 0.9


def refit_cost(more: float, threads: int) -> float:
    """Time of a fit on ``more`` times the rows with ``threads``, over that of a fit with one.

    >>> round(refit_cost(1.0, 1), 2), round(refit_cost(1.2, 2), 2)
    (1.0, 0.72)
    """
    return float(more**_OVER_LINEAR / (1.0 + _SPEEDUP * (threads - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastFit:
    """The fit that makes the search's model.

    Attributes
    ----------
    params : of the proposal, without what a fit on fewer rows has fixed
    more : all rows over those that the trial has seen
    over : times the time left that it would take on all its rows; 1 when it fits in
    growth : power of the rows with which its time grows
    until_s : boosting must end after this time; ``None`` without a time budget
    reach : share of all rows that the trial asks for, under 1 for a window of the newest
    """

    params: Mapping[str, Any]
    more: float = 1.0
    over: float = 1.0
    growth: float = _OVER_LINEAR
    until_s: float | None = None
    reach: float = 1.0

    def pace(self, quickest: float) -> tuple[float, float]:
        """How many times faster than asked for to learn, at most ``quickest``, and then on which share of all rows.

        >>> LastFit(params={}, over=8.0, growth=1.0).pace(2.0)
        (2.0, 0.25)
        """
        hurry = min(self.over, max(1.0, quickest))
        return hurry, self.reach * (hurry / self.over) ** (1.0 / self.growth)


@dataclass(frozen=True, slots=True)
class _Fit:
    share: float
    fit_s: float
    score: float


class Pace:
    """Remembers every fit: its share of the rows, its seconds, its score (more is better).

    Parameters
    ----------
    last : time of a last fit over that of a worker's on all rows, see :func:`refit_cost`
    """

    def __init__(self, last: float) -> None:
        self._last = last
        self._fits: dict[int, list[_Fit]] = {}
        self._family: dict[int, str] = {}
        self._reach: dict[int, float] = {}
        self._full: set[int] = set()
        self._growing: set[int] = set()
        self._quickest: dict[int, float] = {}
        self._recent: dict[tuple[str, float], deque[float]] = {}
        self._known: dict[tuple[str, str], Any] = {}

    def told(
        self,
        number: int,
        family: str,
        share: float,
        fit_s: float,
        score: float,
        *,
        full: bool = False,
        growing: bool = False,
        quickest: float = 1.0,
        reach: float = 1.0,
    ) -> None:
        """One fit of a trial ended.

        Parameters
        ----------
        full : on all the rows it asks for
        growing : it finds its own size, as boosting with early stopping does
        quickest : times faster that it could learn, see :meth:`LastFit.pace`
        reach : share of all rows that the trial asks for: ``share`` holds no more of them
        """
        share = min(share, reach)
        self._quickest[number], self._reach[number] = quickest, reach
        if growing:
            self._growing.add(number)
        self._family[number] = family
        self._fits.setdefault(number, []).append(_Fit(share, fit_s, score))
        self._recent.setdefault((family, share), deque(maxlen=_RECENT_FITS)).append(fit_s)
        if full:
            self._full.add(number)
        self._known.clear()

    def expect(self, number: int, family: str, share: float) -> float | None:
        """Seconds of a fit: by what this trial took on fewer rows, else by its family; ``None`` when nothing is known of that."""
        if number in self._fits:
            before = self._fits[number][-1]
            return float(before.fit_s * (min(share, self._reach[number]) / before.share) ** self.growth(family))
        known = {at: median(times) for (name, at), times in self._recent.items() if name == family}
        if not known:
            return None
        nearest = min(known, key=lambda at: abs(math.log(at / share)))
        return float(known[nearest] * (share / nearest) ** self.growth(family))

    def growth(self, family: str) -> float:
        """The power of the rows with which a fit's time grows. Boosting with early stopping takes more rounds on more rows."""
        if ("growth", family) not in self._known:
            seen = [
                math.log(after.fit_s / before.fit_s) / math.log(after.share / before.share)
                for before, after in self._steps(family)
                if before.fit_s > _CLEAR_S
            ]
            # Small fits are mostly what every fit costs, which says nothing of large ones.
            self._known["growth", family] = min(max(median(seen), _OVER_LINEAR), _MOST_GROWTH) if seen else _OVER_LINEAR
        return float(self._known["growth", family])

    def last_s(self, number: int, family: str) -> float:
        """Seconds of a last fit on all its rows; 0 when nothing is known."""
        return self._last * (self.expect(number, family, 1.0) or 0.0)

    def promise(self, number: int, seconds: float) -> float:
        """The score, more being better, that a trial is expected to have on as many rows as a last fit of ``seconds`` takes.

        Each step of three times the rows gains 0.7 of what the step before gained, as learning curves flatten, or 0.9 where the
        model grows with its rows.
        """
        family, latest = self._family[number], self._fits[number][-1]
        if number in self._full:
            return latest.score
        needed = self.last_s(number, family) / self._quickest[number]
        flatter = _FLATTER_GROWING if number in self._growing else _FLATTER
        able = 1.0 if needed <= seconds else (seconds / needed) ** (1.0 / self.growth(family))
        steps = max(0.0, math.log(able * self._reach[number] / latest.share) / math.log(REDUCTION))
        return latest.score + self._gain(number) * flatter * (1.0 - flatter**steps) / (1.0 - flatter)

    def last_fit(self, number: int, family: str, params: Mapping[str, Any], left: float, least: float) -> LastFit:
        """How a trial's configuration is fitted in ``left`` seconds, on no smaller share of all rows than ``least``."""
        growth, reach = self.growth(family), self._reach.get(number, 1.0)
        most = max(1.0, reach / least) ** growth
        over = min(max(1.0, self.last_s(number, family) / left), most)
        return LastFit(params=params, more=self.more(number), over=over, growth=growth, until_s=left, reach=reach)

    def reach(self, number: int) -> float:
        """Share of all rows that a trial asks for."""
        return self._reach.get(number, 1.0)

    def unclimbed(self, number: int) -> bool:
        """The trial's model grows with its rows, and how much that gains no trial of its family has shown."""
        return number in self._growing and not self._steps(self._family[number])

    def more(self, number: int) -> float:
        """All rows over those that a trial has seen."""
        return 1.0 / self._fits[number][-1].share if number in self._fits else 1.0

    def _gain(self, number: int) -> float:
        """What the last step of three times the rows gained this trial, else its family's others, else all others; 0 when unknown."""
        fits = self._fits[number]
        if len(fits) > 1:
            return max(0.0, fits[-1].score - fits[-2].score)
        family = self._family[number]
        if ("gain", family) not in self._known:
            steps = self._steps(family) or [step for other in set(self._family.values()) for step in self._steps(other)]
            gains = [after.score - before.score for before, after in steps]
            self._known["gain", family] = max(0.0, median(gains)) if gains else 0.0
        return float(self._known["gain", family])

    def _steps(self, family: str) -> list[tuple[_Fit, _Fit]]:
        return [
            (before, after)
            for number, fits in self._fits.items()
            if self._family[number] == family
            for before, after in itertools.pairwise(fits)
            if after.share > before.share
        ]
