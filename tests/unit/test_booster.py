"""XGBoost by its C interface: the same numbers as by its Python wrapper."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import xgboost

from raymlops.registry.booster import BoosterRuntime

X = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
X[::7, 2] = np.nan


def trained(**params: Any) -> xgboost.Booster:
    y = (np.nan_to_num(X[:, 0]) > 0) + (X[:, 1] > 1) if "num_class" in params else (X[:, 0] > 0).astype(int)
    return xgboost.train({"nthread": 1, "max_depth": 3, **params}, xgboost.DMatrix(X, y), 10)


@pytest.mark.parametrize(
    "params",
    [
        {"objective": "binary:logistic"},
        {"objective": "reg:squarederror"},
        {"objective": "multi:softprob", "num_class": 3},
    ],
    ids=lambda params: params["objective"],
)
@pytest.mark.parametrize("rows", [1, 3, 400])
def test_the_c_interface_says_what_the_wrapper_says(params: dict[str, Any], rows: int) -> None:
    booster = trained(**params)
    runtime = BoosterRuntime(booster)
    for x in (X[:rows], np.asfortranarray(X[:rows]), X[:rows].astype(np.float64)):
        said = runtime.predict(x)
        assert said.dtype == np.float64
        np.testing.assert_array_equal(said, booster.inplace_predict(X[:rows]))


def test_threads_do_not_get_each_others_answers() -> None:
    booster = trained(objective="binary:logistic")
    runtime, expected = BoosterRuntime(booster), booster.inplace_predict(X)

    def ask(start: int) -> bool:
        return all((runtime.predict(X[start : start + 40]) == expected[start : start + 40]).all() for _ in range(50))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(0, 400, 40)))


def test_a_matrix_of_another_width_is_refused() -> None:
    runtime = BoosterRuntime(trained(objective="binary:logistic"))
    with pytest.raises(ValueError, match=r"takes 5 columns, got a matrix of shape \(400, 4\)"):
        runtime.predict(X[:, :4])
