"""One fit over two workers is as good as one fit on one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import ray.data

from raymlops.errors import ConfigError
from raymlops.search import candidates
from raymlops.search.objective import Objective
from raymlops.search.ray_train import fit_distributed
from raymlops.settings import Settings


def test_a_fit_spread_over_two_workers_scores_as_the_single_fit(ray_cluster: Settings) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12_000, 4)).astype(np.float32)
    x[::7, 3] = np.nan
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) * 0.5 > 0).astype(float)
    names = ["a", "b", "c", "d"]
    rows = ray.data.from_pandas([pd.DataFrame(x[i:9000:4], columns=names).assign(y=y[i:9000:4]) for i in range(4)])
    params = dict(candidates.xgboost().start)
    given = {
        "columns": names,
        "label": "y",
        "params": params,
        "task": "binary",
        "n_classes": 2,
        "settings": ray_cluster,
    }
    spread = fit_distributed(rows, rounds=40, workers=2, **given)
    single = candidates.xgboost().build({**params, "rounds": 40}, "binary", 2, [], 0).fit(x[:9000], y[:9000])
    objective = Objective.of("roc_auc", "binary")
    scores = [objective.score(y[9000:], model.predict(x[9000:])) for model in (spread, single)]
    assert scores[1] > 0.9
    assert scores[0] == pytest.approx(scores[1], abs=0.005)
    assert spread.booster is not None
    assert spread.booster.num_boosted_rounds() == 40
    with pytest.raises(ConfigError, match="The rows have no column z: they have a, b, c, d, y"):
        fit_distributed(rows, rounds=40, workers=2, **{**given, "label": "z"})
