"""A pipeline whose best trials answer together: searched, gated, registered, served, explained."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import ray

from raymlops import FrameSource, Gate, Pipeline, Search, candidates
from raymlops.lake import Lake
from raymlops.loop import ray_steward
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.registry.package import CARD, download, read_file
from raymlops.serving.predictor import Predictor
from raymlops.serving.ray_serve import ServeEngine
from raymlops.settings import Settings

NAME = "together"


def table(rows: int) -> pd.DataFrame:
    """A sum, which trees learn slowly, and a product of size and sign, which a linear model cannot learn."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rows, 8)).round(4)
    signal = x[:, :6].sum(axis=1) * 0.6 + 1.6 * np.abs(x[:, 6]) * np.sign(x[:, 7]) + 0.5 * rng.normal(size=rows)
    return pd.DataFrame({**{f"c{i}": x[:, i] for i in range(8)}, "y": (signal > 0).astype(int)})


def test_an_ensemble_is_promoted_and_served(ray_cluster: Settings) -> None:
    frame = table(6000)
    shallow = candidates.xgboost({"rounds": 30, "max_leaves": 6, "learning_rate": 0.1}, name="shallow")
    pipeline = Pipeline(
        name=NAME,
        source=FrameSource(frame, label="y"),
        search=Search(candidates=[shallow, candidates.linear()], trials=3, prefer="score", ensemble=2),
        gate=Gate(max_gap=None),
    )
    endpoint = pipeline.run(settings=ray_cluster)
    try:
        registry = MlflowRegistry(ray_cluster.mlflow)
        version = registry.get(NAME, 1)
        assert version.family == "ensemble"
        (told,) = [event.body for event in endpoint.history() if event.kind == "ensemble"]
        assert told["taken"], told["reason"]
        assert told["comparison"]["low"] > 0
        folder = download(Lake(ray_cluster.lake), version.package_key, f"{ray_cluster.home}/together", version.digest)
        predictor = Predictor.load(folder, 1, version.digest)
        rows = frame.drop(columns="y").head(50).to_dict("records")
        answer = endpoint.predict(rows)
        expected = predictor.predict(predictor.encode(rows))
        assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-6)
        explained = endpoint.explain(rows[:1], version=1)
        assert (explained["method"], explained["units"]) == ("sampled_shapley", "probability")
        card = json.loads(read_file(Lake(ray_cluster.lake), version.package_key, version.digest, CARD))
        assert card["search"]["ensemble"]["taken"]
        assert card["package"]["form"] == "ensemble"
        logged = registry.trials(registry.searches(NAME)[0])
        assert [item.params["members"] for item in logged if item.family == "ensemble"] == [told["named"]]
    finally:
        ServeEngine(ray_cluster).delete_endpoint(NAME)
        ray.kill(ray_steward.find(NAME))
