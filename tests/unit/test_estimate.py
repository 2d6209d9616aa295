"""Performance without labels: right where its assumption holds, refused where it cannot know, honest about both."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, roc_auc_score

from raymlops.errors import DataError
from raymlops.monitor.estimate import ASSUMES, PerformanceEstimate, PerformanceEstimator, density_ratio, labels_of, pool

Rows = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]


def rows(n: int, seed: int, center: float = 0.0) -> Rows:
    """Inputs, scores and labels of a model that is badly calibrated where ``x0`` is large."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[:, 0] += center
    truth = 1 / (1 + np.exp(-x[:, 1] - 1.5 * np.maximum(x[:, 0], 0)))
    scores = 1 / (1 + np.exp(-1.5 * x[:, 1].astype(np.float64)))
    return x, scores, (rng.uniform(size=n) < truth).astype(np.float64)


def estimator() -> PerformanceEstimator:
    return PerformanceEstimator(*rows(8000, 0))


def test_moved_inputs_are_followed_where_unweighted_calibration_is_not() -> None:
    x, scores, y = rows(4000, 1, center=1.0)
    found = estimator().estimate(x, scores)
    real = {
        "accuracy": accuracy_score(y, scores >= 0.5),
        "f1": f1_score(y, scores >= 0.5),
        "brier": brier_score_loss(y, scores),
    }
    for name, value in real.items():
        metric = found.metrics[name]
        assert abs(metric.value - value) < 0.5 * abs(metric.check - value)
        assert metric.low <= metric.value <= metric.high
    assert found.assumes == ASSUMES
    assert 50 < found.effective_rows < 8000


def test_without_a_change_both_say_what_labels_say() -> None:
    x, scores, y = rows(6000, 2)
    found = estimator().estimate(x, scores)
    assert found.refused == {}
    auc = found.metrics["roc_auc"]
    assert auc.value == pytest.approx(roc_auc_score(y, scores), abs=0.02)
    assert auc.low <= roc_auc_score(y, scores) <= auc.high
    assert found.metrics["accuracy"].check == pytest.approx(accuracy_score(y, scores >= 0.5), abs=0.02)


def test_an_auc_of_too_few_rows_is_refused_with_the_reason() -> None:
    x, scores, _ = rows(90, 3)
    found = estimator().estimate(x, scores)
    assert "roc_auc" not in found.metrics
    assert "rows of one class expected, needs 50" in found.refused["roc_auc"]


def test_the_same_rows_give_the_same_numbers_and_json_keeps_them() -> None:
    x, scores, _ = rows(500, 4)
    one, other = estimator().estimate(x, scores), estimator().estimate(x, scores)
    assert one == other
    assert PerformanceEstimate.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_labels_come_back_from_brier_losses_and_only_from_those() -> None:
    _, scores, y = rows(1000, 5)
    assert (labels_of(scores, (scores - y) ** 2) == y).all()
    assert np.isnan(labels_of([0.5, 0.7, np.nan], [0.25, 1.0, 0.1])).all()


def test_density_ratio_weighs_the_rows_that_came_more_often() -> None:
    x, _, _ = rows(3000, 6)
    ratio = density_ratio(x, rows(3000, 7, center=1.0)[0])
    assert ratio.mean() == pytest.approx(1.0)
    assert ratio[x[:, 0] > 1].mean() > 3 * ratio[x[:, 0] < 0].mean()


@pytest.mark.parametrize("seed", range(5))
def test_pooling_is_isotonic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=40) + np.arange(40) / 20, rng.uniform(0.1, 3, size=40)
    expected = IsotonicRegression().fit_transform(np.arange(40), values, sample_weight=weights)
    assert pool(values, weights) == pytest.approx(expected)


def test_what_cannot_be_estimated_is_refused() -> None:
    x, scores, _ = rows(400, 8)
    with pytest.raises(DataError, match="400 labelled reference rows, 0 of class 1"):
        PerformanceEstimator(x, scores, np.zeros(400))
    with pytest.raises(DataError, match="an estimate needs 50 of 3 columns"):
        estimator().estimate(x[:, :2], scores)
    with pytest.raises(DataError, match="0 with a score"):
        estimator().estimate(x, np.full(400, np.nan))


def test_a_column_without_a_single_value_tells_nothing_and_breaks_nothing() -> None:
    rng = np.random.default_rng(0)
    x, moved = rng.normal(size=(600, 3)), rng.normal(size=(400, 3)) + np.array([1.0, 0.0, 0.0])
    x[:, 2] = moved[:, 2] = np.nan
    assert np.allclose(density_ratio(x, moved), density_ratio(x[:, :2], moved[:, :2]))
    assert density_ratio(x[:, 2:], moved[:, 2:]).tolist() == [1.0] * 600
