"""What to search, how one trial is fitted and scored, and the rule that picks the one to promote. No Ray."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymlops.clock import seconds
from raymlops.errors import ConfigError, SearchFailed, nearest
from raymlops.search.candidates import Candidate, defaults
from raymlops.search.objective import METRICS, Mode, Objective
from raymlops.search.threshold import ThresholdSpec, check_spec

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract, Task
    from raymlops.data.snapshot import Arrays
    from raymlops.search.estimators import Estimator, Floats

__all__ = [
    "Leaderboard",
    "Objective",
    "Outcome",
    "Problem",
    "Search",
    "SearchResult",
    "Trial",
    "compare_windows",
    "finish",
    "refit",
    "run_trial",
]

TrialStatus = Literal["done", "stopped", "failed"]

RECENT = (1.0, 0.5, 0.25, 0.1)
_MIN_RECENT_ROWS = 500
_TRAIN_SCORE_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to try.

    Attributes
    ----------
    candidates : families from :mod:`raymlops.search.candidates`, or the user's own; ``None`` takes all four built in
    metric : what to optimise; ``"auto"`` is roc_auc, log_loss or rmse, by the task
    trials : configurations to try; each family's default comes first
    time_budget_s : stop starting trials after this time (seconds, or ``"10m"``); ``None`` has no limit
    max_concurrent : trials at once, one CPU each
    seed : of samplers, models and sub-samples
    recency : with rows in time order, also search how much of the past to learn from
    calibrate : let serving correct the probabilities, where unseen rows ask for it (:mod:`raymlops.search.calibration`)
    threshold : from which probability on a binary answer is the positive class: a number, ``Costs(...)``, ``"f1"``, or
        ``None`` for 0.5

    Raises
    ------
    ConfigError : when built, naming the field, what was given and what would be accepted
    """

    candidates: Sequence[Candidate] | None = None
    metric: str = "auto"
    trials: int = 20
    time_budget_s: float | str | None = None
    max_concurrent: int = 2
    seed: int = 0
    recency: bool = True
    calibrate: bool = True
    threshold: ThresholdSpec = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", _families(self.candidates))
        if self.metric != "auto" and self.metric not in METRICS:
            raise ConfigError(f"metric={self.metric!r} is not known.{nearest(str(self.metric), (*METRICS, 'auto'))}")
        for name in ("trials", "max_concurrent"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r} cannot work: give a whole number of at least 1.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed={self.seed!r} is no seed: give a whole number from 0 to 2147483647.")
        check_spec(self.threshold)
        if self.time_budget_s is not None:
            budget = seconds(self.time_budget_s, "time_budget_s")
            if budget == 0:
                raise ConfigError("time_budget_s=0 leaves no time for a trial: give more, or None for no limit.")
            object.__setattr__(self, "time_budget_s", budget)

    def objective(self, task: Task) -> Objective:
        """The metric for a task. Raises :class:`ConfigError` when it does not fit."""
        return Objective.of(self.metric, task)

    def families(self, task: Task) -> tuple[Candidate, ...]:
        """The candidates that can do a task. Raises :class:`ConfigError` when none can."""
        able = tuple(candidate for candidate in self.candidates or () if task in candidate.tasks)
        if not able:
            names = ", ".join(candidate.name for candidate in self.candidates or ())
            raise ConfigError(f"The label makes this a {task} task, and none of the candidates ({names}) can do it.")
        return able


def _families(given: Sequence[Candidate] | None) -> tuple[Candidate, ...]:
    if given is None:
        return defaults()
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise ConfigError(
            f"candidates={given!r} is not a list: give candidates such as [candidates.xgboost()], or None for all."
        )
    if not given:
        raise ConfigError(
            "candidates=() is an empty search space: give at least one, or None for all the built-in ones."
        )
    for candidate in given:
        lacking = [name for name in ("name", "tasks", "start", "space", "build") if not hasattr(candidate, name)]
        if lacking:
            raise ConfigError(f"candidates holds {candidate!r}, which is no candidate: it has no {', '.join(lacking)}.")
    double = [name for name, count in Counter(candidate.name for candidate in given).items() if count > 1]
    if double:
        raise ConfigError(f"candidates holds {double[0]!r} twice: give one of them another name=.")
    return tuple(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration and what came of it.

    Attributes
    ----------
    params : the family's parameters, with ``recent`` (share of the newest rows learnt from) and what fitting fixed
    score, train_score : on the validation rows and on the rows learnt from; NaN when failed
    gap : over-fitting, see :meth:`Objective.gap`
    status : ``done`` at full size, ``stopped`` early on a sample, or ``failed`` with ``error``
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """All trials of one search, in the order they ended.

    ``max_gap`` is the gate's limit: a trial beyond it is chosen only when there is no other, since the gate would refuse it.
    """

    metric: str
    mode: Mode
    trials: tuple[Trial, ...]
    max_gap: float | None = None

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Trials with a score, the one to promote first: full size before stopped, within the gap before beyond it."""
        sign = -1.0 if self.mode == "max" else 1.0
        scored = [trial for trial in self.trials if trial.status != "failed" and np.isfinite(trial.score)]
        return tuple(sorted(scored, key=lambda t: (t.status != "done", not self._within(t), sign * t.score, t.number)))

    @property
    def best(self) -> Trial:
        """The one to promote. Raises :class:`SearchFailed` when no trial has a score."""
        ranked = self.ranked
        if not ranked:
            reasons = (
                "; ".join(f"{count} x {reason}" for reason, count in self.errors.items()) or "no trial ended in time"
            )
            raise SearchFailed(f"None of {len(self.trials)} trials gave a model: {reasons}.", {"errors": self.errors})
        return ranked[0]

    @property
    def errors(self) -> dict[str, int]:
        """Why trials failed, and how many did, the commonest first."""
        return dict(Counter(trial.error for trial in self.trials if trial.status == "failed").most_common())

    def to_rows(self) -> list[dict[str, Any]]:
        """JSON-serialisable rows, best first, failures last; a score that is not finite is ``None``."""
        ranked = self.ranked
        rest = [trial for trial in self.trials if trial not in ranked]
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
            }
            for trial in (*ranked, *rest)
        ]

    def _within(self, trial: Trial) -> bool:
        return self.max_gap is None or not trial.gap > self.max_gap


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything about the task that a trial needs besides its parameters; small, crosses to the workers."""

    objective: Objective
    task: Task
    n_classes: int
    categorical: tuple[int, ...]
    seed: int
    baseline: float
    families: Mapping[str, Candidate] = field(repr=False)

    @classmethod
    def of(cls, search: Search, contract: DataContract, arrays: Arrays) -> Problem:
        objective = search.objective(contract.task)
        return cls(
            objective=objective,
            task=contract.task,
            n_classes=len(contract.classes),
            categorical=tuple(i for i, column in enumerate(contract.columns) if column.kind == "category"),
            seed=search.seed,
            baseline=objective.baseline(arrays.y_train, arrays.y_validation),
            families={candidate.name: candidate for candidate in search.families(contract.task)},
        )

    def build(self, family: str, params: Mapping[str, Any]) -> Estimator:
        own = {key: value for key, value in params.items() if key != "recent"}
        estimator = self.families[family].build(own, self.task, self.n_classes, list(self.categorical), self.seed)
        watch = getattr(estimator, "watch", None)
        if watch is not None:
            watch(self.objective.metric)
        return estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one fit of one trial measured.

    ``full`` tells a fit on all the rows the trial asks for from one on a sample; ``learned`` are the parameters that the
    validation rows fixed.
    """

    full: bool
    score: float
    train_score: float
    gap: float
    fit_s: float
    learned: Mapping[str, Any]


def run_trial(problem: Problem, arrays: Arrays, family: str, params: Mapping[str, Any], share: float = 1.0) -> Outcome:
    """Fit on the newest ``params["recent"]`` of the train rows, thinned to at most ``share`` of all; score on validation.

    Windows of different length get the same number of rows at one ``share``, so that halving compares like with like.
    Raises whatever the family raises, and ``ValueError`` when the metric is not defined on these rows.
    """
    started = time.perf_counter()
    recent = float(params.get("recent", 1.0))
    rows = _rows(len(arrays.y_train), recent, min(1.0, share / recent), problem.seed)
    x, y = arrays.x_train[rows], arrays.y_train[rows]
    estimator = problem.build(family, params)
    estimator.fit(x, y, arrays.x_validation, arrays.y_validation)
    score = problem.objective.score(arrays.y_validation, estimator.predict(arrays.x_validation))
    if not np.isfinite(score):
        raise ValueError(
            f"{problem.objective.metric} is not defined on the validation rows: one class only, or NaN predicted"
        )
    some = _rows(len(y), 1.0, min(1.0, _TRAIN_SCORE_ROWS / len(y)), problem.seed)
    train_score = problem.objective.score(y[some], estimator.predict(x[some]))
    return Outcome(
        full=share >= recent,
        score=score,
        train_score=train_score,
        gap=problem.objective.gap(train_score, score, problem.baseline),
        fit_s=time.perf_counter() - started,
        learned=dict(getattr(estimator, "learned", {})),
    )


def recent_shares(n_rows: int, change_row: int | None = None) -> tuple[float, ...]:
    """The windows worth trying on ``n_rows`` train rows: each must leave enough rows to learn from.

    With ``change_row``, where a change was detected, also all rows from there on, in second place: it is a guess about
    the cause, and a budget of fits must not leave it out.
    """
    shares = [share for share in RECENT if share == 1.0 or share * n_rows >= _MIN_RECENT_ROWS]
    if change_row is not None and 0 < change_row <= n_rows - _MIN_RECENT_ROWS:
        since = (n_rows - change_row) / n_rows
        shares.insert(1, since)
    return tuple(dict.fromkeys(shares))


def compare_windows(
    arrays: Arrays,
    contract: DataContract,
    spec: Search,
    *,
    ordered: bool,
    max_gap: float | None = None,
    change_row: int | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """Fit each candidate as it starts on each recent window, here and now, in at most ``spec.trials`` fits.

    ``change_row`` is the train row from which on a change was detected: the rows since then are one more window. For
    candidates that an earlier search settled nothing else is left to choose, and workers would take longer to
    start than the fits take.

    Raises
    ------
    ConfigError : a metric or candidates that do not fit the task
    SearchFailed : no fit gave a model
    """
    problem = Problem.of(spec, contract, arrays)
    windows = recent_shares(len(arrays.y_train), change_row) if ordered and spec.recency else (1.0,)
    trials: list[Trial] = []
    for window in windows:
        for name, family in problem.families.items():
            if len(trials) == spec.trials:
                break
            params = {**family.start, "recent": window} if len(windows) > 1 else dict(family.start)
            trials.append(_tried(problem, arrays, len(trials), name, params))
            if on_trial is not None:
                on_trial(trials[-1])
    objective = problem.objective
    return finish(
        problem,
        arrays,
        Leaderboard(metric=objective.metric, mode=objective.mode, trials=tuple(trials), max_gap=max_gap),
    )


def _tried(problem: Problem, arrays: Arrays, number: int, family: str, params: dict[str, Any]) -> Trial:
    try:
        outcome = run_trial(problem, arrays, family, params)
    except Exception as error:
        # A configuration that fails is a finding: its reason stands on the leaderboard.
        reason = f"{type(error).__name__}: {error}"[:500]
        return Trial(number=number, family=family, params=params, status="failed", error=reason)
    return Trial(
        number=number,
        family=family,
        params={**params, **outcome.learned},
        score=outcome.score,
        train_score=outcome.train_score,
        gap=outcome.gap,
        fit_s=outcome.fit_s,
    )


def _rows(n: int, recent: float, share: float, seed: int) -> NDArray[np.intp]:
    """Indices of a thinned recent window, in order: every part of the window is as present as before."""
    first = n - max(1, round(n * recent))
    window = np.arange(first, n)
    if share >= 1.0:
        return window
    chosen = np.random.default_rng(seed).choice(window, size=max(1, round(len(window) * share)), replace=False)
    return np.sort(chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The leaderboard, the trial to promote, and that trial's estimator fitted on train and validation rows."""

    leaderboard: Leaderboard
    trial: Trial
    estimator: Estimator
    problem: Problem


def finish(problem: Problem, arrays: Arrays, leaderboard: Leaderboard) -> SearchResult:
    """Pick the best trial and fit it for the gate. Raises :class:`SearchFailed` when there is none."""
    trial = leaderboard.best
    x = np.concatenate([arrays.x_train, arrays.x_validation])
    y = np.concatenate([arrays.y_train, arrays.y_validation])
    return SearchResult(leaderboard=leaderboard, trial=trial, estimator=_fit(problem, trial, x, y), problem=problem)


def refit(result: SearchResult, x: Floats, y: Floats) -> Estimator:
    """The winner's configuration on other rows, oldest first when there is an order.

    Rounds of boosting stay those that the search found; ``recent`` applies to these rows.
    """
    return _fit(result.problem, result.trial, x, y)


def _fit(problem: Problem, trial: Trial, x: Floats, y: Floats) -> Estimator:
    rows = _rows(len(y), float(trial.params.get("recent", 1.0)), 1.0, problem.seed)
    return problem.build(trial.family, trial.params).fit(x[rows], y[rows])
