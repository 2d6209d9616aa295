"""One fit of one trial: its rows, its score, what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.search.cost import Cost, serving_cost
from raymlops.search.ensemble import Said, judged_rows
from raymlops.search.rows import RowCache, chosen
from raymlops.search.threshold import wrong_rows

if TYPE_CHECKING:
    from raymlops.data.snapshot import Arrays
    from raymlops.search.estimators import Estimator, Floats
    from raymlops.search.selection import Problem

_TRAIN_SCORE_ROWS = 20_000
_GROUPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one fit of one trial measured.

    Attributes
    ----------
    full : a fit on all the rows the trial asks for, not on a sample of them
    learned : parameters that the validation rows fixed
    groups, wrongs, cost : see :class:`Trial`; only of a full fit
    said : of validation rows, see :class:`raymlops.search.ensemble.Library`; only of a full fit where an ensemble is asked for
    """

    full: bool
    score: float
    train_score: float
    gap: float
    fit_s: float
    learned: Mapping[str, Any]
    groups: tuple[float, ...] = ()
    wrongs: tuple[float, ...] = ()
    cost: Cost | None = None
    said: Said | None = field(default=None, compare=False, repr=False)


def run_trial(
    problem: Problem,
    arrays: Arrays,
    family: str,
    params: Mapping[str, Any],
    share: float = 1.0,
    *,
    cache: RowCache | None = None,
    until_s: float | None = None,
) -> Outcome:
    """Fit on the newest ``params["recent"]`` of the train rows, thinned to at most ``share`` of all; score on validation.

    Windows of different length get the same number of rows at one ``share``, so that halving compares like with like.
    ``cache`` keeps the cuts from fit to fit; estimators that can end early do so after ``until_s`` seconds.

    Raises whatever the family raises, and ``ValueError`` when the metric is not defined on these rows.
    """
    return run(problem, arrays, family, params, share, cache or RowCache(arrays, problem.seed), until_s)[0]


def run(
    problem: Problem,
    arrays: Arrays,
    family: str,
    params: Mapping[str, Any],
    share: float,
    cache: RowCache,
    until_s: float | None,
    threads: int = 1,
    hurry: float = 1.0,
    widen: float = 1.0,
) -> tuple[Outcome, Estimator]:
    """:func:`run_trial`, and the estimator."""
    # The first one of a family imports its engine, which is no part of the time by which other fits are planned.
    estimator: Any = problem.build(family, params)
    started = time.perf_counter()
    recent = float(params.get("recent", 1.0))
    rows = cache.get(recent, share)
    if hasattr(estimator, "threads"):
        estimator.threads = threads
    if hasattr(estimator, "once"):
        estimator.once = rows.once
    if hasattr(estimator, "until_s"):
        estimator.until_s = until_s
    if hasattr(estimator, "hurry"):
        estimator.hurry, estimator.widen = hurry, widen
    estimator.fit(rows.x, rows.y, rows.x_val, rows.y_val)
    prediction = estimator.predict(rows.x_val)
    score = problem.objective.score(rows.y_val, prediction)
    if not np.isfinite(score):
        raise ValueError(
            f"{problem.objective.metric} is not defined on the validation rows: one class only, or NaN predicted"
        )
    some = chosen(len(rows.y), 1.0, min(1.0, _TRAIN_SCORE_ROWS / len(rows.y)), problem.seed)
    train_score = problem.objective.score(rows.y[some], estimator.predict(rows.x[some]))
    full = share >= min(recent, problem.most)
    outcome = Outcome(
        full=full,
        score=score,
        train_score=train_score,
        gap=problem.objective.gap(train_score, score, problem.baseline),
        fit_s=time.perf_counter() - started,
        learned=dict(getattr(estimator, "learned", {})),
        groups=_by_group(
            problem, len(prediction), lambda at: problem.objective.score_part(rows.y_val[at], prediction[at])
        )
        if full
        else (),
        wrongs=_wrongs(problem, rows.y_val, prediction) if full else (),
        cost=serving_cost(estimator, rows.x_val) if full else None,
        said=_said(problem, prediction) if full and problem.ensemble else None,
    )
    return outcome, estimator


def _said(problem: Problem, prediction: Floats) -> Said:
    return np.asarray(prediction[judged_rows(len(prediction), problem.n_classes)], dtype=np.float64)


def _by_group(problem: Problem, n: int, measure: Callable[[Any], float]) -> tuple[float, ...]:
    """A measure on each of twenty random groups of the ``n`` validation rows, the same for every trial of a search."""
    group = np.random.default_rng(problem.seed).permutation(n) % _GROUPS
    return tuple(measure(group == k) for k in range(_GROUPS))


def _wrongs(problem: Problem, y: Floats, prediction: Floats) -> tuple[float, ...]:
    """Mean cost of the answers by group, where costs are given. A calibration keeps the order of scores, and so this cost."""
    if problem.costs is None:
        return ()
    lost = wrong_rows(problem.costs, np.asarray(y) == 1, np.asarray(prediction, dtype=np.float64))
    return _by_group(problem, len(lost), lambda at: float(lost[at].mean()) if at.any() else float("nan"))
