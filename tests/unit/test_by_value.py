"""The code of the user's own modules travels with pipelines and packages."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer
from sklearn.pipeline import make_pipeline

from raymlops import FrameSource, Pipeline, Search, candidates
from raymlops.by_value import own_modules
from raymlops.data.schema import learn_contract
from raymlops.registry.native import defined_by
from raymlops.registry.package import Reference, build_package
from raymlops.search.ensemble_model import EnsembleEstimator
from raymlops.search.estimators import SklearnEstimator

MODULE = """
from sklearn.dummy import DummyClassifier
from sklearn.preprocessing import FunctionTransformer
from raymlops.search.candidates import linear

class Mine(DummyClassifier):
    pass

class Step(FunctionTransformer):
    pass

class OwnFamily:
    name, tasks, start = "own", ("binary",), {}
    def space(self, trial):
        return {}
    def build(self, params, task, n_classes, categorical, seed):
        return linear().build({"C": 1.0}, task, n_classes, categorical, seed)

def metric(y, p, power=1):
    return float(abs(y - p).mean() ** power)

def weigh(x, y):
    return 1.0 + y

def space(trial):
    return {"C": 2.0}
"""
FRAME = pd.DataFrame({"a": np.arange(80.0), "y": [0, 1] * 40})


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that only this process can import."""
    (tmp_path / "only_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.import_module("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    return module


def elsewhere(path: Path) -> str:
    """What a process without that module makes of a pickle."""
    script = "import pickle, sys; print(type(pickle.load(open(sys.argv[1], 'rb'))).__name__)"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize(
    "build",
    [
        lambda mine: {"metric": partial(mine.metric, power=2)},
        lambda mine: {"metric": make_scorer(mine.metric, response_method="predict_proba")},
        lambda mine: {"weights": mine.weigh},
        lambda mine: {"candidates": [candidates.sklearn(mine.Mine, name="mine")]},
        lambda mine: {"candidates": [candidates.linear(mine.space)]},
        lambda mine: {"candidates": [mine.OwnFamily()]},
    ],
)
def test_a_pipelines_search_loads_elsewhere(mine: ModuleType, tmp_path: Path, build: Any) -> None:
    pipeline = Pipeline(name="churn", source=FrameSource(FRAME, label="y"), search=Search(**build(mine)))
    path = tmp_path / "pipeline.pkl"
    path.write_bytes(pipeline.dumps())
    assert elsewhere(path) == "Pipeline"


@pytest.mark.parametrize("wrap", [False, True])
def test_a_packages_model_loads_elsewhere(mine: ModuleType, tmp_path: Path, wrap: bool) -> None:
    def inside() -> Any:
        return make_pipeline(mine.Step(), LogisticRegression())

    family = candidates.sklearn(inside if wrap else mine.Mine, name="mine")
    x, y = FRAME[["a"]].to_numpy(dtype=np.float32), FRAME.y.to_numpy(dtype=float)
    estimator = family.build(dict(family.options), "binary", 2, (), 0).fit(x, y)
    reference = Reference(columns=("a",), x=x, scores=estimator.predict(x), losses=y, ordered=True)
    build_package(tmp_path / "package", estimator, learn_contract(FRAME, "y"), None, reference, {})
    assert elsewhere(tmp_path / "package" / "model.pkl") == "SklearnEstimator"


def test_the_members_of_an_ensemble_bring_their_modules(mine: ModuleType) -> None:
    members = [SklearnEstimator(made, "binary", 2) for made in (mine.Mine(), LogisticRegression())]
    assert own_modules(defined_by(EnsembleEstimator(members, [0.5, 0.5], seed=0))) == (mine,)


def test_what_others_have_stays_a_name(mine: ModuleType) -> None:
    assert own_modules([mine.weigh, mine.Mine, mine.Mine()]) == (mine,)
    assert own_modules([None, "auto", partial(len), Path("a"), np.mean, LogisticRegression, candidates.linear()]) == ()
