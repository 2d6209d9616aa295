"""Probabilities are corrected when unseen rows ask for it, and left alone when they do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from raymlops.search.calibration import Calibration, calibrate
from raymlops.search.decision import Decision
from raymlops.search.objective import Objective, log_loss
from raymlops.search.threshold import Threshold


def rows(n: int, distort: float, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels, and probabilities whose log-odds are ``distort`` times the true ones."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n) * 2
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    return y, 1 / (1 + np.exp(-distort * z))


def test_overconfident_probabilities_are_corrected_on_rows_nobody_has_seen() -> None:
    found, crossed = calibrate(*rows(3000, 3.0), ordered=False)
    assert found.kind == "platt"
    assert found.params["a"][0] == pytest.approx(1 / 3, abs=0.05)
    assert found.gains["platt"] > found.errors["platt"] > 0
    y, p = rows(20_000, 3.0, seed=1)
    assert log_loss(y, found.apply(p)) < log_loss(y, p) - 0.1
    assert found.note.startswith("The platt map lowers the log loss of unseen rows by ")
    assert log_loss(rows(3000, 3.0)[0], crossed) == pytest.approx(found.losses["platt"], abs=1e-6)


def test_probabilities_that_mean_what_they_say_stay_as_they_are() -> None:
    y, p = rows(3000, 1.0)
    found, crossed = calibrate(y, p, ordered=False)
    assert found.kind == "identity"
    np.testing.assert_array_equal(crossed, p)
    np.testing.assert_array_equal(found.apply(p), p)
    assert found.note == "No map lowers the log loss of unseen rows by more than its standard error."


def test_a_distortion_that_no_logistic_map_has_needs_the_isotonic_one() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = (rng.random(20_000) < np.where(p > 0.5, 0.9, np.where(p > 0.45, 0.1, 0.4 * p))).astype(float)
    found, _ = calibrate(y, p, ordered=False)
    assert found.kind == "isotonic"
    np.testing.assert_allclose(found.apply(np.array([0.2, 0.8])), [0.08, 0.9], atol=0.03)
    assert 0 < found.apply(np.array([0.0]))[0] < found.apply(np.array([1.0]))[0] < 1


def test_more_than_two_classes_get_a_temperature() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 3))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = (rng.random((4000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    found, _ = calibrate(y, sharp, ordered=False)
    assert found.kind == "temperature"
    assert found.params["temperature"][0] == pytest.approx(3.0, abs=0.3)
    np.testing.assert_allclose(found.apply(sharp), p, atol=0.05)


@pytest.mark.parametrize(
    ("n", "positives", "note"),
    [
        (100, 50, "100 rows are too few to calibrate on: it takes 200."),
        (500, 5, "A class has 5 rows, too few to calibrate on: it takes 20."),
    ],
)
def test_too_little_to_calibrate_on_is_said(n: int, positives: int, note: str) -> None:
    y = np.r_[np.ones(positives), np.zeros(n - positives)]
    found, p = calibrate(y, np.full(n, 0.5), ordered=False)
    assert (found.kind, found.note) == ("identity", note)
    np.testing.assert_array_equal(p, np.full(n, 0.5))


def test_a_model_that_says_what_is_no_probability_is_left_alone() -> None:
    y, p = rows(300, 1.0)
    p[3] = np.nan
    assert calibrate(y, p, ordered=False)[0].note == "The model gives probabilities that are not finite."


@pytest.mark.parametrize(
    "made",
    [
        Calibration(kind="platt", params={"a": (0.5,), "c": (0.1,)}),
        Calibration(kind="beta", params={"a": (0.5,), "b": (2.0,), "c": (0.1,)}),
        Calibration(kind="isotonic", params={"from": (0.1, 0.9), "to": (0.2, 0.7)}),
    ],
    ids=lambda made: made.kind,
)
def test_a_fault_of_the_model_stays_visible(made: Calibration) -> None:
    said = made.apply(np.array([0.0, 1.0, np.nan, np.inf, -np.inf]))
    assert np.isnan(said[2:]).all()
    assert (said[:2] >= 0).all()
    assert (said[:2] <= 1).all()


def test_it_comes_back_whole_from_json() -> None:
    calibration, _ = calibrate(*rows(3000, 3.0), ordered=True)
    made = Decision(calibration=calibration, threshold=Threshold(value=0.2, rule="fixed"))
    again = Decision.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert again == made
    assert again.calibrates
    assert not Decision().calibrates


def test_a_metric_of_decisions_sees_the_threshold_and_a_metric_of_probabilities_does_not() -> None:
    made = Decision(threshold=Threshold(value=0.2, rule="fixed"))
    p = np.array([0.0, 0.1, 0.2, 0.6, 1.0])
    np.testing.assert_array_equal(made.for_metric(Objective.of("f1", "binary"), p) >= 0.5, p >= 0.2)
    np.testing.assert_allclose(made.for_metric(Objective.of("f1", "binary"), p), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(made.for_metric(Objective.of("log_loss", "binary"), p), p)
