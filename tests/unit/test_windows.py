"""How much of the past to learn from: all of it, unless less is surely better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from raymlops.data.schema import learn_contract
from raymlops.data.snapshot import Arrays
from raymlops.search.candidates import hist_boosting, linear, random_forest
from raymlops.search.probe import held_out_predictions
from raymlops.search.selection import Search, compare_windows
from raymlops.search.windows import _losses, choose_window

SEARCH = Search(candidates=[linear()], metric="brier")


def stream(change: int | None, *, noise: float = 1.0, seed: int = 0) -> tuple[Arrays, pd.DataFrame]:
    """4,500 rows; from ``change`` on the first column means the opposite."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4500, 3)).astype(np.float32)
    sign = np.where(np.arange(4500) < (4500 if change is None else change), 1.0, -1.0)
    y = (sign * x[:, 0] + x[:, 1] + noise * rng.normal(size=4500) > 0).astype(float)
    a, b, c = slice(0, 4000), slice(4000, 4250), slice(4250, 4500)
    arrays = Arrays(
        x_train=x[a], x_validation=x[b], x_test=x[c], y_train=y[a], y_validation=y[b], y_test=y[c], time_test=None
    )
    return arrays, pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y.astype(int)})


def test_less_than_everything_must_be_better_than_chance_would_make_it() -> None:
    best, chosen = [], []
    for seed in range(12):
        arrays, frame = stream(None, noise=2.0, seed=seed)
        contract = learn_contract(frame, "y")
        best.append(compare_windows(arrays, contract, SEARCH, ordered=True).trial.params["recent"])
        chosen.append(choose_window(arrays, contract, SEARCH, ordered=True).trial.params["recent"])
    assert sum(share < 1.0 for share in best) >= 6
    assert sum(share < 1.0 for share in chosen) <= sum(share < 1.0 for share in best) / 2


def test_after_a_change_the_rows_since_then_are_chosen_and_what_serves_fits_the_choice() -> None:
    arrays, frame = stream(2600)
    result = choose_window(arrays, learn_contract(frame, "y"), SEARCH, ordered=True, change_row=2600)
    assert result.trial.params["recent"] == pytest.approx(1400 / 4000)
    brier = ((result.estimator.predict(arrays.x_test) - arrays.y_test) ** 2).mean()
    assert brier < 0.15


def test_where_all_rows_are_taken_the_estimator_has_learnt_from_all() -> None:
    for seed in range(12):
        arrays, frame = stream(None, noise=2.0, seed=seed)
        contract = learn_contract(frame, "y")
        before = compare_windows(arrays, contract, SEARCH, ordered=True)
        after = choose_window(arrays, contract, SEARCH, ordered=True)
        if before.trial.params["recent"] < after.trial.params["recent"]:
            assert after.trial.params["recent"] == 1.0
            assert (after.estimator.predict(arrays.x_test) != before.estimator.predict(arrays.x_test)).any()
            return
    raise AssertionError("no seed has a part that is the best by chance")


def test_on_few_validation_rows_all_rows_are_kept() -> None:
    arrays, frame = stream(2600)
    few = replace(arrays, x_validation=arrays.x_validation[:20], y_validation=arrays.y_validation[:20])
    contract = learn_contract(frame, "y")
    assert compare_windows(few, contract, SEARCH, ordered=True).trial.params["recent"] < 1.0
    assert choose_window(few, contract, SEARCH, ordered=True).trial.params["recent"] == 1.0


def test_windows_of_a_quantile_are_compared_by_its_loss() -> None:
    arrays, frame = stream(None)
    frame = frame.assign(y=frame.a + frame.b)
    values = [frame.y.to_numpy()[rows] for rows in (slice(0, 4000), slice(4000, 4250))]
    arrays = replace(arrays, y_train=values[0], y_validation=values[1])
    search = Search(candidates=[hist_boosting({"max_iter": 5})], quantile=0.9, recency=False)
    result = compare_windows(arrays, learn_contract(frame, "y"), search, ordered=True)
    assert _losses(result, arrays).mean() == pytest.approx(result.trial.score)


def test_held_out_predictions_are_of_models_that_had_not_seen_the_rows() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(900, 2)).astype(np.float32), rng.integers(0, 2, 900).astype(float)
    parts = [slice(0, 500), slice(500, 700), slice(700, 900)]
    (a, b, c), (d, e, f) = ([side[part] for part in parts] for side in (x, y))
    arrays = Arrays(x_train=a, x_validation=b, x_test=c, y_train=d, y_validation=e, y_test=f, time_test=None)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y.astype(int)})
    search = Search(candidates=[random_forest()], metric="brier", recency=False)
    result = compare_windows(arrays, learn_contract(frame, "y"), search, ordered=True)
    promised = held_out_predictions(result, arrays)
    assert promised.shape == (400,)
    honest = ((promised[:200] - e) ** 2).mean()
    by_heart = ((result.estimator.predict(b) - e) ** 2).mean()
    assert by_heart < 0.18
    assert honest > 0.24  # labels are coins: nothing can be promised


def test_too_few_validation_rows_to_tell_leave_all_rows_in() -> None:
    arrays, frame = stream(2600)
    few = replace(arrays, x_validation=arrays.x_validation[:25], y_validation=arrays.y_validation[:25])
    contract = learn_contract(frame, "y")
    assert compare_windows(few, contract, SEARCH, ordered=True, change_row=2600).trial.params["recent"] < 1.0
    result = choose_window(few, contract, SEARCH, ordered=True, change_row=2600)
    assert result.trial.params["recent"] == 1.0
