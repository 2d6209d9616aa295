"""Candidate against champion: by rows, by blocks, by slices, and which columns matter."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from raymlops.compare.paired import Comparison, best_constant, compare, row_loss
from raymlops.compare.relevance import Relevance, relevance
from raymlops.compare.slices import Slice, asked_masks, check_slices, found_masks, judge_slices
from raymlops.data.schema import learn_contract
from raymlops.errors import ConfigError
from raymlops.search.objective import Objective
from raymlops.search.resample import block_rows, moving_blocks, standard_error, stratified

AUC, RMSE = Objective.of("roc_auc", "binary"), Objective.of("rmse", "regression")
RNG = np.random.default_rng(0)


def autoregressive(n: int, rho: float, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    noise = np.random.default_rng(seed).normal(size=n)
    out = np.empty(n)
    out[0] = noise[0] / np.sqrt(1 - rho**2)
    for i in range(1, n):
        out[i] = rho * out[i - 1] + noise[i]
    return out


def test_the_standard_error_of_dependent_rows_is_that_of_their_blocks() -> None:
    means = [autoregressive(2000, 0.8, seed).mean() for seed in range(200)]
    said = np.array([standard_error(autoregressive(2000, 0.8, seed), ordered=True) for seed in range(200)])
    assert np.median(said) == pytest.approx(np.std(means), rel=0.25)
    naive = standard_error(autoregressive(2000, 0.8, 0), ordered=False)
    assert naive < np.median(said) / 2


def test_independent_rows_need_no_blocks() -> None:
    assert block_rows(RNG.normal(size=5000)) == 1
    assert block_rows(autoregressive(5000, 0.8, 0)) > 10
    assert block_rows(np.ones(500)) == block_rows(np.zeros(3)) == block_rows(np.zeros(0)) == 1
    assert np.isnan(standard_error(np.ones(1), ordered=True))


def test_blocks_are_runs_of_neighbours_and_strata_keep_their_size() -> None:
    for rows in moving_blocks(100, 10, 20, seed=0):
        assert rows.shape == (100,)
        assert (np.diff(rows.reshape(10, 10), axis=1) == 1).all()
    strata = np.array([0] * 97 + [1] * 3)
    assert all((strata[rows] == 1).sum() == 3 for rows in stratified(strata, 20, seed=0))


def test_a_better_model_is_told_from_its_equal() -> None:
    y = RNG.normal(size=800)
    good, bad = y + RNG.normal(size=800), y + 1.3 * RNG.normal(size=800)
    found = compare(RMSE, y, good, bad, task="regression", ordered=False)
    assert found is not None
    assert 0 < found.low < found.gain < found.high
    assert found.certainty > 0.99
    same = compare(RMSE, y, good, y - (good - y), task="regression", ordered=True)
    assert same is not None
    np.testing.assert_allclose([same.low, same.gain, same.high], 0.0, atol=1e-12)
    assert same.certainty < 0.5
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_rare_class_is_in_every_replicate_and_dependent_rows_are_drawn_in_blocks() -> None:
    y = np.r_[np.ones(6), np.zeros(994)]
    p = RNG.random(1000)
    found = compare(AUC, y, p, np.full(1000, 0.5), task="binary", ordered=True)
    assert found is not None
    assert (found.replicates, found.method) == (500, "rows drawn within each class")
    drift = autoregressive(1000, 0.9, 1)
    moved = compare(RMSE, np.zeros(1000), np.abs(drift), np.ones(1000), task="regression", ordered=True)
    assert moved is not None
    assert moved.method.startswith("moving blocks of ")


def test_intervals_cover_what_they_promise_on_dependent_rows() -> None:
    """At 90 %, blocks included; single rows would cover about half."""
    covered = 0
    for seed in range(60):
        a = autoregressive(600, 0.7, seed)
        found = compare(
            Objective.of("mae", "regression"), np.zeros(600), 5 + a, np.full(600, 5.0), task="regression", ordered=True
        )
        assert found is not None
        covered += found.low <= 0.0 <= found.high
    assert covered >= 46


def test_without_a_score_there_is_no_comparison() -> None:
    assert compare(AUC, np.ones(50), np.ones(50), np.ones(50), task="binary", ordered=False) is None


def test_losses_of_rows() -> None:
    np.testing.assert_allclose(row_loss(AUC, np.array([1, 0]), np.array([0.75, 0.5])), [0.0625, 0.25])
    np.testing.assert_allclose(row_loss(AUC, np.array([1, 0]), np.array([[0.2, 0.8], [0.9, 0.1]])), [0.2, 0.1])
    np.testing.assert_allclose(row_loss(Objective.of("mae", "regression"), np.array([1]), np.array([3])), [2])


def test_the_best_constant_is_no_worse_than_the_baseline_of_the_metric() -> None:
    y = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    for metric in ("roc_auc", "log_loss", "f1", "brier", "accuracy"):
        objective = Objective.of(metric, "binary")
        found = objective.score(y, best_constant(objective, "binary", y, y))
        assert not objective.better(objective.baseline(y, y), found)
    values = np.random.default_rng(0).normal(size=200)
    for metric in ("rmse", "mae", "r2"):
        objective = Objective.of(metric, "regression")
        found = objective.score(values, best_constant(objective, "regression", values, values))
        assert objective.gain(found, objective.baseline(values, values)) > -1e-9
    three = np.arange(30) % 3
    assert best_constant(Objective.of("log_loss", "multiclass"), "multiclass", three, three).shape == (30, 3)


# --- slices ------------------------------------------------------------------------------------------

FRAME = pd.DataFrame(
    {"age": RNG.integers(18, 90, 2000), "place": RNG.choice(["x", "y", "z"], 2000), "member": RNG.random(2000) < 0.5}
)
FRAME.loc[::10, "age"] = np.nan
FRAME["y"] = RNG.integers(0, 2, 2000)
CONTRACT = learn_contract(FRAME, "y", "binary")
X = CONTRACT.encode(FRAME)


def test_slices_are_categories_quarters_and_what_is_missing() -> None:
    masks = found_masks(CONTRACT, X, ["age", "place", "member"])
    assert {"age is missing", "place = x", "member = true", "member = false"} <= set(masks)
    quarters = [mask for name, mask in masks.items() if "age" in name and "missing" not in name]
    assert len(quarters) == 4
    assert sum(quarters).tolist() == (~np.isnan(X[:, 0])).astype(int).tolist()
    assert found_masks(CONTRACT, X[:40], ["age"]) == {}


def test_a_slice_that_got_worse_is_found_although_the_whole_got_better() -> None:
    y = FRAME.y.to_numpy(dtype=float)
    champion = np.full(2000, 0.5)
    candidate = np.where(y == 1, 0.7, 0.3)
    here = (FRAME.place == "y").to_numpy()
    candidate[here] = 1 - candidate[here]
    masks = found_masks(CONTRACT, X, ["place", "member"])
    found = judge_slices(AUC, y, candidate, champion, masks, asked={"few": here & (np.arange(2000) < 100)})
    assert [item.name for item in found if item.worse] == ["place = y"]
    worst = found[0]
    assert worst.p_value is not None
    assert worst.p_value < 1e-6
    assert (worst.candidate, worst.champion) == (0.0, 0.5)
    few = next(item for item in found if item.asked)
    assert (few.p_value, few.worse) == (None, False)
    assert all(Slice.from_dict(json.loads(json.dumps(item.to_dict()))) == item for item in found)


def test_no_slice_of_an_equal_model_is_called_worse_more_often_than_promised() -> None:
    alarms = 0
    masks = found_masks(CONTRACT, X, ["age", "place", "member"])
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 2000).astype(float)
        alarms += any(item.worse for item in judge_slices(AUC, y, rng.random(2000), rng.random(2000), masks))
    assert alarms <= 12


def test_slices_by_name_are_expressions_over_the_columns() -> None:
    masks = asked_masks({"young": "age < 25 and place == 'x'"}, FRAME)
    assert masks["young"].tolist() == ((FRAME.age < 25) & (FRAME.place == "x")).tolist()
    with pytest.raises(
        ConfigError,
        match=r"slices\['old'\]='years > 80' cannot be evaluated: .*Slices are told by the model's inputs and the label: age, ",
    ):
        asked_masks({"old": "years > 80"}, FRAME)
    with pytest.raises(ConfigError, match=r"slices\['sum'\]='age \+ 1' does not say yes or no for each row\."):
        asked_masks({"sum": "age + 1"}, FRAME)
    with pytest.raises(ConfigError, match=r"slices=\['a'\] is no mapping of names to expressions"):
        check_slices(["a"])


# --- columns -----------------------------------------------------------------------------------------


def test_columns_that_say_nothing_are_told_from_those_that_do() -> None:
    x = RNG.normal(size=(1500, 3)).astype(np.float32)
    y = (x[:, 1] > 0).astype(float)
    found = relevance(
        AUC, lambda rows: np.where(rows[:, 1] > 0, 0.9, 0.1) + 0.001 * rows[:, 2], x, y, "abc", ordered=False
    )
    assert (found[0].column, found[0].matters) == ("b", True)
    assert not any(item.matters for item in found[1:])
    assert all(Relevance.from_dict(json.loads(json.dumps(item.to_dict()))) == item for item in found)
