"""What a search found: its trials, why some failed, and the rule that picks the one to promote."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from raymlops.errors import SearchFailed
from raymlops.search.cost import Cost, Prefer, price, tolerance
from raymlops.search.objective import Mode

_SURE = 2.0

TrialStatus = Literal["done", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration and what came of it.

    Attributes
    ----------
    params : the family's parameters, with ``recent`` (share of the newest rows learnt from) and what fitting fixed
    score, train_score : on the validation rows and on the rows learnt from; NaN when failed
    gap : over-fitting, see :meth:`Objective.gap`
    fit_s : seconds of all its fits
    status : ``done`` at full size, ``stopped`` early on a sample, or ``failed`` with ``error``
    curve : score by share of the train rows, in the order of the fits
    groups : the score on each of a few equal groups of validation rows, the same rows for every trial; may be empty
    wrongs : mean cost of the answers on those groups at the threshold that is cheapest on all; only where costs are given
    cost : what it takes to serve it; ``None`` before full size
    """

    number: int
    family: str
    params: Mapping[str, Any]
    score: float = float("nan")
    train_score: float = float("nan")
    gap: float = float("nan")
    fit_s: float = 0.0
    status: TrialStatus = "done"
    error: str = ""
    curve: tuple[tuple[float, float], ...] = ()
    groups: tuple[float, ...] = ()
    wrongs: tuple[float, ...] = ()
    cost: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """All trials of one search, in the order they ended.

    Attributes
    ----------
    max_gap : the gate's limit: a trial beyond it is chosen only when there is no other, since the gate would refuse it
    prefer : ``"score"`` takes the best score; the others take, among the trials whose score is not told apart from it,
        the cheapest to serve: ``"balanced"`` within one standard error, ``"fast"`` and ``"small"`` within two
    ended : why the search ended, for a person
    seconds : that the search took
    """

    metric: str
    mode: Mode
    trials: tuple[Trial, ...]
    max_gap: float | None = None
    prefer: Prefer = "score"
    ended: str = ""
    seconds: float = 0.0

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Trials with a score, best first: full size before stopped, within the gap before beyond it.

        A stopped trial that is better than all of full size by more than two standard errors stands among those: more
        rows will make it better still.
        """
        sign = -1.0 if self.mode == "max" else 1.0
        scored = [trial for trial in self.trials if trial.status != "failed" and np.isfinite(trial.score)]
        full = [trial for trial in scored if trial.status == "done"]
        least = min(full, key=lambda t: (not self._within(t), sign * t.score), default=None)
        bar = -np.inf if least is None else sign * least.score - _SURE * standard_error(least)

        def order(t: Trial) -> tuple[bool, bool, float, int]:
            whole = t.status == "done"
            return not whole and not sign * t.score < bar, whole and not self._within(t), sign * t.score, t.number

        return tuple(sorted(scored, key=order))

    @property
    def promising(self) -> tuple[Trial, ...]:
        """Stopped trials that go before all of full size, best first."""
        return tuple(itertools.takewhile(lambda trial: trial.status != "done", self.ranked))

    @property
    def best(self) -> Trial:
        """The one to promote. Raises :class:`SearchFailed` when no trial has a score."""
        ranked = self.ranked
        if not ranked:
            reasons = (
                "; ".join(f"{count} x {reason}" for reason, count in self.errors.items()) or "no trial ended in time"
            )
            raise SearchFailed(f"None of {len(self.trials)} trials gave a model: {reasons}.", {"errors": self.errors})
        equals = self.equals
        if not equals:
            return ranked[0]
        if ranked[0].wrongs:
            equals = _least_wrong(equals)
        if self.prefer == "score":
            return equals[0]
        return min(equals, key=lambda trial: (price(trial.cost, self.prefer), trial.number) if trial.cost else (0.0, 0))

    @property
    def equals(self) -> tuple[Trial, ...]:
        """Trials that the validation rows do not tell apart from the best one, itself first; empty when it was not costed.

        The rule of one standard error (Breiman et al. 1984, 3.4.3), paired: the error is that of the *difference* to
        the best over groups of the same rows, since models that see the same rows err together. On one set of rows the
        error of a score itself is several times as large, and would give away skill that is really there.

        A trial that learnt from a shorter past than the best is none of them: it is cheaper only because it saw less.
        Where answers have costs, they decide between equals, so one standard error is allowed whatever is preferred.
        """
        ranked, limit = self.ranked, tolerance(self.prefer)
        if ranked and ranked[0].wrongs:
            limit = max(1.0, limit)
        if not ranked or ranked[0].cost is None or limit == 0:
            return ()
        best, sign = ranked[0], 1.0 if self.mode == "max" else -1.0
        kept = [best]
        for trial in ranked[1:]:
            if trial.status != best.status or trial.cost is None or self._within(trial) != self._within(best):
                continue
            if len(trial.groups) != len(best.groups) or _recent(trial) < _recent(best):
                continue
            error = _error_of_difference(best.groups, trial.groups)
            if sign * (best.score - trial.score) <= limit * error:
                kept.append(trial)
        return tuple(kept)

    def updated(self, trial: Trial) -> Leaderboard:
        """The board with more known of one of its trials."""
        return replace(self, trials=(*(old for old in self.trials if old.number != trial.number), trial))

    @property
    def errors(self) -> dict[str, int]:
        """Why trials failed, and how many did, the commonest first."""
        return dict(Counter(trial.error for trial in self.trials if trial.status == "failed").most_common())

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """The best full-size score so far, by the number of trials that had ended: how the search went on getting better."""
        sign, points, best = (1.0 if self.mode == "max" else -1.0), [], -np.inf
        for count, trial in enumerate(self.trials, start=1):
            if trial.status == "done" and sign * trial.score > best:
                best = sign * trial.score
                points.append((count, trial.score))
        return tuple(points)

    def to_rows(self) -> list[dict[str, Any]]:
        """JSON-serialisable rows, best first, failures last; a score that is not finite is ``None``."""
        ranked = self.ranked
        placed = {trial.number for trial in ranked}
        rest = [trial for trial in self.trials if trial.number not in placed]
        return [
            {
                "number": trial.number,
                "family": trial.family,
                "score": _finite(trial.score),
                "train_score": _finite(trial.train_score),
                "gap": _finite(trial.gap),
                "fit_s": round(trial.fit_s, 3),
                "status": trial.status,
                "error": trial.error,
                "params": dict(trial.params),
                "curve": [[share, _finite(score)] for share, score in trial.curve],
                "cost": None if trial.cost is None else asdict(trial.cost),
                "wrong": _finite(float(np.nanmean(trial.wrongs))) if trial.wrongs else None,
            }
            for trial in (*ranked, *rest)
        ]

    def _within(self, trial: Trial) -> bool:
        return self.max_gap is None or not trial.gap > self.max_gap


def standard_error(trial: Trial) -> float:
    """Of a trial's score, from its groups of validation rows; NaN when it has none."""
    groups = np.asarray([score for score in trial.groups if np.isfinite(score)])
    return float(groups.std(ddof=1) / np.sqrt(len(groups))) if len(groups) > 1 else float("nan")


def _error_of_difference(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Standard error of the mean difference over groups of the same rows; NaN, which nothing is within, for fewer than two."""
    apart = np.asarray(a) - np.asarray(b)
    apart = apart[np.isfinite(apart)]
    return float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else float("nan")


def _least_wrong(equals: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """The trial whose answers cost least, then those whose costs are not told apart from it, by one standard error."""
    cost = {trial.number: float(np.nanmean(trial.wrongs)) for trial in equals}
    least = min(equals, key=lambda trial: cost[trial.number])
    rest = [
        trial
        for trial in equals
        if trial is not least
        and cost[trial.number] - cost[least.number] <= _error_of_difference(trial.wrongs, least.wrongs)
    ]
    return (least, *rest)


def _recent(trial: Trial) -> float:
    return float(trial.params.get("recent", 1.0))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
