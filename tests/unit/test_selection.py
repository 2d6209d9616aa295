"""Metrics against scikit-learn; the spec's refusals; the rule that picks the trial to promote."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError, SearchFailed
from raymlops.search import candidates
from raymlops.search.cost import Cost
from raymlops.search.pace import LastFit
from raymlops.search.selection import (
    Leaderboard,
    Objective,
    Problem,
    Search,
    Trial,
    compare_windows,
    finish,
    recent_shares,
    refit,
    run_trial,
    unseen_validation,
)
from raymlops.search.threshold import Costs

RNG = np.random.default_rng(3)
Y2 = RNG.integers(0, 2, 300).astype(float)
P2 = np.round(np.clip(Y2 * 0.3 + RNG.random(300) * 0.7, 0.001, 0.999), 2)  # rounded: ties
Y3 = RNG.integers(0, 3, 300).astype(float)
P3 = RNG.dirichlet([1, 1, 1], 300) + np.eye(3)[Y3.astype(int)] * 0.3
P3 /= P3.sum(axis=1, keepdims=True)
YR, PR = RNG.normal(size=300) * 10, RNG.normal(size=300) * 10

AGAINST = [
    ("roc_auc", "binary", Y2, P2, sk.roc_auc_score(Y2, P2)),
    ("average_precision", "binary", Y2, P2, sk.average_precision_score(Y2, P2)),
    ("log_loss", "binary", Y2, P2, sk.log_loss(Y2, P2)),
    ("accuracy", "binary", Y2, P2, sk.accuracy_score(Y2, P2 >= 0.5)),
    ("f1", "binary", Y2, P2, sk.f1_score(Y2, P2 >= 0.5)),
    ("brier", "binary", Y2, P2, sk.brier_score_loss(Y2, P2)),
    ("roc_auc", "multiclass", Y3, P3, sk.roc_auc_score(Y3, P3, multi_class="ovr")),
    ("log_loss", "multiclass", Y3, P3, sk.log_loss(Y3, P3)),
    ("accuracy", "multiclass", Y3, P3, sk.accuracy_score(Y3, P3.argmax(axis=1))),
    ("f1", "multiclass", Y3, P3, sk.f1_score(Y3, P3.argmax(axis=1), average="macro")),
    ("brier", "multiclass", Y3, P3, ((P3 - np.eye(3)[Y3.astype(int)]) ** 2).sum(axis=1).mean()),
    ("rmse", "regression", YR, PR, sk.root_mean_squared_error(YR, PR)),
    ("mae", "regression", YR, PR, sk.mean_absolute_error(YR, PR)),
    ("r2", "regression", YR, PR, sk.r2_score(YR, PR)),
]


@pytest.mark.parametrize(("metric", "task", "y", "p", "expected"), AGAINST, ids=[f"{a[0]}-{a[1]}" for a in AGAINST])
def test_metrics_agree_with_scikit_learn(metric: str, task: Any, y: np.ndarray, p: np.ndarray, expected: float) -> None:
    assert Objective.of(metric, task).score(y, p) == pytest.approx(expected, abs=1e-12)


def test_auto_follows_the_task() -> None:
    assert [Search().objective(task).metric for task in ("binary", "multiclass", "regression")] == [
        "roc_auc",
        "log_loss",
        "rmse",
    ]


def test_a_metric_that_is_not_defined_is_nan_and_never_better() -> None:
    objective = Objective.of("roc_auc", "binary")
    one_class = objective.score(np.ones(5), np.linspace(0, 1, 5))
    assert np.isnan(one_class)
    assert np.isnan(objective.score(np.array([0.0, 1.0]), np.array([np.nan, 1.0])))
    assert np.isnan(objective.score(np.array([]), np.array([])))
    assert not objective.better(one_class, 0.1)
    assert objective.better(0.1, one_class)
    assert not objective.better(0.5, 0.5)


def test_baselines_are_the_best_constants() -> None:
    train, test = np.array([0.0, 0, 0, 1] * 50), np.array([0.0, 1] * 20)
    assert Objective.of("roc_auc", "binary").baseline(train, test) == 0.5
    assert Objective.of("accuracy", "binary").baseline(train, test) == 0.5
    assert Objective.of("f1", "binary").baseline(train, test) == pytest.approx(2 / 3)
    assert Objective.of("rmse", "regression").baseline(train, np.array([0.25, 1.25])) == pytest.approx(np.sqrt(0.5))
    assert Objective.of("mae", "regression").baseline(train, np.array([1.0, 3.0])) == 2.0
    # A class that training never saw has a small probability, not none.
    assert Objective.of("log_loss", "multiclass").baseline(np.array([0.0, 1, 1, 0]), np.array([2.0, 0.0])) < 3


def test_the_gap_is_a_share_of_skill_for_losses_too() -> None:
    assert Objective.of("roc_auc", "binary").gap(0.99, 0.80, 0.5) == pytest.approx(0.19)
    assert Objective.of("rmse", "regression").gap(1.0, 3.0, 10.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"candidates": []},
            "candidates=() is an empty search space: give at least one, or None for all the built-in ones.",
        ),
        (
            {"candidates": "xgboost"},
            "candidates='xgboost' is not a list: give candidates such as [candidates.xgboost()], or None for all.",
        ),
        ({"candidates": [3]}, "candidates holds 3, which is no candidate: it has no name, tasks, start, space, build."),
        (
            {"candidates": [candidates.linear(), candidates.linear()]},
            "candidates holds 'linear' twice: give one of them another name=.",
        ),
        ({"metric": "roc_acu"}, "metric='roc_acu' is not known. Did you mean 'roc_auc'?"),
        ({"trials": 0}, "trials=0 cannot work: give a whole number of at least 1."),
        ({"trials": True}, "trials=True cannot work: give a whole number of at least 1."),
        ({"max_concurrent": 1.5}, "max_concurrent=1.5 cannot work: give a whole number of at least 1."),
        ({"time_budget_s": 0}, "time_budget_s=0 leaves no time for a trial: give more, or None for no limit."),
        (
            {"time_budget_s": "soon"},
            "time_budget_s='soon' is not a duration: give seconds, or a number with ms, s, m, h, d or w.",
        ),
        ({"seed": -1}, "seed=-1 is no seed: give a whole number from 0 to 2147483647."),
    ],
)
def test_a_search_that_cannot_work_is_refused_when_built(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Search(**arguments)
    assert str(caught.value) == sentence


def test_a_metric_that_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Search(metric="rmse").objective("binary")
    assert str(caught.value) == (
        "metric='rmse' does not fit a binary label: it needs regression. "
        "Use one of roc_auc, average_precision, log_loss, accuracy, f1, brier."
    )


def test_candidates_that_cannot_do_the_task_are_refused() -> None:
    only = SimpleNamespace(name="counts", tasks=("regression",), start={}, space=dict, build=dict)
    with pytest.raises(ConfigError, match=r"makes this a binary task, and none of the candidates \(counts\) can do it"):
        Search(candidates=[only]).families("binary")


def test_durations_may_be_words() -> None:
    assert Search(time_budget_s="2m").time_budget_s == 120.0


# --- which trial wins ------------------------------------------------------------------------------


def board(*trials: Trial, mode: Any = "max", max_gap: float | None = None) -> Leaderboard:
    return Leaderboard(metric="roc_auc" if mode == "max" else "rmse", mode=mode, trials=trials, max_gap=max_gap)


def trial(number: int, score: float, gap: float = 0.0, **more: Any) -> Trial:
    return Trial(number=number, family="linear", params={}, score=score, train_score=score, gap=gap, **more)


def test_the_best_score_wins_in_either_direction() -> None:
    assert board(trial(0, 0.7), trial(1, 0.9), trial(2, 0.8)).best.number == 1
    assert board(trial(0, 0.7), trial(1, 0.9), mode="min").best.number == 0


def test_a_trial_the_gate_would_refuse_wins_only_when_there_is_no_other() -> None:
    over, fair = trial(0, 0.95, gap=0.4), trial(1, 0.85, gap=0.1)
    assert board(over, fair, max_gap=0.3).best is fair
    assert board(over, fair, max_gap=None).best is over
    assert board(over, max_gap=0.3).best is over


def test_a_trial_stopped_on_a_sample_loses_to_one_that_saw_all_rows() -> None:
    assert board(trial(0, 0.99, status="stopped"), trial(1, 0.8)).best.number == 1
    assert board(trial(0, 0.99, status="stopped")).best.number == 0


def test_a_trial_on_a_sample_that_is_clearly_better_than_all_of_full_size_wins() -> None:
    groups = tuple((0.8 + 0.01 * np.random.default_rng(0).normal(size=20)).tolist())
    full = Trial(number=0, family="f", params={}, score=0.80, groups=groups)
    for score, best in ((0.803, 0), (0.82, 1)):
        sampled = Trial(number=1, family="f", params={}, score=score, status="stopped")
        assert Leaderboard(metric="roc_auc", mode="max", trials=(full, sampled)).best.number == best


def test_a_winner_that_saw_a_sample_is_fitted_on_all_rows_in_the_time_left_and_its_rounds_found_anew(
    arrays: Arrays, contract: DataContract
) -> None:
    problem = Problem.of(Search(candidates=[candidates.xgboost(), candidates.linear()]), contract, arrays)
    start = dict(candidates.xgboost().start)
    sampled = Trial(number=0, family="xgboost", params={**start, "rounds": 1}, score=0.9, status="stopped")
    board = Leaderboard(metric="roc_auc", mode="max", trials=(sampled,))

    class Told:
        def __init__(self, until_s: float | None, **params: Any) -> None:
            self.until_s, self.params = until_s, params

        def pick(self, trials: Any) -> Trial:
            return trials[0]

        def last_fit(self, trial: Trial) -> LastFit:
            return LastFit(params=self.params[trial.family], until_s=self.until_s)

    for until_s, share in ((60.0, 0.8), (None, 1.0)):
        result = finish(problem, arrays, board, end=Told(until_s, xgboost={**start, "learning_rate": 0.01}))
        assert result.share == pytest.approx(share, abs=0.1)
        assert result.train_only == (until_s is not None)
        if result.train_only:
            said = unseen_validation(result, arrays)
            np.testing.assert_array_equal(said, result.estimator.predict(arrays.x_validation))
        assert result.trial.status == "done"
        assert result.trial.params["rounds"] > 0
        assert result.trial.params["learning_rate"] == 0.01
        assert result.trial.curve == ((1.0, result.trial.score),)
        assert result.leaderboard.best is result.trial
        assert result.estimator.booster.num_boosted_rounds() == result.trial.params["rounds"]
    # One that fails at full size leaves the place to the next.
    second = Trial(number=1, family="linear", params={"C": 1.0}, score=0.5, status="stopped")
    end = Told(9.0, xgboost={**start, "max_leaves": "many"}, linear={"C": 1.0})
    fallen = finish(problem, arrays, board.updated(second), end=end)
    assert (fallen.trial.number, fallen.trial.status) == (1, "done")
    assert any("max_leaves" in error for error in fallen.leaderboard.errors)


def test_failures_are_counted_and_named_when_nothing_worked() -> None:
    failed = [trial(i, float("nan"), status="failed", error="ValueError: no") for i in range(2)]
    odd = trial(2, float("nan"), status="failed", error="MemoryError: big")
    with pytest.raises(SearchFailed) as caught:
        _ = board(*failed, odd).best
    assert str(caught.value) == "None of 3 trials gave a model: 2 x ValueError: no; 1 x MemoryError: big."
    assert caught.value.details == {"errors": {"ValueError: no": 2, "MemoryError: big": 1}}
    with pytest.raises(SearchFailed, match="None of 0 trials gave a model: no trial ended in time"):
        _ = board().best


def test_rows_come_best_first_and_hold_no_nan() -> None:
    rows = board(
        trial(0, float("nan"), gap=float("nan"), status="failed", error="x"), trial(1, 0.6), trial(2, 0.7)
    ).to_rows()
    assert [row["number"] for row in rows] == [2, 1, 0]
    assert rows[2]["score"] is None
    assert rows[2]["gap"] is None


# --- one trial, without a cluster ------------------------------------------------------------------


@pytest.fixture
def arrays() -> Arrays:
    """The sign of the rule turns over after half of the train rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=3000) * 0.5 > 0).astype(float)
    y[:1100] = 1 - y[:1100]
    parts = {"train": slice(0, 2200), "validation": slice(2200, 2600), "test": slice(2600, 3000)}
    split = {f"{axis}_{name}": data[rows] for name, rows in parts.items() for axis, data in (("x", x), ("y", y))}
    return Arrays(**split, time_test=np.arange(400.0))


@pytest.fixture
def contract() -> DataContract:
    columns = tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "ab")
    return DataContract(columns=columns, label="y", task="binary", classes=(0, 1))


def test_a_recent_window_beats_the_whole_past_after_a_change(arrays: Arrays, contract: DataContract) -> None:
    problem = Problem.of(Search(), contract, arrays)
    whole = run_trial(problem, arrays, "linear", {"C": 1.0, "recent": 1.0})
    recent = run_trial(problem, arrays, "linear", {"C": 1.0, "recent": 0.5})
    assert recent.score > 0.9 > whole.score
    assert recent.full
    assert whole.full


def test_a_share_gives_every_window_the_same_number_of_rows(arrays: Arrays, contract: DataContract) -> None:
    problem = Problem.of(Search(), contract, arrays)
    assert not run_trial(problem, arrays, "linear", {"C": 1.0, "recent": 1.0}, share=1 / 3).full
    assert run_trial(problem, arrays, "linear", {"C": 1.0, "recent": 0.25}, share=1 / 3).full


def test_the_winner_is_fitted_on_train_and_validation_and_again_on_what_refit_is_given(
    arrays: Arrays, contract: DataContract
) -> None:
    problem = Problem.of(Search(), contract, arrays)
    params = {**candidates.xgboost().start, "recent": 0.5}
    outcome = run_trial(problem, arrays, "xgboost", params)
    won = Trial(
        number=0,
        family="xgboost",
        params={**params, **outcome.learned},
        score=outcome.score,
        train_score=outcome.train_score,
    )
    result = finish(problem, arrays, board(won))
    assert problem.objective.score(arrays.y_test, result.estimator.predict(arrays.x_test)) > 0.9
    again = refit(result, arrays.x_test, arrays.y_test)
    assert vars(again)["rounds"] == outcome.learned["rounds"]


def test_windows_are_compared_without_a_cluster_and_the_recent_one_wins_after_a_change(
    arrays: Arrays, contract: DataContract
) -> None:
    fixed = candidates.settled(candidates.linear(), {"C": 0.5, "recent": 1.0})
    told: list[Trial] = []
    result = compare_windows(arrays, contract, Search(candidates=[fixed]), ordered=True, on_trial=told.append)
    assert [item.params for item in result.leaderboard.trials] == [{"C": 0.5, "recent": r} for r in (1.0, 0.5, 0.25)]
    assert tuple(told) == result.leaderboard.trials
    assert result.trial.params["recent"] < 1.0
    assert result.problem.objective.score(arrays.y_test, result.estimator.predict(arrays.x_test)) > 0.9


def test_fits_stay_within_the_trials_and_rows_without_order_have_no_windows(
    arrays: Arrays, contract: DataContract
) -> None:
    both = Search(candidates=[candidates.linear(), candidates.xgboost()], trials=3)
    assert len(compare_windows(arrays, contract, both, ordered=True).leaderboard.trials) == 3
    unordered = compare_windows(arrays, contract, both, ordered=False).leaderboard.trials
    assert ["recent" in item.params for item in unordered] == [False, False]


def test_fits_that_fail_are_told_with_their_reason(arrays: Arrays, contract: DataContract) -> None:
    wrong = candidates.settled(candidates.linear(), {"C": -1.0})
    with pytest.raises(SearchFailed, match="3 x InvalidParameterError"):
        compare_windows(arrays, contract, Search(candidates=[wrong]), ordered=True)


def test_a_validation_part_of_one_class_is_a_reason_not_a_score(arrays: Arrays, contract: DataContract) -> None:
    problem = Problem.of(Search(), contract, arrays)
    flat = Arrays(**{**{name: getattr(arrays, name) for name in Arrays.__slots__}, "y_validation": np.ones(400)})
    with pytest.raises(ValueError, match="roc_auc is not defined on the validation rows: one class only"):
        run_trial(problem, flat, "linear", {"C": 1.0})


def test_windows_too_short_to_learn_from_are_not_tried() -> None:
    assert recent_shares(10_000) == (1.0, 0.5, 0.25, 0.1)
    assert recent_shares(1_500) == (1.0, 0.5)
    assert recent_shares(300) == (1.0,)


def test_the_rows_since_a_change_are_one_more_window() -> None:
    assert recent_shares(10_000, 7_000) == (1.0, 0.3, 0.5, 0.25, 0.1)
    assert recent_shares(10_000, 5_000) == (1.0, 0.5, 0.25, 0.1)
    for nothing_to_learn_from in (0, 9_700, 20_000):
        assert recent_shares(10_000, nothing_to_learn_from) == (1.0, 0.5, 0.25, 0.1)


# --- what else a search may ask for ----------------------------------------------------------------


def regression(n: int = 1200) -> tuple[Arrays, DataContract]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(n, 2)).astype(np.float32)
    y = 3 * x[:, 0] + np.sin(9 * x[:, 1]) + rng.normal(size=n)
    parts = {"train": slice(0, n // 2), "validation": slice(n // 2, 3 * n // 4), "test": slice(3 * n // 4, n)}
    split = {f"{axis}_{name}": data[rows] for name, rows in parts.items() for axis, data in (("x", x), ("y", y))}
    columns = tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "ab")
    return Arrays(**split, time_test=None), DataContract(columns=columns, label="y", task="regression", classes=())


@pytest.mark.parametrize("family", [candidates.xgboost(), candidates.hist_boosting()], ids=lambda f: f.name)
def test_a_quantile_is_exceeded_as_often_as_it_says(family: Any) -> None:
    arrays, contract = regression()
    spec = Search(candidates=[family, candidates.linear()], quantile=0.9)
    problem = Problem.of(spec, contract, arrays)
    assert set(problem.families) == {family.name}
    assert problem.objective.metric == "pinball_0.9"
    fitted = problem.build(family.name, dict(family.start)).fit(
        arrays.x_train, arrays.y_train, arrays.x_validation, arrays.y_validation
    )
    assert 0.8 < (arrays.y_test <= fitted.predict(arrays.x_test)).mean() < 0.97
    score = problem.objective.score(arrays.y_test, fitted.predict(arrays.x_test))
    assert score == pytest.approx(sk.mean_pinball_loss(arrays.y_test, fitted.predict(arrays.x_test), alpha=0.9))
    assert score < problem.objective.baseline(arrays.y_train, arrays.y_test)


@pytest.mark.parametrize("family", [candidates.xgboost(), candidates.hist_boosting()], ids=lambda f: f.name)
def test_a_monotone_column_moves_the_prediction_one_way_only(family: Any) -> None:
    arrays, contract = regression()
    sweep = np.column_stack([np.zeros(200), np.linspace(-1, 1, 200)]).astype(np.float32)
    moves = {}
    for wanted in ({}, {"b": 1}):
        problem = Problem.of(Search(candidates=[family], monotone=wanted), contract, arrays)
        fitted = problem.build(family.name, {**family.start}).fit(arrays.x_train, arrays.y_train)
        moves[bool(wanted)] = np.diff(fitted.predict(sweep)).min()
    assert moves[True] >= -1e-6 > moves[False]


def test_balanced_weights_raise_the_rare_class(arrays: Arrays, contract: DataContract) -> None:
    rare = arrays.y_train.copy()
    rare[np.random.default_rng(0).random(len(rare)) < 0.8] = 0.0
    few = {"n_estimators": 20, "max_iter": 20, "rounds": 20}

    def own(x: Any, y: Any) -> Any:
        return np.where(y == 1, 4.0, 1.0)

    for family in (*candidates.defaults(), candidates.extra_trees()):
        means = []
        for weights in (None, "balanced", own):
            problem = Problem.of(Search(candidates=[family], weights=weights), contract, arrays)
            start = {**family.start, **{key: few[key] for key in few if key in family.start}}
            fitted = problem.build(family.name, start).fit(arrays.x_train, rare)
            means.append(fitted.predict(arrays.x_test).mean())
        assert min(means[1:]) > means[0] + 0.05, family.name


@pytest.mark.parametrize(
    ("metric", "task", "y", "p", "expected"),
    [
        ("balanced_accuracy", "binary", Y2, P2, sk.balanced_accuracy_score(Y2, P2 >= 0.5)),
        ("neg_log_loss", "multiclass", Y3, P3, -sk.log_loss(Y3, P3)),
        (sk.make_scorer(sk.fbeta_score, beta=2), "binary", Y2, P2, sk.fbeta_score(Y2, P2 >= 0.5, beta=2)),
        ("neg_median_absolute_error", "regression", YR, PR, -sk.median_absolute_error(YR, PR)),
        (lambda y, p: float(((y - p) ** 4).mean()), "regression", YR, PR, ((YR - PR) ** 4).mean()),
    ],
    ids=["name", "proba", "scorer", "loss", "function"],
)
def test_metrics_of_scikit_learn_and_of_the_users_own(metric: Any, task: Any, y: Any, p: Any, expected: float) -> None:
    objective = Search(metric=metric).objective(task)
    assert objective.score(y, p) == pytest.approx(expected)
    assert objective.mode == "max"
    assert np.isfinite(objective.baseline(y[:200], y[200:]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"monotone": {"a": 2}}, "monotone={'a': 2}: give 1 (only rises) or -1 (only falls) by column."),
        ({"quantile": 90}, "quantile=90 is no quantile: give a number between 0 and 1, such as 0.9."),
        ({"weights": "blanced"}, "weights='blanced': give 'balanced', or a function of rows and labels."),
        ({"prefer": "fats"}, "prefer='fats' is not known. Did you mean 'fast'?"),
        ({"trials": None}, "trials=None and time_budget_s=None would search for ever: give one of them."),
    ],
)
def test_wishes_that_cannot_work_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Search(**arguments)
    assert str(caught.value) == sentence


def test_wishes_that_do_not_fit_the_data_are_refused(arrays: Arrays, contract: DataContract) -> None:
    with pytest.raises(ConfigError, match="monotone names 'aa', which is no column"):
        Problem.of(Search(monotone={"aa": 1}), contract, arrays)
    with pytest.raises(
        ConfigError, match=r"quantile=0\.9 needs numbers to predict, and the label makes this a binary task"
    ):
        Problem.of(Search(quantile=0.9), contract, arrays)
    with pytest.raises(ConfigError, match=r"monotone=.*none of the candidates can do it"):
        Problem.of(Search(candidates=[candidates.linear()], monotone={"a": 1}), contract, arrays)


# --- the one to promote ------------------------------------------------------------------------------


def costed(number: int, score: float, latency_us: float, *, noise: float = 0.0) -> Trial:
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 0.02, 20)
    own = np.random.default_rng(number).normal(0, 1, 20) * noise
    groups = tuple((score + shared + own - own.mean()).tolist())
    return Trial(
        number=number,
        family="f",
        params={},
        score=score,
        groups=groups,
        cost=Cost(latency_us=latency_us, size_kb=1.0, features=3),
    )


def test_among_equals_the_cheapest_to_serve_is_promoted() -> None:
    best, equal, worse = (
        costed(0, 0.900, 900.0),
        costed(1, 0.8995, 30.0, noise=0.005),
        costed(2, 0.890, 10.0, noise=0.005),
    )
    trials = (best, equal, worse)
    chosen = {
        prefer: Leaderboard(metric="m", mode="max", trials=trials, prefer=prefer).best.number
        for prefer in ("score", "balanced")
    }
    assert chosen == {"score": 0, "balanced": 1}
    assert [t.number for t in Leaderboard(metric="m", mode="max", trials=trials, prefer="balanced").equals] == [0, 1]


def test_a_score_that_is_lower_on_every_group_of_rows_is_not_equal() -> None:
    # Its own error is large, and shared with the best: the difference has none.
    board = Leaderboard(
        metric="m", mode="max", trials=(costed(0, 0.9, 900.0), costed(1, 0.899, 30.0)), prefer="balanced"
    )
    assert board.best.number == 0


@pytest.mark.parametrize("prefer", ["score", "balanced"])
def test_among_equals_the_one_whose_wrong_answers_cost_least_is_promoted_where_costs_are_given(prefer: Any) -> None:
    plain = [
        costed(0, 0.90, 500.0, noise=0.02),
        costed(1, 0.899, 400.0, noise=0.02),
        costed(2, 0.899, 10.0, noise=0.02),
    ]
    trials = tuple(
        replace(trial, wrongs=tuple((cost + 0.001 * np.arange(20)).tolist()))
        for trial, cost in zip(plain, (0.5, 0.3, 0.5), strict=True)
    )
    board = Leaderboard(metric="roc_auc", mode="max", trials=trials, prefer=prefer)
    assert board.best.number == 1
    assert board.to_rows()[1]["wrong"] == pytest.approx(0.3095)
    without = Leaderboard(metric="roc_auc", mode="max", trials=tuple(plain), prefer=prefer)
    assert without.best.number == (0 if prefer == "score" else 2)


def test_a_full_fit_tells_what_its_answers_cost(arrays: Arrays, contract: DataContract) -> None:
    spec = Search(threshold=Costs(false_positive=1, false_negative=9))
    problem = Problem.of(spec, contract, arrays)
    outcome = run_trial(problem, arrays, "linear", {"C": 1.0, "recent": 0.25})
    assert len(outcome.wrongs) == len(outcome.groups) == 20
    # Better than answering "yes" to all, which is the cheapest of the two constants here.
    assert np.mean(outcome.wrongs) < min(np.mean(arrays.y_validation == 0), 9 * np.mean(arrays.y_validation == 1))
    assert run_trial(problem, arrays, "linear", {"C": 1.0}, share=0.3).wrongs == ()
    assert run_trial(Problem.of(Search(), contract, arrays), arrays, "linear", {"C": 1.0}).wrongs == ()


def test_a_shorter_past_is_not_taken_for_being_cheaper() -> None:
    best = replace(costed(0, 0.900, 900.0), params={"recent": 1.0})
    shorter = replace(costed(1, 0.8995, 30.0, noise=0.005), params={"recent": 0.1})
    alike = replace(costed(2, 0.8994, 60.0, noise=0.005), params={"recent": 1.0})

    def promoted(*trials: Trial) -> int:
        return Leaderboard(metric="m", mode="max", trials=trials, prefer="balanced").best.number

    assert promoted(best, shorter) == 0
    assert promoted(best, shorter, alike) == 2
    assert promoted(replace(best, params={"recent": 0.1}), shorter) == 1


def test_rows_of_a_large_board_compare_numbers_and_not_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    many = board(*(trial(number, 0.5) for number in range(50)), trial(50, float("nan")))
    monkeypatch.setattr(Trial, "__eq__", lambda *_: pytest.fail("compared as wholes"))
    assert [row["number"] for row in many.to_rows()] == list(range(51))


def test_a_search_that_gains_nothing_more_is_enough_and_one_that_does_is_not() -> None:
    from dataclasses import replace

    from raymlops.search.stopping import Patience

    flat = [replace(costed(i, 0.9, 1.0), params={"C": 1.0 + i}) for i in range(40)]
    said = Patience("max")(flat)
    assert said is not None
    assert said.endswith("more time is not expected to help")
    rng = np.random.default_rng(0)
    rising = [
        replace(costed(i, 0.5 + 0.4 * i / 40, 1.0), params={"C": float(np.exp(i / 4 + rng.normal()))})
        for i in range(40)
    ]
    assert Patience("max")(rising) is None
    assert Patience("max")(flat[:29]) is None


def test_the_curve_tells_when_the_best_score_rose() -> None:
    found = board(trial(0, 0.5), trial(1, 0.9, status="stopped"), trial(2, 0.4), trial(3, 0.6)).curve
    assert found == ((1, 0.5), (4, 0.6))
