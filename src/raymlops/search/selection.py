"""What to search, how one trial is fitted and scored, and the rule that picks the one to promote. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raymlops.clock import seconds
from raymlops.errors import ConfigError, nearest
from raymlops.search.candidates import Candidate, defaults
from raymlops.search.cost import PREFERENCES, Prefer
from raymlops.search.ensemble import Library, check_ensemble
from raymlops.search.leaderboard import Leaderboard, Trial, TrialStatus
from raymlops.search.objective import METRICS, Mode, Objective, sklearn_scorer
from raymlops.search.rows import RowCache, chosen
from raymlops.search.running import Outcome, run, run_trial
from raymlops.search.spread import Distributed, Spread, check_distributed
from raymlops.search.threshold import Costs, ThresholdSpec, check_spec

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract, Task
    from raymlops.data.snapshot import Arrays
    from raymlops.search.estimators import Estimator, Floats
    from raymlops.search.pace import LastFit

__all__ = [
    "Leaderboard",
    "Mode",
    "Objective",
    "Outcome",
    "Problem",
    "Search",
    "SearchResult",
    "Trial",
    "TrialStatus",
    "compare_windows",
    "finish",
    "refit",
    "run_trial",
    "unseen_validation",
]

RECENT = (1.0, 0.5, 0.25, 0.1)
_MIN_RECENT_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to try.

    Attributes
    ----------
    candidates : families from :mod:`raymlops.search.candidates`, or the user's own; ``None`` takes all four built in
    metric : what to optimise; ``"auto"`` is roc_auc, log_loss or rmse, by the task. Also a name of scikit-learn's scorers, a
        scorer, or a function of ``y`` and the prediction (probabilities or values)
    mode : ``"max"`` or ``"min"``, of a metric that is a function
    quantile : of a regression to predict, such as 0.9, instead of its mean
    weights : ``"balanced"`` weighs every class alike (its probabilities are then no longer calibrated), or a function of the encoded
        rows ``(n, d)`` and labels ``(n,)`` that returns sample weights ``(n,)``
    monotone : 1 or -1 by column: the prediction may only rise, or only fall, with it
    trials : configurations to try; each family's default comes first; ``None`` tries on until the time budget is used
    time_budget_s : the search takes at most this time (seconds, or ``"10m"``); ``None`` has no limit
    max_concurrent : trials at once, one CPU each
    trial_timeout_s : a fit that takes longer is given up and counted as failed; ``None`` allows 20 times what such a
        fit took before, at least a minute
    stop_early : end when another trial is not expected to gain a tenth of the score's standard error
    prefer : among trials that the validation rows do not tell apart, take the cheapest to serve: ``"balanced"`` within one
        standard error, ``"fast"`` (latency) and ``"small"`` (size) within two; ``"score"`` always takes the best score
    seed : of samplers, models and sub-samples
    recency : with rows in time order, also search how much of the past to learn from
    calibrate : let serving correct the probabilities, where unseen rows ask for it (:mod:`raymlops.search.calibration`)
    threshold : from which probability on a binary answer is the positive class: a number, ``Costs(...)``, ``"f1"``, or
        ``None`` for 0.5. Costs also choose between trials that the metric does not tell apart
    distributed : spread the fits on all rows over workers (XGBoost only, and then no other family is tried): ``"auto"`` does when the
        rows are estimated not to fit one worker's memory; trials then see at most the share of the rows that one worker holds
    ensemble : at most so many trials, from 2 to 10, may answer together by a weighted mean, where a pipeline's rows show that
        it pays; 0, the default, keeps to one (:mod:`raymlops.loop.ensembling`)

    Raises
    ------
    ConfigError : when built, naming the field, what was given and what would be accepted
    """

    candidates: Sequence[Candidate] | None = None
    metric: Any = "auto"
    mode: Mode = "max"
    quantile: float | None = None
    weights: str | Callable[[Floats, Floats], Floats] | None = None
    monotone: Mapping[str, int] = field(default_factory=dict)
    trials: int | None = 20
    time_budget_s: float | str | None = None
    max_concurrent: int = 2
    trial_timeout_s: float | str | None = None
    stop_early: bool = True
    prefer: Prefer = "balanced"
    seed: int = 0
    recency: bool = True
    calibrate: bool = True
    threshold: ThresholdSpec = None
    distributed: Distributed = "auto"
    ensemble: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", _families(self.candidates))
        self._check_what()
        for name in ("trials", "max_concurrent"):
            value = getattr(self, name)
            if name == "trials" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r} cannot work: give a whole number of at least 1.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed={self.seed!r} is no seed: give a whole number from 0 to 2147483647.")
        check_spec(self.threshold)
        check_distributed(self.distributed)
        check_ensemble(self.ensemble, self.distributed)
        if self.prefer not in PREFERENCES:
            raise ConfigError(f"prefer={self.prefer!r} is not known.{nearest(str(self.prefer), PREFERENCES)}")
        if self.trials is None and self.time_budget_s is None:
            raise ConfigError("trials=None and time_budget_s=None would search for ever: give one of them.")
        for name in ("time_budget_s", "trial_timeout_s"):
            given = getattr(self, name)
            if given is not None:
                budget = seconds(given, name)
                if budget == 0:
                    raise ConfigError(f"{name}=0 leaves no time for a trial: give more, or None for no limit.")
                object.__setattr__(self, name, budget)

    def _check_what(self) -> None:
        """The fields that say what to learn."""
        known = (
            self.metric == "auto" or self.metric in METRICS if isinstance(self.metric, str) else callable(self.metric)
        )
        if not known and not (isinstance(self.metric, str) and sklearn_scorer(self.metric)):
            raise ConfigError(f"metric={self.metric!r} is not known.{nearest(str(self.metric), (*METRICS, 'auto'))}")
        if self.mode not in ("max", "min"):
            raise ConfigError(f"mode={self.mode!r} is no direction: give 'max' or 'min'.")
        if self.quantile is not None and not (isinstance(self.quantile, float) and 0 < self.quantile < 1):
            raise ConfigError(f"quantile={self.quantile!r} is no quantile: give a number between 0 and 1, such as 0.9.")
        if self.weights is not None and self.weights != "balanced" and not callable(self.weights):
            raise ConfigError(f"weights={self.weights!r}: give 'balanced', or a function of rows and labels.")
        wrong = {column: sign for column, sign in self.monotone.items() if sign not in (1, -1)}
        if wrong:
            raise ConfigError(f"monotone={wrong!r}: give 1 (only rises) or -1 (only falls) by column.")

    def objective(self, task: Task) -> Objective:
        """The metric for a task. Raises :class:`ConfigError` when it, or the weights, do not fit."""
        if self.weights == "balanced" and task == "regression":
            raise ConfigError(
                "weights='balanced' needs classes, and the label makes this a regression: give a function of rows and labels."
            )
        return Objective.of(self.metric, task, mode=self.mode, quantile=self.quantile)

    def families(self, task: Task) -> tuple[Candidate, ...]:
        """The candidates that can do a task. Raises :class:`ConfigError` when none can."""
        able = tuple(candidate for candidate in self.candidates or () if task in candidate.tasks)
        if not able:
            names = ", ".join(candidate.name for candidate in self.candidates or ())
            raise ConfigError(f"The label makes this a {task} task, and none of the candidates ({names}) can do it.")
        for wish in ("quantile", "monotone"):
            if getattr(self, wish):
                able = tuple(candidate for candidate in able if wish in getattr(candidate, "can", ()))
                if not able:
                    raise ConfigError(
                        f"{wish}={getattr(self, wish)!r}: none of the candidates can do it. Give candidates.xgboost() or "
                        "candidates.hist_boosting()."
                    )
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
class Problem:
    """Everything about the task that a trial needs besides its parameters; small, crosses to the workers.

    Attributes
    ----------
    most : the largest share of the train rows that a trial is given; under 1 only where one worker does not hold them all
    ensemble : trials that may answer together; what full fits say of validation rows is then kept
    """

    objective: Objective
    task: Task
    n_classes: int
    categorical: tuple[int, ...]
    seed: int
    baseline: float
    families: Mapping[str, Candidate] = field(repr=False)
    weights: str | Callable[[Floats, Floats], Floats] | None = None
    monotone: tuple[int, ...] = ()
    quantile: float | None = None
    costs: Costs | None = None
    most: float = 1.0
    ensemble: int = 0

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
            weights=search.weights,
            monotone=signs(search.monotone, contract),
            quantile=search.quantile,
            costs=search.threshold if isinstance(search.threshold, Costs) and contract.task == "binary" else None,
            ensemble=search.ensemble,
        )

    def spread(self, plan: Spread | None) -> Problem:
        """The problem where fits on all rows are spread: by families that can be, on the share that one worker holds."""
        if plan is None:
            return self
        able = {name: family for name, family in self.families.items() if spreads(family)}
        return replace(self, families=able, most=plan.share, ensemble=0)

    def build(self, family: str, params: Mapping[str, Any]) -> Estimator:
        own = {key: value for key, value in params.items() if key != "recent"}
        estimator: Any = self.families[family].build(own, self.task, self.n_classes, list(self.categorical), self.seed)
        if self.weights is not None and not hasattr(estimator, "weigh"):
            raise ConfigError(f"weights= does not reach {family!r}: its estimators have no attribute 'weigh'.")
        if self.weights is not None:
            estimator.weigh = _balanced if self.weights == "balanced" else self.weights
        shape(estimator, self.monotone, self.quantile)
        watch = getattr(estimator, "watch", None)
        if watch is not None:
            watch(self.objective.metric)
        built: Estimator = estimator
        return built


def spreads(family: Candidate) -> bool:
    """Whether a fit of this family can be spread over workers."""
    return getattr(getattr(family, "family", family), "kind", "") == "xgboost"


def shape(estimator: Any, monotone: tuple[int, ...], quantile: float | None) -> None:
    """Tell an unfitted estimator which way its prediction may go by column, and which quantile to predict."""
    if monotone:
        estimator.monotone = monotone
    if quantile is not None:
        estimator.quantile = quantile


def signs(wanted: Mapping[str, int], contract: DataContract) -> tuple[int, ...]:
    """``Search.monotone`` as signs by column of the contract. Raises :class:`ConfigError` for a column that is not there or has no order."""
    for name in wanted:
        column = next((item for item in contract.columns if item.name == name), None)
        if column is None:
            raise ConfigError(f"monotone names {name!r}, which is no column.{nearest(name, contract.names)}")
        if column.kind == "category":
            raise ConfigError(f"monotone names {name!r}, whose values are categories: they have no order.")
    return tuple(wanted.get(column.name, 0) for column in contract.columns) if wanted else ()


def _balanced(x: Floats, y: Floats) -> Floats:
    """Weights with which every class weighs alike and the mean is 1 (King & Zeng 2001)."""
    counts = np.bincount(y.astype(int))
    weights: Floats = (len(y) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[y.astype(int)]
    return weights


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


Fit = Callable[[Any, "Floats", "Floats"], "Estimator"]


class End(Protocol):
    """What is known of the time that is left when a search ends."""

    def pick(self, trials: Sequence[Trial]) -> Trial: ...

    def last_fit(self, trial: Trial) -> LastFit: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The leaderboard, the trial to promote, and that trial's estimator fitted on train and, as a rule, validation rows.

    Attributes
    ----------
    share : of those rows that the estimator has learnt from; under 1 where the time budget left none for all of them
    train_only : the estimator has learnt from train rows alone, for the same reason
    threads : for fits of the same configuration on other rows
    fit : fits a built estimator on rows, where one worker does not hold them; ``None`` fits here
    library : what the best trials say of validation rows, where an ensemble was asked for
    """

    leaderboard: Leaderboard
    trial: Trial
    estimator: Estimator
    problem: Problem
    share: float = 1.0
    train_only: bool = False
    threads: int = 1
    fit: Fit | None = None
    library: Library | None = field(default=None, compare=False, repr=False)


def finish(
    problem: Problem,
    arrays: Arrays,
    leaderboard: Leaderboard,
    *,
    threads: int = 1,
    end: End | None = None,
    fit: Fit | None = None,
) -> SearchResult:
    """Pick the best trial and fit it for the gate. Raises :class:`SearchFailed` when there is none.

    A trial that has not seen all rows is first fitted on them with ``threads``, its rounds found anew. In the time of a budget that fit
    is the model, else it is fitted once more, on train and validation rows.

    Parameters
    ----------
    end : which of several such trials, and how a trial can be fitted in the time left
    """
    trial = leaderboard.best
    while trial.status != "done" and end is not None and fit is None:
        trial = end.pick(leaderboard.promising)
        told = end.last_fit(trial)
        climbed = _climb(problem, arrays, trial, told, threads)
        if isinstance(climbed, Trial):
            leaderboard = leaderboard.updated(climbed)
            trial = leaderboard.best
            continue
        whole, estimator, share = climbed
        leaderboard = leaderboard.updated(whole)
        # Others that saw a sample had their chance: there is time for one.
        trial = next(item for item in leaderboard.ranked if item.status == "done")
        # Where the climb used the time up, a better one could only be fitted in a hurry or on few rows.
        if told.until_s is not None and (trial is whole or end.last_fit(trial).over > 1.0):
            return SearchResult(
                leaderboard=leaderboard,
                trial=whole,
                estimator=estimator,
                problem=problem,
                share=share,
                train_only=True,
                threads=threads,
            )
    x = np.concatenate([arrays.x_train, arrays.x_validation])
    y = np.concatenate([arrays.y_train, arrays.y_validation])
    told_last = None if end is None or fit is not None else end.last_fit(trial)
    fitted, part = _fitted(problem, trial, x, y, threads, told_last, fit)
    return SearchResult(
        leaderboard=leaderboard,
        trial=trial,
        estimator=fitted,
        problem=problem,
        share=part,
        threads=threads,
        fit=fit,
    )


def _climb(
    problem: Problem, arrays: Arrays, trial: Trial, told: LastFit, threads: int
) -> tuple[Trial, Estimator, float] | Trial:
    """A trial fitted on as many train rows as time allows, its estimator, and their share of train and validation rows; or the trial,
    failed."""
    cache = RowCache(arrays, problem.seed)
    try:
        hurry, share = told.pace(getattr(problem.build(trial.family, told.params), "quickest", 1.0))
        widen = max(1.0, told.more * share)
        outcome, estimator = run(
            problem, arrays, trial.family, told.params, share, cache, told.until_s, threads, hurry, widen
        )
    except Exception as error:
        # As on a worker: a configuration that fails is a finding, and there may be others.
        reason = f"{type(error).__name__}: {error}"[:500]
        return replace(trial, status="failed", error=reason, score=float("nan"))
    better = replace(
        trial,
        status="done",
        params={**told.params, **outcome.learned},
        score=outcome.score,
        train_score=outcome.train_score,
        gap=outcome.gap,
        fit_s=trial.fit_s + outcome.fit_s,
        curve=(*trial.curve, (share, outcome.score)),
        groups=outcome.groups,
        wrongs=outcome.wrongs,
        cost=outcome.cost,
    )
    seen = share / told.reach * len(arrays.y_train) / (len(arrays.y_train) + len(arrays.y_validation))
    return better, estimator, seen


def refit(result: SearchResult, x: Floats, y: Floats) -> Estimator:
    """The winner's configuration on other rows, oldest first when there is an order.

    Rounds of boosting stay those that the search found; ``recent`` applies to these rows.
    """
    return _fitted(result.problem, result.trial, x, y, result.threads, fit=result.fit)[0]


def before_validation(result: SearchResult, arrays: Arrays) -> Estimator:
    """The winner as fitted on the train rows alone: as a rule the result's own estimator has learnt from validation rows too."""
    if result.train_only:
        return result.estimator
    # Train rows that one worker holds were fitted by one in the search: spreading that fit would only take longer.
    here = replace(result, fit=None) if result.problem.most >= 1.0 else result
    return refit(here, arrays.x_train, arrays.y_train)


def unseen_validation(result: SearchResult, arrays: Arrays) -> Floats:
    """What the winner says of the validation rows, ``(n,)`` or ``(n, k)``, by :func:`before_validation`."""
    return before_validation(result, arrays).predict(arrays.x_validation)


def _fitted(
    problem: Problem,
    trial: Trial,
    x: Floats,
    y: Floats,
    threads: int = 1,
    told: LastFit | None = None,
    fit: Fit | None = None,
) -> tuple[Estimator, float]:
    """A trial's configuration on the rows it asks for, or on the share of those that time allows; and that share."""
    estimator: Any = problem.build(trial.family, trial.params)
    if hasattr(estimator, "threads"):
        estimator.threads = threads
    recent, part = float(trial.params.get("recent", 1.0)), 1.0
    if told is not None:
        hurry, share = told.pace(getattr(estimator, "quickest", 1.0))
        part = min(1.0, share / recent)
        if hasattr(estimator, "hurry"):
            estimator.hurry = hurry
    rows = chosen(len(y), recent, part, problem.seed)
    fitted: Estimator = estimator.fit(x[rows], y[rows]) if fit is None else fit(estimator, x[rows], y[rows])
    return fitted, part
