"""One fit over two workers is as good as one fit on one."""

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
from raymlops.search.ray_tune import refit, search
from raymlops.search.selection import Search, unseen_validation
from raymlops.settings import Settings


def test_a_fit_spread_over_two_workers_scores_as_the_single_fit(ray_cluster: Settings) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12_000, 4)).astype(np.float32)
    x[::7, 3] = np.nan
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) * 0.5 > 0).astype(float)
    names = ["a", "b", "c", "d"]
    rows = ray.data.from_pandas([pd.DataFrame(x[i:9000:4], columns=names).assign(y=y[i:9000:4]) for i in range(4)])
    family, params = candidates.xgboost(), {**candidates.xgboost().start, "rounds": 40}
    given = {
        "columns": names,
        "label": "y",
        "plan": family.build(params, "binary", 2, [], 0),
        "settings": ray_cluster,
    }
    spread = fit_distributed(rows, workers=2, **given)
    single = family.build(params, "binary", 2, [], 0).fit(x[:9000], y[:9000])
    objective = Objective.of("roc_auc", "binary")
    scores = [objective.score(y[9000:], model.predict(x[9000:])) for model in (spread, single)]
    assert scores[1] > 0.9
    assert scores[0] == pytest.approx(scores[1], abs=0.005)
    assert spread.booster is not None
    assert spread.booster.num_boosted_rounds() == 40
    with pytest.raises(ConfigError, match="The rows have no column z: they have a, b, c, d, y"):
        fit_distributed(rows, workers=2, **{**given, "label": "z"})


def test_a_search_that_is_told_to_spread_its_last_fits_finds_a_model_as_good(ray_cluster: Settings) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9_000, 3)).astype(np.float32)
    x[:, 2] = rng.integers(0, 3, len(x))
    x[::9, 1] = np.nan
    y = (x[:, 0] + (x[:, 2] == 1) * 2 + rng.normal(size=len(x)) * 0.5 > 0.5).astype(float)
    parts = {"train": slice(0, 5000), "validation": slice(5000, 7000), "test": slice(7000, None)}
    cut = {f"{axis}_{name}": data[rows] for name, rows in parts.items() for axis, data in (("x", x), ("y", y))}
    arrays = Arrays(**cut, time_test=None)
    limits = {"nullable": True, "minimum": None, "maximum": None}
    kinds = {"a": {}, "b": {}, "c": {"categories": ("0", "1", "2")}}
    columns = tuple(
        Column(name=name, kind="category" if kind else "number", **limits, **kind) for name, kind in kinds.items()
    )
    contract = DataContract(columns=columns, label="y", task="binary", classes=(0, 1))
    told = {"trials": 2, "weights": "balanced", "recency": False, "prefer": "score"}
    families = [candidates.xgboost(native_categories=True), candidates.linear()]
    objective = Objective.of("roc_auc", "binary")
    scores = {}
    for spread in (True, False):
        spec = Search(candidates=families, distributed=spread, **told)
        result = search(arrays, contract, spec, ordered=False, settings=ray_cluster)
        assert (result.fit is not None) == spread
        assert result.trial.family == "xgboost"
        estimator = result.estimator
        assert estimator.booster.num_boosted_rounds() == result.trial.params["rounds"]
        scores[spread] = [
            objective.score(arrays.y_test, estimator.predict(arrays.x_test)),
            objective.score(arrays.y_test, refit(result, x, y).predict(arrays.x_test)),
            objective.score(arrays.y_validation, unseen_validation(result, arrays)),
        ]
        if spread:
            assert {trial.family for trial in result.leaderboard.trials} == {"xgboost"}
    assert scores[False][0] > 0.9
    assert scores[True] == pytest.approx(scores[False], abs=0.01)
