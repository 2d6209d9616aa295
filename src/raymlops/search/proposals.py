"""Where configurations come from: proven starts, what earlier searches found, Optuna's TPE, and steps around the best.

No Ray: the study lives in the process that runs the search.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import optuna

from raymlops.errors import ConfigError
from raymlops.search.candidates import Candidate
from raymlops.search.objective import Mode
from raymlops.search.schedule import Proposal
from raymlops.search.spaces import check_plain

_STARTUP = 10
_STEP = 0.15
_LEADERS = 3
_EARLIER = 60
_EAGER, _LEAST_SHARE, _TIMES = 10.0, 0.02, 5
_FIRST_EARLIER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """A trial of an earlier search: what was drawn and how it scored there."""

    point: Mapping[str, Any]
    score: float
    full: bool


class Proposals:
    """A :class:`raymlops.search.schedule.Proposer` over all families.

    First come the best configurations of ``earlier``, then each family's proven default, then the first family on the
    recent windows. After that, turn and turn about: Optuna's tree-structured Parzen estimator (Bergstra et al. 2011,
    multivariate by family) and a random step from one of the best so far, the local search whose
    cheapness FLAML shows (Wu et al. 2021). Also after FLAML's thought, a family is drawn the less the further its best on few rows is
    behind and the longer its fits take: time goes to where an improvement is cheapest.

    Parameters
    ----------
    recent : windows of the past to choose from
    floor : the trivial baseline; a failure is told to the sampler as no better than this
    earlier : trials of the last search over the same families, best first
    known : proposals of an earlier process of this search: their numbers are taken, their starts not proposed again

    Raises
    ------
    ConfigError : a search space fails, or returns something else than a dict of plain values
    """

    def __init__(
        self,
        families: Mapping[str, Candidate],
        recent: tuple[float, ...],
        *,
        mode: Mode,
        seed: int,
        floor: float,
        earlier: Sequence[Earlier] = (),
        known: Sequence[Proposal] = (),
    ) -> None:
        self._families, self._recent = families, recent
        self._sign = 1.0 if mode == "max" else -1.0
        self._floor = floor
        self._rng = np.random.default_rng(seed)
        _check(families)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=True
            )
        self._study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
        self._asked: dict[int, optuna.Trial] = {}
        self._next = max((item.number for item in known), default=-1) + 1
        self._leaders: dict[int, tuple[int, float, Mapping[str, Any]]] = {}
        self._first: dict[str, tuple[float, list[float]]] = {}
        usable = [item for item in earlier if item.point.get("family") in families and self._drawn(item.point)]
        self._earlier = usable[:_EARLIER]
        self._starts = self._next + self._enqueue_starts([item.point for item in known])

    # --- what the schedule asks and tells ---------------------------------------------------------------

    def ask(self) -> Proposal:
        number, self._next = self._next, self._next + 1
        if number >= self._starts and number % 2 and self._leaders:
            self._study.enqueue_trial(self._near())
        elif number >= self._starts and len(self._families) > 1 and self._first:
            self._study.enqueue_trial({"family": self._promising()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask()
            family, params = self._draw(trial)
        self._asked[number] = trial
        return Proposal(number=number, family=family, params=params, point=dict(trial.params))

    def tell(self, proposal: Proposal, score: float, *, rung: int, full: bool, fit_s: float) -> None:
        self._remember(proposal, score, rung)
        if rung == 0:
            best, times = self._first.get(proposal.family, (-math.inf, []))
            self._first[proposal.family] = (max(best, self._sign * score), [*times, fit_s][-_TIMES:])
        trial = self._asked.pop(proposal.number, None)
        if trial is not None and not full:
            trial.report(score, step=rung)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif trial is not None:
            self._study.tell(trial, score)
            self._take_in_earlier(proposal, score)
        else:
            # It was told of on a lower rung, and Optuna's trials end once: the better knowledge is a trial of its own.
            self._add(proposal.point, score, rung if not full else None)

    def fail(self, proposal: Proposal) -> None:
        """Optuna learns nothing from a failed trial and would propose its like again: it is told of the floor."""
        self._leaders.pop(proposal.number, None)
        trial = self._asked.pop(proposal.number, None)
        if trial is not None:
            self._study.tell(trial, self._floor)

    # --- inside ---------------------------------------------------------------------------------------------

    def _draw(self, trial: Any) -> tuple[str, dict[str, Any]]:
        family = trial.suggest_categorical("family", list(self._families))
        prefixed: Any = _Prefixed(trial, family)
        params = self._families[family].space(prefixed)
        if len(self._recent) > 1:
            params = {**params, "recent": trial.suggest_categorical("recent", self._recent)}
        return family, params

    def _enqueue_starts(self, known: Sequence[Mapping[str, Any]]) -> int:
        everything = {"recent": 1.0} if len(self._recent) > 1 else {}
        proven = [
            {"family": name, **{f"{name}.{key}": value for key, value in candidate.start.items()}, **everything}
            for name, candidate in self._families.items()
        ]
        windows = [{**proven[0], "recent": share} for share in self._recent if share != 1.0]
        points = [dict(item.point) for item in self._earlier[:_FIRST_EARLIER]] + proven + windows
        count = 0
        for point in points:
            if not any(all(old.get(key) == value for key, value in point.items()) for old in known):
                self._study.enqueue_trial(point, skip_if_exists=True)
                count += 1
        return count

    def _remember(self, proposal: Proposal, score: float, rung: int) -> None:
        self._leaders[proposal.number] = (rung, self._sign * score, proposal.point)
        best = sorted(self._leaders, key=lambda number: self._leaders[number][:2], reverse=True)[:_LEADERS]
        self._leaders = {number: self._leaders[number] for number in best}

    def _promising(self) -> str:
        """A family, drawn by what it can gain for its time: gaps to the best are counted from the trivial baseline."""
        names = list(self._families)
        top = max(best for best, _ in self._first.values())
        reach = max(top - self._sign * self._floor, 1e-12) if math.isfinite(self._floor) else max(abs(top), 1e-12)
        took = {name: max(median(times), 1e-3) for name, (_, times) in self._first.items()}
        least = min(took.values())
        weights = np.array(
            [
                math.exp(-_EAGER * min((top - self._first[name][0]) / reach, 1.0)) * math.sqrt(least / took[name])
                if name in self._first
                else 1.0
                for name in names
            ]
        )
        shares = np.maximum(weights / weights.sum(), _LEAST_SHARE)
        return str(self._rng.choice(names, p=shares / shares.sum()))

    def _near(self) -> dict[str, Any]:
        """A step from one of the best so far: each number moves by a normal step of 15 % of its (log) range."""
        point = list(self._leaders.values())[int(self._rng.integers(len(self._leaders)))][2]
        return {key: self._moved(value, ranges) for key, value, ranges in self._ranges(point)}

    def _ranges(self, point: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        drawn = self._drawn(point) or {}
        return [(key, point[key], drawn[key]) for key in point if key in drawn]

    def _moved(self, value: Any, ranges: Any) -> Any:
        if isinstance(ranges, optuna.distributions.CategoricalDistribution):
            return value
        low, high = float(ranges.low), float(ranges.high)
        step = float(self._rng.normal(0.0, _STEP))
        if ranges.log:
            moved = math.exp(math.log(value) + step * (math.log(high) - math.log(low)))
        else:
            moved = float(value) + step * (high - low)
        moved = min(max(moved, low), high)
        if isinstance(ranges, optuna.distributions.IntDistribution):
            return int(low + round((moved - low) / ranges.step) * ranges.step)
        return moved

    def _drawn(self, point: Mapping[str, Any]) -> dict[str, Any] | None:
        """The ranges that a point lies in; ``None`` when the spaces of today cannot draw it."""
        fixed = optuna.trial.FixedTrial(dict(point))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                self._draw(fixed)
        except (ValueError, KeyError, UserWarning):
            return None
        return fixed.distributions

    def _add(self, point: Mapping[str, Any], score: float, rung: int | None) -> None:
        ranges = self._drawn(point)
        if ranges is None:
            return
        state = optuna.trial.TrialState.COMPLETE if rung is None else optuna.trial.TrialState.PRUNED
        self._study.add_trial(
            optuna.trial.create_trial(
                params={key: point[key] for key in ranges},
                distributions=ranges,
                value=score if rung is None else None,
                intermediate_values={} if rung is None else {rung: score},
                state=state,
            )
        )

    def _take_in_earlier(self, proposal: Proposal, score: float) -> None:
        """Once the best of the last search was fitted on today's rows, its others are known too, shifted by as much."""
        if not self._earlier or dict(proposal.point) != dict(self._earlier[0].point):
            return
        shift = score - self._earlier[0].score
        for item in self._earlier[_FIRST_EARLIER:]:
            if item.full:
                self._add(item.point, item.score + shift, None)
        self._earlier = []


class _Prefixed:
    """An Optuna trial that puts the family's name before each parameter: two families may both have ``max_depth``."""

    def __init__(self, trial: Any, family: str) -> None:
        self._trial, self._family = trial, family

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._trial, name)
        if not name.startswith("suggest_"):
            return found
        return lambda parameter, *args, **kwargs: found(f"{self._family}.{parameter}", *args, **kwargs)


def _check(families: Mapping[str, Candidate]) -> None:
    """Draw once from every family here, where a space that fails can be named."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for name, candidate in families.items():
        try:
            drawn: Any = candidate.space(study.ask())
        except Exception as error:
            raise ConfigError(f"The search space of {name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(drawn, dict) or not all(isinstance(key, str) for key in drawn):
            raise ConfigError(
                f"The search space of {name!r} returned {drawn!r}: it must return a dict of parameters by name."
            )
        check_plain({**candidate.start, **drawn}, f"The search space of {name!r}")
