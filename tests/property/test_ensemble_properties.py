"""Whatever the trials said: weights are weights, the selection is no worse than its best trial, and the order of trials is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.search.ensemble import LIBRARY, Library, cross_fitted, halves, plain, select
from raymlops.search.objective import Objective

METRICS = [
    Objective.of(metric, task)
    for task, names in (
        ("binary", ("roc_auc", "log_loss", "brier", "accuracy")),
        ("multiclass", ("log_loss", "roc_auc")),
        ("regression", ("rmse", "mae", "r2")),
    )
    for metric in names
]


@st.composite
def libraries(draw: st.DrawFn) -> tuple[Objective, np.ndarray, dict[int, np.ndarray], int]:
    objective, n = draw(st.sampled_from(METRICS)), draw(st.integers(8, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = draw(st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True))
    # Few digits, and trials that say the same: ties are common.
    if objective.metric in ("rmse", "mae", "r2"):
        y = rng.normal(size=n)
        said = {k: np.round(y + rng.normal(size=n) * draw(st.sampled_from([0.1, 1.0])), 1) for k in numbers}
    elif draw(st.booleans()) and objective.metric in ("log_loss", "roc_auc"):
        y = np.arange(n) % 3.0
        said = {k: rng.dirichlet([1, 1, 1], n).round(2) + 0.01 for k in numbers}
    else:
        y = np.arange(n) % 2.0
        said = {k: np.clip(0.4 * y + 0.6 * rng.random(n), 0.01, 0.99).round(1) for k in numbers}
    if draw(st.booleans()) and len(numbers) > 1:
        said[numbers[0]] = said[numbers[1]]
    return objective, y, said, draw(st.integers(2, 4))


@settings(max_examples=60, deadline=None)
@given(libraries(), st.randoms(use_true_random=False))
def test_a_selection_is_a_mean_that_is_no_worse_than_its_best_trial(case, shuffler) -> None:
    objective, y, said, most = case
    found = select(objective, y, said, most)
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert all(weight > 0 for weight in found.weights.values())
    assert 1 <= len(found.weights) <= most
    mine = objective.score(y, found.predict(said))
    assert mine == pytest.approx(found.score, abs=1e-9)
    for alone in said.values():
        assert not objective.better(objective.score(y, alone), found.score)
    order = list(said)
    shuffler.shuffle(order)
    assert select(objective, y, {number: said[number] for number in order}, most) == found


@settings(max_examples=30, deadline=None)
@given(libraries(), st.booleans(), st.integers(0, 9))
def test_no_row_is_answered_by_an_ensemble_that_was_chosen_on_it(case, ordered: bool, seed: int) -> None:
    objective, y, said, most = case
    first = halves(len(y), ordered=ordered, seed=seed)
    assert abs(int(first.sum()) - len(y) / 2) <= 6
    answer = cross_fitted(objective, y, said, most, first)
    # What the other labels of a half are changes nothing of what is said there.
    for half in (first, ~first):
        other = y.copy()
        other[half] = y[half][::-1]
        assert np.array_equal(cross_fitted(objective, other, said, most, first)[half], answer[half])


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=30),
    st.sampled_from(["roc_auc", "log_loss"]),
)
def test_a_library_keeps_the_best_and_the_overfitted_last(trials: list[tuple[float, bool]], metric: str) -> None:
    objective = Objective.of(metric, "binary")
    library = Library(objective, max_gap=0.3)
    for number, (score, beyond) in enumerate(trials):
        library.add(number, score, 0.5 if beyond else 0.1, np.array([score]))
    sign = -1 if objective.mode == "max" else 1
    best = sorted(range(len(trials)), key=lambda at: (trials[at][1], sign * trials[at][0], at))[:LIBRARY]
    assert sorted(library.said) == sorted(best)


def test_an_ensemble_in_one_line() -> None:
    members = [
        {"trial": 3, "weight": 0.75, "family": "xgboost", "params": {}},
        {"trial": 1, "weight": 0.25, "family": "linear", "params": {}},
    ]
    assert plain("ensemble", {"members": members, "recent": 1.0}) == {
        "members": "0.75 x xgboost (trial 3) + 0.25 x linear (trial 1)",
        "recent": 1.0,
    }
    assert plain("linear", {"C": 2.0}) == {"C": 2.0}
