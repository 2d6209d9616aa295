"""What holds of calibration and threshold for every set of rows."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymlops.search.calibration import calibrate
from raymlops.search.decision import Decision
from raymlops.search.objective import Objective
from raymlops.search.threshold import Costs, Threshold, choose_threshold

Rows = tuple[NDArray[np.float64], NDArray[np.float64]]


@st.composite
def rows(draw: st.DrawFn, least: int = 200, most: int = 500) -> Rows:
    """Labels and probabilities that have something, little or nothing to do with each other, many of them equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, steps = draw(st.integers(least, most)), draw(st.sampled_from([2, 7, 10**6]))
    p = np.round(rng.random(n) ** draw(st.sampled_from([0.3, 1.0, 5.0])) * steps) / steps
    skill, shift = draw(st.floats(-1, 4)), draw(st.floats(-2, 2))
    return (rng.random(n) < 1 / (1 + np.exp(-skill * 4 * (p - 0.5) - shift))).astype(float), p


@settings(max_examples=40, deadline=None)
@given(given_rows=rows(), ordered=st.booleans())
def test_calibrated_probabilities_are_probabilities_in_the_same_order_and_survive_json(
    given_rows: Rows, ordered: bool
) -> None:
    y, p = given_rows
    found, crossed = calibrate(y, p, ordered=ordered)
    grid = np.linspace(0, 1, 101)
    said = found.apply(grid)
    assert ((said >= 0) & (said <= 1)).all()
    assert (np.diff(said) >= -1e-12).all()
    assert crossed.shape == p.shape
    assert found.kind == "identity" or found.gains[found.kind] > found.errors[found.kind]
    again = Decision.from_dict(json.loads(json.dumps(Decision(calibration=found).to_dict())))
    np.testing.assert_array_equal(again.apply(grid), said)


@settings(max_examples=60, deadline=None)
@given(given_rows=rows(least=1, most=300), fp=st.floats(0.01, 100), fn=st.floats(0.01, 100), ordered=st.booleans())
def test_a_threshold_by_costs_is_elkans_or_cheaper_on_these_rows(
    given_rows: Rows, fp: float, fn: float, ordered: bool
) -> None:
    y, p = given_rows
    costs = Costs(false_positive=fp, false_negative=fn)
    found = choose_threshold(costs, y, p, ordered=ordered)
    assert 0 < found.value < 1
    elkan = np.where((p >= costs.best) & (y == 0), fp, np.where((p < costs.best) & (y == 1), fn, 0.0)).mean()
    assert found.here is not None
    assert found.here <= elkan + 1e-9


@settings(max_examples=60, deadline=None)
@given(given_rows=rows(least=1, most=300))
def test_a_threshold_for_f1_is_the_best_of_all(given_rows: Rows) -> None:
    y, p = given_rows
    found = choose_threshold("f1", y, p, ordered=False)

    def f1_at(cut: float) -> float:
        hits = ((p >= cut) & (y == 1)).sum()
        return float(2 * hits / ((p >= cut).sum() + y.sum()))

    if y.any() and len(np.unique(p)) > 1:
        assert found.here is not None
        inner = np.unique(p)[1:]
        assert found.here >= max(f1_at(cut) for cut in inner) - 1e-9


@given(value=st.floats(0.001, 0.999), p=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_metric_at_one_half_sees_the_decisions_of_the_threshold(value: float, p: list[float]) -> None:
    made = Decision(threshold=Threshold(value=value, rule="fixed"))
    seen = made.for_metric(Objective.of("f1", "binary"), np.array(p))
    np.testing.assert_array_equal(seen >= 0.5, np.array(p) >= value)
    assert ((seen >= 0) & (seen <= 1)).all()
