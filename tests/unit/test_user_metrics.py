"""Metrics that are not ours: on parts of the rows, on every task, of any size, of decisions; and quantiles by their own loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from raymlops.compare.paired import compare, row_loss
from raymlops.compare.slices import judge_slices
from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError
from raymlops.search import candidates
from raymlops.search.decision import Decision, decide
from raymlops.search.objective import Objective
from raymlops.search.probe import held_out_predictions
from raymlops.search.selection import Problem, Search, run_trial
from raymlops.search.threshold import Threshold

RNG = np.random.default_rng(0)


def needs_all_classes(y: Any, p: Any) -> float:
    if len(np.unique(y)) < 2:
        raise RuntimeError("one class only")
    return float(np.mean((p >= 0.5) == y))


def problem_of(search: Search, y: Any, task: Any) -> tuple[Problem, Arrays]:
    x = RNG.normal(size=(len(y), 2)).astype(np.float32)
    cut = len(y) // 2
    arrays = Arrays(
        x_train=x[:cut],
        y_train=y[:cut],
        x_validation=x[cut:],
        y_validation=y[cut:],
        x_test=x[:0],
        y_test=y[:0],
        time_test=None,
    )
    classes = () if task == "regression" else tuple(range(len(np.unique(y))))
    contract = DataContract(
        columns=tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "ab"),
        label="y",
        task=task,
        classes=classes,
    )
    return Problem.of(search, contract, arrays), arrays


@pytest.mark.parametrize("metric", ["neg_log_loss", needs_all_classes], ids=["scorer", "function"])
def test_groups_without_all_classes_have_no_score_and_cost_no_trial(metric: Any) -> None:
    y = np.zeros(800)
    y[::40] = 1  # ten among the validation rows: not one for each of twenty groups
    problem, arrays = problem_of(Search(candidates=[candidates.linear()], metric=metric), y, "binary")
    outcome = run_trial(problem, arrays, "linear", {"C": 1.0})
    assert np.isfinite(outcome.score)
    assert 0 < np.isnan(outcome.groups).sum() < 20


def test_a_metric_that_fails_on_all_rows_says_why() -> None:
    def broken(y: Any, p: Any) -> float:
        raise KeyError("price")

    with pytest.raises(KeyError, match="price"):
        Objective.of(broken, "binary").score(np.array([0, 1]), np.array([0.1, 0.9]))


def test_slices_and_replicates_on_which_a_metric_fails_are_left_out() -> None:
    y = (np.arange(400) >= 200).astype(float)
    p, worse = np.clip(y * 0.4 + 0.3 + RNG.normal(size=400) * 0.1, 0, 1), np.full(400, 0.6)
    objective = Objective.of(needs_all_classes, "binary")
    (part,) = judge_slices(objective, y, p, worse, {"first": np.arange(400) < 100})
    assert (part.candidate, part.champion) == (None, None)

    def picky(y: Any, p: Any) -> float:
        if y[0] == 1:
            raise ValueError("starts with a one")
        return float(np.mean((p >= 0.5) == y))

    found = compare(Objective.of(picky, "binary"), y, p, worse, task="binary", ordered=True)
    assert found is not None
    assert 50 <= found.replicates < 500


def test_the_gap_of_a_metric_of_any_size_is_a_share_of_that_size() -> None:
    negated = Objective.of("neg_root_mean_squared_error", "regression")
    assert negated.gap(-900.0, -1000.0, -2000.0) == pytest.approx(0.05)
    profit = Objective.of(needs_all_classes, "binary")
    assert profit.gap(5000.0, 4500.0, 0.0) == pytest.approx(0.1)
    assert profit.gap(0.9, 0.8, float("nan")) == pytest.approx(0.1)
    assert Objective.of("r2", "regression").gap(0.9, 0.8, -4.0) == pytest.approx(0.1)


def test_a_function_of_the_users_own_takes_class_probabilities_before_any_trial() -> None:
    def hit_rate(y: Any, p: Any) -> float:
        return float((p.argmax(axis=1) == y).mean())

    y = RNG.integers(0, 3, 400).astype(float)
    problem, _ = problem_of(Search(candidates=[candidates.linear()], metric=hit_rate), y, "multiclass")
    assert 0.2 < problem.baseline < 0.6


def test_a_metric_of_decisions_is_known_wherever_it_comes_from() -> None:
    decided = ("accuracy", "f1", "balanced_accuracy", sk.make_scorer(sk.fbeta_score, beta=2))
    assert all(Objective.of(metric, "binary").decides for metric in decided)
    assert not any(Objective.of(metric, "binary").decides for metric in ("roc_auc", "neg_log_loss", needs_all_classes))
    made, p = Decision(threshold=Threshold(value=0.2, rule="fixed")), np.array([0.1, 0.3])
    np.testing.assert_array_equal(made.for_metric(Objective.of("balanced_accuracy", "binary"), p) >= 0.5, [False, True])


def test_rows_of_a_quantile_are_judged_by_its_loss() -> None:
    objective = Objective.of("auto", "regression", quantile=0.9)
    assert objective.quantile == 0.9
    assert Objective.of("rmse", "regression").quantile is None
    np.testing.assert_allclose(row_loss(objective, np.array([3.0, 1.0]), np.array([1.0, 3.0])), [1.8, 0.2])


def test_balanced_weights_of_a_regression_are_refused_with_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"weights='balanced' needs classes.*give a function of rows and labels"):
        problem_of(Search(candidates=[candidates.linear()], weights="balanced"), RNG.normal(size=40), "regression")


def test_one_fit_serves_the_threshold_and_the_reference() -> None:
    # A result without a problem to build from: a second fit would fail.
    result: Any = SimpleNamespace(
        problem=SimpleNamespace(task="binary", seed=0),
        estimator=SimpleNamespace(predict=lambda x: np.full(len(x), 0.3)),
    )
    arrays: Any = SimpleNamespace(y_validation=np.array([0.0, 1.0] * 50), x_test=np.zeros((3, 1)))
    said = np.array([0.2, 0.8] * 50)
    decision = decide(result, arrays, ordered=True, calibrated=False, threshold=0.7, unseen=said)
    assert decision.threshold.value == 0.7
    np.testing.assert_array_equal(held_out_predictions(result, arrays, said), [*said, 0.3, 0.3, 0.3])
