"""Whether the best trials of a search answer together: only where rows show it on which the ensemble was not chosen. No Ray.

The bar is the gate's own: the paired bootstrap of :mod:`raymlops.compare.paired` here, and the gate's limits on latency, size and
over-fitting afterwards, by the package itself. What was tried is kept with its numbers, taken or not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.compare.paired import Comparison, compare
from raymlops.data.snapshot import Arrays
from raymlops.gate import GateReport
from raymlops.loop.ports import Progress
from raymlops.pipeline import Pipeline
from raymlops.search.cost import Prefer, serving_cost, tolerance
from raymlops.search.ensemble import (
    FAMILY,
    LIBRARY,
    Ensemble,
    Library,
    Said,
    Selection,
    cross_fitted,
    halves,
    judged_rows,
    named,
    select,
)
from raymlops.search.ensemble_model import EnsembleEstimator
from raymlops.search.leaderboard import Trial
from raymlops.search.selection import SearchResult, refit

LEAST_ROWS = 100
_TRAIN_SCORE_ROWS = 20_000
_TOLD_APART = 1.645  # standard errors from the middle to either end of an interval of 90 %
_REASON = 500
_LIMITS = ("latency", "size", "overfit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of an ensemble.

    Attributes
    ----------
    members : ``trial``, ``weight``, ``family`` and ``params`` of each; empty where it did not come to that
    score, single : on validation rows, of ensembles chosen on their other half, and of the trial it would replace
    comparison : paired, on those rows, with the trial that it beats by least
    trials : that were chosen from
    """

    taken: bool
    reason: str
    members: tuple[Mapping[str, Any], ...] = ()
    score: float | None = None
    single: float | None = None
    comparison: Comparison | None = None
    trials: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "taken": self.taken,
            "reason": self.reason,
            "members": [dict(item) for item in self.members],
            "named": named(self.members),
            "score": self.score,
            "single": self.single,
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "trials": self.trials,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """What goes to the gate, and what stands in for it: ``single`` is the search's winner alone; ``tried`` is ``None`` where no
    ensemble was asked for."""

    result: SearchResult
    single: SearchResult
    tried: Tried | None = None

    @property
    def taken(self) -> bool:
        return self.tried is not None and self.tried.taken

    def refused(self, reason: str) -> Combined:
        """The single winner after all; the leaderboard says why."""
        assert self.tried is not None
        said = f"not taken: {reason} {named(self.tried.members)}"[:_REASON]
        board = self.result.leaderboard.updated(replace(self.result.trial, status="stopped", error=said))
        single = replace(self.single, leaderboard=board)
        return Combined(result=single, single=single, tried=replace(self.tried, taken=False, reason=reason))


def beyond_limits(report: GateReport) -> str:
    """What the gate says of an ensemble that a single model may be let off for: latency, size, over-fitting; ``""`` for nothing."""
    return " ".join(check.message for check in report.checks if check.name in _LIMITS and not check.passed)


def combine_for(
    pipeline: Pipeline, result: SearchResult, arrays: Arrays, ordered: bool, progress: Progress
) -> Combined:
    """:func:`combine` as a pipeline asks for it; a retraining by the champion's settings has made no search to choose from."""
    spec = pipeline.search
    combined = combine(
        result,
        arrays,
        most=spec.ensemble if result.library is not None or result.fit is not None else 0,
        ordered=ordered,
        prefer=spec.prefer,
        max_gap=pipeline.gate.max_gap,
    )
    if combined.tried is not None:
        progress.note(f"ensemble: {combined.tried.reason}")
    if combined.taken:
        progress.trial(combined.result.trial)
    return combined


def combine(
    result: SearchResult, arrays: Arrays, *, most: int, ordered: bool, prefer: Prefer, max_gap: float | None = None
) -> Combined:
    """An ensemble of at most ``most`` of the search's trials in the winner's place, where it pays.

    It is chosen on one half of the validation rows and judged on the other, both ways, and has to be better there than the
    winner, and than the trial with the best score, by an interval of 90 % above 0 and by the standard errors that ``prefer`` lets a
    cheaper model lose (:func:`raymlops.search.cost.tolerance`). Winner and best score were chosen on all these rows, which favours them.
    What is then served has weights from all rows; its score stays that of the halves.

    Parameters
    ----------
    ordered : the rows are in time order; halves are then alternating tenths, and the bootstrap draws blocks
    """
    single = replace(result, library=None)
    if not most:
        return Combined(result=single, single=single)

    def stays(reason: str, **known: Any) -> Combined:
        return Combined(result=single, single=single, tried=Tried(taken=False, reason=reason, **known))

    if result.fit is not None:
        return stays("The fits are spread over workers, and an ensemble's members would be so in turn.")
    if result.train_only or result.share < 1.0:
        return stays("The time budget left none for the winner's own fit on all rows.")
    library = result.library or Library(result.problem.objective)
    said, rows = _said(result, arrays, library, max_gap)
    known: dict[str, Any] = {"trials": len(said)}
    if len(said) < 2 or len(rows) < LEAST_ROWS:
        return stays(
            f"Too little to choose from: {len(said)} of the trials of full size, {len(rows)} validation rows.", **known
        )
    objective, y = result.problem.objective, arrays.y_validation[rows]
    chosen = select(objective, y, said, most)
    if len(chosen.weights) < 2:
        return stays(f"No mean of {len(said)} trials is better than one of them alone.", **known)
    trials = {trial.number: trial for trial in result.leaderboard.trials}
    params = _params(chosen, trials)
    first = halves(len(y), ordered=ordered, seed=result.problem.seed)
    together = cross_fitted(objective, y, said, most, first)
    rivals = {result.trial.number, next(t.number for t in result.leaderboard.ranked if t.number in said)}
    found = [_against(result, y, together, said[number], ordered) for number in sorted(rivals)]
    score = objective.score(y, together)
    known |= {"members": tuple(params["members"]), "score": score}
    known["single"] = objective.score(y, np.asarray(said[result.trial.number], dtype=np.float64))
    if any(item is None for item in found):
        return stays(f"{objective.metric} cannot be compared on these rows.", **known)
    comparison = min((item for item in found if item is not None), key=lambda item: item.low)
    known["comparison"] = comparison
    numbers = (
        f"{objective.metric} {score:.5g} against {known['single']:.5g} on {len(y)} validation rows, gain {comparison.gain:+.3g}, "
        f"{comparison.level:.0%} interval {comparison.low:+.3g} to {comparison.high:+.3g}"
    )
    trial = Trial(
        number=max(trials) + 1, family=FAMILY, params=params, score=score, gap=float("nan"), train_score=float("nan")
    )

    def not_taken(reason: str) -> Combined:
        refused = Combined(
            result=replace(single, trial=trial), single=single, tried=Tried(taken=True, reason="", **known)
        )
        return refused.refused(f"{reason} ({numbers}).")

    error = (comparison.high - comparison.low) / (2 * _TOLD_APART)
    if not comparison.low > 0 or comparison.gain <= tolerance(prefer) * error:
        return not_taken("It is not surely better than one trial alone")
    others = [trials[number] for number in chosen.weights if number != result.trial.number]
    needed = sum(item.fit_s for item in others)
    left = float("inf") if library.until is None else library.until - time.monotonic()
    if needed > left:
        return not_taken(
            f"Its other members would take {needed:.1f} s to fit, and the time budget has {left:.1f} s left"
        )
    made = _fitted(single, arrays, trial, chosen, trials, library.threads)
    gap = made.trial.gap
    if max_gap is not None and gap > max_gap:
        return not_taken(f"Its over-fitting is {gap:.3f}, and the gate allows {max_gap:g}")
    return Combined(result=made, single=single, tried=Tried(taken=True, reason=f"It pays: {numbers}.", **known))


def _said(
    result: SearchResult, arrays: Arrays, library: Library, max_gap: float | None
) -> tuple[dict[int, Said], NDArray[np.intp]]:
    """What the best trials of full size say of validation rows, and which rows; nothing where the winner is not among them. What a
    search that went on after a crash does not have any more is fitted again, while there is time."""
    rows = judged_rows(len(arrays.y_validation), result.problem.n_classes)
    best = [
        trial
        for trial in result.leaderboard.ranked
        if trial.status == "done" and not (max_gap is not None and trial.gap > max_gap)
    ][:LIBRARY]
    if result.trial not in best:
        best = [result.trial, *best[: LIBRARY - 1]]
    said = {}
    for trial in sorted(best, key=lambda item: item is not result.trial):
        held = library.said.get(trial.number)
        late = library.until is not None and time.monotonic() + trial.fit_s > library.until
        if held is None and not late:
            fitted = refit(replace(result, trial=trial, threads=library.threads), arrays.x_train, arrays.y_train)
            held = fitted.predict(arrays.x_validation[rows])
        if held is not None:
            said[trial.number] = held
    # Without the winner there is nothing to compare with.
    return (said if result.trial.number in said else {}), rows


def _against(
    result: SearchResult, y: NDArray[Any], together: NDArray[np.float64], alone: Said, ordered: bool
) -> Comparison | None:
    problem = result.problem
    rival = np.asarray(alone, dtype=np.float64)
    return compare(problem.objective, y, together, rival, task=problem.task, ordered=ordered, seed=problem.seed)


def _params(chosen: Selection, trials: Mapping[int, Trial]) -> dict[str, Any]:
    """Of the ensemble as a family; the heaviest member first. Its window is the longest of its members', theirs are parts of it."""
    heaviest = sorted(chosen.weights, key=lambda number: (-chosen.weights[number], number))
    windows = {number: float(trials[number].params.get("recent", 1.0)) for number in heaviest}
    longest = max(windows.values())
    members = [
        {
            "trial": number,
            "weight": chosen.weights[number],
            "family": trials[number].family,
            "params": {**trials[number].params, "recent": windows[number] / longest},
        }
        for number in heaviest
    ]
    return {"members": members, "recent": longest}


def _fitted(
    single: SearchResult,
    arrays: Arrays,
    trial: Trial,
    chosen: Selection,
    trials: Mapping[int, Trial],
    threads: int,
) -> SearchResult:
    """The ensemble fitted on train and validation rows, as the winner was, which is not fitted again."""
    problem = single.problem
    x = np.concatenate([arrays.x_train, arrays.x_validation])
    y = np.concatenate([arrays.y_train, arrays.y_validation])
    began = time.perf_counter()
    numbers = [member["trial"] for member in trial.params["members"]]
    members = [
        single.estimator
        if number == single.trial.number
        else refit(replace(single, trial=trials[number], threads=threads), x, y)
        for number in numbers
    ]
    estimator = EnsembleEstimator(members, [chosen.weights[number] for number in numbers], seed=problem.seed)
    some = np.unique(np.linspace(0, len(arrays.y_train) - 1, _TRAIN_SCORE_ROWS).astype(int))
    learnt = problem.objective.score(arrays.y_train[some], estimator.predict(arrays.x_train[some]))
    made = replace(
        trial,
        train_score=learnt,
        gap=problem.objective.gap(learnt, trial.score, problem.baseline),
        fit_s=time.perf_counter() - began,
        cost=serving_cost(estimator, arrays.x_validation),
    )
    families = {**problem.families, FAMILY: Ensemble(families=problem.families)}
    return replace(
        single,
        leaderboard=single.leaderboard.updated(made),
        trial=made,
        estimator=estimator,
        problem=replace(problem, families=families),
    )
