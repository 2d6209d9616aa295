"""A pipeline whose fits on all rows are spread over two workers serves a model as good as one fit gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import ray
import ray.data

from raymlops import FrameSource, Gate, Pipeline, Search, candidates
from raymlops.errors import ConfigError
from raymlops.lake import Lake
from raymlops.loop import ray_steward
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.registry.package import download
from raymlops.registry.runtime import load_estimator
from raymlops.search.objective import Objective
from raymlops.search.ray_train import fit_distributed
from raymlops.serving.ray_serve import ServeEngine
from raymlops.settings import Settings

NAME = "spread"


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=rows), rng.normal(size=rows), rng.integers(0, 3, rows)
    y = a + (c == 1) * 2 + rng.normal(size=rows) * 0.5 > 0.5
    frame = pd.DataFrame({"a": a, "b": b, "c": np.array(["x", "y", "z"])[c], "y": y.astype(int)})
    frame.loc[::9, "b"] = np.nan
    return frame


def test_a_pipeline_that_spreads_its_fits_serves_a_model_as_good_as_a_single_fit(ray_cluster: Settings) -> None:
    pipeline = Pipeline(
        name=NAME,
        source=FrameSource(table(9000, 1), label="y"),
        # Linear would win here, but no fit of it can be spread.
        search=Search(
            candidates=[candidates.xgboost(native_categories=True), candidates.linear()],
            trials=1,
            weights="balanced",
            calibrate=False,
            distributed=True,
        ),
        gate=Gate(max_gap=None),
    )
    endpoint = pipeline.run(settings=ray_cluster)
    try:
        version = MlflowRegistry(ray_cluster.mlflow).get(NAME, 1)
        assert version.family == "xgboost"
        fresh = table(3000, 2)
        sent = fresh.drop(columns="y").astype(object).where(fresh.drop(columns="y").notna(), None).to_dict("records")
        parts = [endpoint.predict(sent[start : start + 500]) for start in range(0, len(sent), 500)]
        assert {part["version"] for part in parts} == {1}
        served = np.concatenate([part["probabilities"] for part in parts])
    finally:
        ServeEngine(ray_cluster).delete_endpoint(NAME)
        ray.kill(ray_steward.find(NAME))
    # The same settings, fitted here on the same rows.
    learnt = table(9000, 1)
    codes = {"x": 0, "y": 1, "z": 2}

    def coded(frame: pd.DataFrame) -> np.ndarray:
        return frame[["a", "b", "c"]].assign(c=frame.c.map(codes)).to_numpy(dtype=np.float32)

    params = {key: value for key, value in version.params.items() if key != "recent"}
    plan = candidates.xgboost(native_categories=True).build(params, "binary", 2, [2], 0)
    plan.weigh = lambda _x, y: np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    here = plan.fit(coded(learnt), learnt.y.to_numpy(dtype=float))
    objective, y = Objective.of("roc_auc", "binary"), fresh.y.to_numpy(dtype=float)
    single = objective.score(y, here.predict(coded(fresh)))
    assert single > 0.95
    assert objective.score(y, served) == pytest.approx(single, abs=0.005)
    folder = download(Lake(ray_cluster.lake), version.package_key, f"{ray_cluster.home}/spread", version.digest)
    model = load_estimator(folder, "xgboost", "binary", 2)
    assert model.booster.num_boosted_rounds() == version.params["rounds"]
    assert model.booster.feature_types == ["q", "q", "c"]


def test_rows_without_a_column_are_refused(ray_cluster: Settings) -> None:
    rows = ray.data.from_pandas(pd.DataFrame({"a": [1.0], "y": [0.0]}))
    plan = candidates.xgboost().build({"rounds": 1}, "binary", 2, [], 0)
    with pytest.raises(ConfigError, match="The rows have no column z: they have a, y"):
        fit_distributed(rows, columns=["a"], label="z", plan=plan, workers=2, settings=ray_cluster)
