"""One behaviour, every family: what an explanation says adds up to what the model says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymlops.data.schema import DataContract, Task, learn_contract
from raymlops.errors import DataError
from raymlops.explain.explainers import AdditiveExplainer, SampledExplainer, explainer_for
from raymlops.explain.explanation import Explainer, importances
from raymlops.search import candidates
from raymlops.search.estimators import Estimator, SklearnEstimator

N = 600
METHODS = {
    "xgboost": "tree_shap",
    "linear": "linear",
    "random_forest": "sampled_shapley",
    "hist_boosting": "sampled_shapley",
}
SMALL = {"xgboost": {"rounds": 15}, "random_forest": {"n_estimators": 10}, "hist_boosting": {"max_iter": 10}}
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def rows(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"a": rng.normal(size=N), "idle": rng.normal(size=N), "b": rng.normal(size=N), "c": rng.choice(list("xyz"), N)}
    )
    frame.loc[::7, "b"] = np.nan
    return frame


def label(frame: pd.DataFrame, task: Task) -> Any:
    value = frame.a + 2 * (frame.c == "x") + 0.5 * frame.b.fillna(0)
    if task == "regression":
        return value
    return (value > 0.5).astype(int) if task == "binary" else np.select([value < 0, value < 1.5], ["u", "v"], "w")


Made = tuple[Estimator, DataContract, np.ndarray[Any, np.dtype[np.float32]], Explainer]


@pytest.fixture(scope="module", params=[(name, task) for name in METHODS for task in TASKS], ids="-".join)
def made(request: pytest.FixtureRequest) -> tuple[str, Task, Made]:
    name, task = request.param
    frame = rows()
    contract = learn_contract(frame.assign(y=label(frame, task)), "y", task)
    x, y = contract.encode(frame), contract.encode_label(label(frame, task))
    family = next(item for item in candidates.defaults() if item.name == name)
    params = {**family.start, **SMALL.get(name, {})}
    estimator = family.build(params, task, len(contract.classes), contract.categorical, 0).fit(x, y)
    return name, task, (estimator, contract, x, explainer_for(estimator, contract, x))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.tuples(
            st.floats(-4, 4), st.floats(-4, 4), st.none() | st.floats(-4, 4), st.sampled_from([0.0, 1.0, 2.0, None])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_base_and_contributions_add_up_to_the_models_output(made: tuple[str, Task, Made], values: list[Any]) -> None:
    name, task, (estimator, contract, _, explainer) = made
    x = np.array(values, dtype=np.float32)
    found = explainer.explain(x)
    assert found.method == METHODS[name]
    assert found.columns == contract.names
    assert found.contributions.shape == ((len(x), 3, 4) if task == "multiclass" else (len(x), 4))
    assert found.residual < 1e-4
    said = estimator.predict(x)
    output = 1 / (1 + np.exp(-found.output)) if found.units == "log-odds" else found.output
    if found.units != "score":
        np.testing.assert_allclose(output, said, atol=1e-5)
    else:
        powers = np.exp(output - output.max(axis=1, keepdims=True))
        np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), said, atol=1e-5)
    np.testing.assert_array_equal(found.contributions, explainer.explain(x).contributions)


def test_a_column_without_a_say_gets_next_to_nothing(made: tuple[str, Task, Made]) -> None:
    _, _, (_, _, x, explainer) = made
    found = importances(explainer.explain(x[:20]))
    assert {item.column: i for i, item in enumerate(found)}["idle"] == 3
    assert sum(item.share for item in found) == pytest.approx(1.0)


def test_a_linear_contribution_is_coefficient_times_distance_from_the_mean() -> None:
    frame = rows().drop(columns=["c", "b"])
    y = 3 * frame.a - frame.idle
    contract = learn_contract(frame.assign(y=y), "y", "regression")
    x = contract.encode(frame)[:200]
    family = candidates.linear()
    estimator = family.build({"C": 1e6}, "regression", 0, [], 0).fit(x, y.to_numpy()[:200])
    found = explainer_for(estimator, contract, x).explain(x)
    np.testing.assert_allclose(found.contributions, (x - x.mean(axis=0)) * [3, -1], atol=1e-3)
    np.testing.assert_allclose(found.base, float((x @ np.array([3, -1])).mean()), atol=1e-3)


def test_one_hot_columns_are_summed_up_in_the_column_they_were_made_of() -> None:
    frame = rows()[["c"]].assign(z=0.0)
    y = frame.c.map({"x": 2.0, "y": -1.0, "z": 0.0})
    contract = learn_contract(frame.assign(y=y), "y", "regression")
    x = contract.encode(frame)
    estimator = candidates.linear().build({"C": 1e6}, "regression", 0, contract.categorical, 0).fit(x, y.to_numpy())
    found = explainer_for(estimator, contract, x[:200]).explain(x[:50])
    assert found.columns == ("c", "z")
    np.testing.assert_allclose(found.contributions[:, 0] + found.base, y[:50], atol=1e-2)
    np.testing.assert_allclose(found.contributions[:, 1], 0.0, atol=1e-6)


class Product:
    """``x0 * x1 + x2``: an interaction, whose Shapley values are known."""

    def fit(self, *_: Any) -> Product:
        return self

    def predict(self, x: Any) -> Any:
        return np.asarray(x[:, 0] * x[:, 1] + x[:, 2], dtype=np.float64)


def test_sampled_values_agree_with_the_formula_within_their_standard_error() -> None:
    contract = learn_contract(
        pd.DataFrame({"p": [0.5, 1.5], "q": [0.5, 2.5], "r": [0.5, 1.0], "y": [1.5, 2.5]}), "y", "regression"
    )
    background = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    explainer = SampledExplainer(Product(), contract, background)
    row = np.array([[2.0, 3.0, 1.0]], dtype=np.float32)
    found = explainer.explain(row)
    p, q, r = (float(value) for value in background.mean(axis=0))
    both = float((background[:, 0] * background[:, 1]).mean())
    # Half of the two orders in which p and q can join, with the mean over the background for who is not there yet.
    exact = np.array([((2 * q - both) + (6 - p * 3)) / 2, ((p * 3 - both) + (6 - 2 * q)) / 2, 1 - r])
    assert found.error is not None
    assert (np.abs(found.contributions[0] - exact) <= 4 * found.error[0] + 1e-9).all()
    assert found.error[0, 0] > 0
    assert found.residual < 1e-9


def test_a_model_whose_preprocessing_mixes_columns_is_sampled() -> None:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    frame = rows()[["a", "idle"]]
    y = (frame.a * frame.idle > 0).astype(int)
    contract = learn_contract(frame.assign(y=y), "y", "binary")
    x = contract.encode(frame)
    mixed = SklearnEstimator(make_pipeline(PolynomialFeatures(2), LogisticRegression()), "binary", 2).fit(
        x, y.to_numpy()
    )
    assert isinstance(explainer_for(mixed, contract, x), SampledExplainer)
    turned = SklearnEstimator(make_pipeline(PCA(), LogisticRegression()), "binary", 2).fit(x, y.to_numpy())
    assert isinstance(explainer_for(turned, contract, x), AdditiveExplainer)


def test_without_reference_rows_only_trees_can_be_explained() -> None:
    contract = learn_contract(pd.DataFrame({"p": [0.5, 1.5], "y": [1.5, 2.5]}), "y", "regression")
    with pytest.raises(DataError, match="An explanation needs reference rows to compare with"):
        explainer_for(Product(), contract, np.zeros((0, 1), dtype=np.float32))
