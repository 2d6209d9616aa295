"""A search whose last fits are spread over two workers finds a model as good as one fit gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import ray.data

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError
from raymlops.search import candidates
from raymlops.search.objective import Objective
from raymlops.search.ray_train import fit_distributed
from raymlops.search.ray_tune import search
from raymlops.search.selection import Search
from raymlops.settings import Settings


def test_a_search_that_spreads_its_last_fits_scores_as_the_single_fit(ray_cluster: Settings) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12_000, 3)).astype(np.float32)
    x[:, 2] = rng.integers(0, 3, len(x))
    x[::9, 1] = np.nan
    y = (x[:, 0] + (x[:, 2] == 1) * 2 + rng.normal(size=len(x)) * 0.5 > 0.5).astype(float)
    parts = {"train": slice(0, 6000), "validation": slice(6000, 9000), "test": slice(9000, None)}
    cut = {f"{axis}_{name}": data[rows] for name, rows in parts.items() for axis, data in (("x", x), ("y", y))}
    arrays = Arrays(**cut, time_test=None)
    limits = {"nullable": True, "minimum": None, "maximum": None}
    columns = (
        *(Column(name=name, kind="number", **limits) for name in "ab"),
        Column(name="c", kind="category", **limits, categories=("0", "1", "2")),
    )
    contract = DataContract(columns=columns, label="y", task="binary", classes=(0, 1))
    # Linear would win here, but no fit of it can be spread.
    families = [candidates.xgboost(native_categories=True), candidates.linear()]
    spec = Search(candidates=families, trials=1, weights="balanced", recency=False, distributed=True)
    result = search(arrays, contract, spec, ordered=False, settings=ray_cluster)
    assert {trial.family for trial in result.leaderboard.trials} == {"xgboost"}
    assert result.fit is not None
    here = result.problem.build("xgboost", result.trial.params).fit(x[:9000], y[:9000])
    objective = Objective.of("roc_auc", "binary")
    scores = [objective.score(arrays.y_test, model.predict(arrays.x_test)) for model in (result.estimator, here)]
    assert scores[1] > 0.95
    assert scores[0] == pytest.approx(scores[1], abs=0.005)
    assert result.estimator.booster.num_boosted_rounds() == result.trial.params["rounds"]
    assert result.estimator.booster.feature_types == ["q", "q", "c"]


def test_rows_without_a_column_are_refused(ray_cluster: Settings) -> None:
    rows = ray.data.from_pandas(pd.DataFrame({"a": [1.0], "y": [0.0]}))
    plan = candidates.xgboost().build({"rounds": 1}, "binary", 2, [], 0)
    with pytest.raises(ConfigError, match="The rows have no column z: they have a, y"):
        fit_distributed(rows, columns=["a"], label="z", plan=plan, workers=2, settings=ray_cluster)
