"""When the next retraining pays for itself, from what cheap refits would have gained so far. Pure.

A champion that is left alone loses ``excess`` more, a row, than a fresh model would; a retraining costs ``cost``. Both
are counted in rows at the usual loss, so 10 % excess over 100 rows is a loss of 10. The rule is to retrain when what was
lost since the last retraining has reached the cost: for an excess that grows by ``r`` a row that is after ``sqrt(2 * cost / r)``
rows, the period of least mean cost (the economic-order-quantity argument: Harris 1913), and it needs no forecast of ``r``;
in hindsight it is never worse than twice the best (ski rental: Karlin et al., Algorithmica 3, 1988). Weighing a refit's
cost against staleness: Mahadevan and Mathioudakis, CARA, arXiv:2310.04216; Regol et al., arXiv:2505.14903.

The excess is measured, not read off the champion's own loss: a probe (``search/probe.py``) compares the champion with a
refit on the same rows, so that a hard season, which is hard for both, is no excess, and a reference that was learnt in
one hides none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymlops.search.probe import Probe

_FIRST = 3
_CLOSER = 1 / 8
_FURTHER = 1 / 4
"""The next probe comes after at least an eighth more rows than this one had, and at most a quarter: what a probe has shown
holds for as long as nothing changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What probes found of the champion. Ages are labelled rows since its training or the last attempt to replace it.

    Attributes
    ----------
    rows : age at which the newest probe was asked for, 0 before the first
    newest : that probe; ``None`` before the first, or when it failed
    excess : relative excess loss of the champion at that age over a model that is fresh
    lost : excess loss summed up to that age, in rows at the usual loss
    cost : of a retraining, in the same unit; 0 where nobody weighs it
    least : an excess below this is not worth a new version, however many rows it is lost over
    next_rows : age from which the next probe is worth its fit
    episode : drift episode in which the newest probe was asked for
    barren : probes in a row of that episode that showed no gain
    """

    rows: int = 0
    newest: Probe | None = None
    excess: float = 0.0
    lost: float = 0.0
    cost: float = 0.0
    least: float = 0.0
    next_rows: int = 0
    episode: str | None = None
    barren: int = 0

    @property
    def ready(self) -> bool:
        """What was lost has reached the cost, and that a refit is better, and by enough, is more than chance."""
        known = self.newest is not None and self.newest.sure and self.cost > 0
        return known and self.lost >= self.cost and self.excess >= self.least

    @property
    def error(self) -> float:
        """Standard error of ``excess``."""
        if self.newest is None:
            return 0.0
        return self.newest.standard_error / self.newest.usual * self.rows / max(self.rows - self.newest.rows, 1)

    def probed(
        self, found: Probe | None, rows: int, cost: float | None, *, least: float = 0.0, episode: str | None = None
    ) -> Pace:
        """Take in the probe that was asked for at age ``rows``; ``None`` when it failed.

        ``cost`` is that of a retraining, in rows at the usual loss. The refit is itself half of the compared rows old when it
        is compared, and the champion that much younger than now: with an excess that grows evenly, the excess now is the gain
        times ``rows / (rows - compared)``.
        """
        barren = self.barren if episode == self.episode else 0
        if found is None:
            return replace(self, rows=rows, newest=None, next_rows=2 * rows, episode=episode, barren=barren)
        grown = rows / max(rows - found.rows, 1)
        excess = found.gain / found.usual * grown
        lost = max(self.lost + (max(self.excess, 0.0) + excess) / 2 * max(rows - self.rows, 0), 0.0)
        after = replace(
            self,
            rows=rows,
            newest=found,
            excess=excess,
            lost=lost,
            cost=cost or 0.0,
            least=least,
            episode=episode,
            barren=0 if found.gains else barren + 1,
        )
        left = after._left(max(excess, 0.0) + after.error)
        step = min(max(math.inf if left is None else left, _CLOSER * rows), _FURTHER * rows)
        return replace(after, next_rows=rows + math.ceil(step))

    def due(self) -> tuple[float | None, float | None, float | None]:
        """Age in rows at which a retraining will pay: if the excess is a standard error more than measured, as
        measured, and an error less; ``None`` for never."""
        if self.newest is None or self.cost <= 0:
            return None, None, None
        left = [self._left(excess) for excess in (self.excess + self.error, self.excess, self.excess - self.error)]
        low, middle, high = (None if item is None else self.rows + item for item in left)
        return low, middle, high

    def _left(self, excess: float) -> float | None:
        """Rows until cost and least excess are reached when it is this now, and has grown to it evenly from 0."""
        if excess <= 0:
            return None
        missing, growth = max(self.cost - self.lost, 0.0), excess / max(self.rows, 1)
        until_cost = (math.sqrt(excess * excess + 2 * growth * missing) - excess) / growth
        return max(until_cost, (self.least - excess) / growth)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Pace:
        newest = body.get("newest")
        return cls(**{**body, "newest": None if newest is None else Probe.from_dict(newest)})


def renewed(pace: Pace, promoted: bool) -> Pace:
    """After a retraining: its successor is looked at when a third as old as this champion became, and where nothing was
    promoted, or the retraining has only begun, the champion when as old again."""
    reached = max(pace.rows, pace.next_rows if pace.newest is None else 0)
    return Pace(next_rows=reached // _FIRST if promoted else reached)
