"""Estimators on their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from threadpoolctl import threadpool_info, threadpool_limits

from raymlops.search.estimators import XGBoostEstimator


def openmp() -> int:
    """Threads that OpenMP gives the one who asks."""
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp")


@pytest.mark.parametrize("threads", [1, 2])
def test_boosting_has_its_threads_where_openmp_is_limited_to_one_and_leaves_the_limit(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, seen = xgb.train, []

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.append(openmp())
        return train(*arguments, **options)

    monkeypatch.setattr(xgb, "train", spied)
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    estimator = XGBoostEstimator({"max_depth": 2}, "regression", 0, 3, 0)
    estimator.threads = threads
    # As in Ray's workers and jobs, whose OMP_NUM_THREADS is 1.
    with threadpool_limits(1, user_api="openmp"):
        estimator.fit(x, x[:, 0])
        assert openmp() == 1
    assert seen == [threads]
