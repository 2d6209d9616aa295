"""The user's own code travels inside pipelines and packages, wherever in them it stands."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.tree import DecisionTreeClassifier

from raymlops.data.schema import learn_contract
from raymlops.data.sources import FileSource
from raymlops.pipeline import Pipeline, loads
from raymlops.registry.package import Reference, build_package
from raymlops.search import candidates
from raymlops.search.selection import Search
from raymlops.user_code import modules_of

THEIRS = """
from sklearn.linear_model import LogisticRegression

def metric(y, p, scale=1.0):
    return scale * float(((p >= 0.5) == y).mean())

def weights(x, y):
    return y + 1.0

def space(trial):
    return {"C": trial.suggest_float("C", 0.1, 1.0)}

class Model(LogisticRegression):
    def predict_proba(self, x):
        return super().predict_proba(x)
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "their_models.py"
    path.write_text(THEIRS)
    spec = importlib.util.spec_from_file_location("their_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["their_models"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("their_models", None)


@pytest.mark.parametrize("part", ["metric", "partial", "weights", "space", "model"])
def test_a_pipeline_comes_back_where_the_users_module_is_not(theirs: Any, part: str) -> None:
    search = {
        "metric": lambda: Search(metric=theirs.metric),
        "partial": lambda: Search(metric=functools.partial(theirs.metric, scale=2.0)),
        "weights": lambda: Search(weights=theirs.weights),
        "space": lambda: Search(candidates=[candidates.linear(theirs.space)]),
        "model": lambda: Search(candidates=[candidates.sklearn(theirs.Model, name="theirs")]),
    }[part]()
    content = Pipeline(name="churn", source=FileSource("x.csv", label="y"), search=search).dumps()
    del sys.modules["their_models"]
    back = loads(content, hashlib.sha256(content).hexdigest()).search
    if part == "metric":
        assert back.metric(np.array([1.0]), np.array([0.7])) == 1.0
    if part == "model":
        assert back.candidates is not None
        made: Any = back.candidates[0].build(dict(back.candidates[0].start), "binary", 2, [], 0)
        assert type(made.pipeline.steps[-1][1]).__name__ == "Model"


def test_a_package_of_the_users_own_estimator_loads_where_its_module_is_not(theirs: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=200), "b": rng.normal(size=200)})
    frame["label"] = (frame.a > 0).astype(int)
    contract = learn_contract(frame, "label", "binary")
    x, y = contract.encode(frame), contract.encode_label(frame.label)
    family = candidates.sklearn(theirs.Model, name="theirs")
    estimator = family.build({}, "binary", 2, [], 0).fit(x, y)
    reference = Reference(columns=contract.names, x=x, scores=np.zeros(200), losses=np.zeros(200), ordered=True)
    build_package(tmp_path / "package", estimator, contract, None, reference, {})
    before = estimator.predict(x)
    del sys.modules["their_models"]
    again = pickle.loads((tmp_path / "package" / "model.pkl").read_bytes())
    np.testing.assert_array_equal(again.predict(x), before)


def test_what_every_process_has_does_not_travel(theirs: Any) -> None:
    found = modules_of(DecisionTreeClassifier, functools.reduce, Search(), "text", None, 3, theirs.Model())
    assert [module.__name__ for module in found] == ["their_models"]
