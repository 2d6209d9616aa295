"""A loaded package: what it answers, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymlops.data.schema import learn_contract
from raymlops.errors import ContractViolation, DigestMismatch
from raymlops.registry.package import Reference, build_package
from raymlops.registry.runtime import load_estimator
from raymlops.search import candidates
from raymlops.search.calibration import Calibration
from raymlops.search.decision import Decision
from raymlops.search.threshold import Threshold
from raymlops.serving.bulk import answer_columns
from raymlops.serving.predictor import Predictor, measure_latency, undisturbed_p99

Make = Callable[..., Predictor]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(labels: Any, task: Any, features: Any = None, family: Any = None) -> Predictor:
        rng = np.random.default_rng(1)
        rows = pd.DataFrame({"a": rng.normal(size=300), "c": rng.choice(["x", "y"], 300)})
        rows["label"] = labels(rows.a.to_numpy())
        learnt = features(rows.drop(columns="label")).assign(label=rows.label) if features else rows
        contract = learn_contract(learnt, "label", task)
        x, y = contract.encode(learnt), contract.encode_label(learnt.label)
        family = family or candidates.xgboost()
        estimator = family.build(dict(family.start), task, len(contract.classes), [], seed=0).fit(x, y)
        reference = Reference(columns=contract.names, x=x, scores=y, losses=np.zeros(300), ordered=False)
        build_package(tmp_path / "package", estimator, contract, features, reference, {})
        return Predictor.load(tmp_path / "package", version=7)

    return made


def test_a_binary_answer_names_the_class_and_the_positive_probability(make: Make) -> None:
    predictor = make(lambda a: np.where(a > 0, "yes", "no"), "binary")
    x, prediction, _ = predictor.predict_rows([{"a": 2.0, "c": "x"}, {"a": -2.0, "c": "y"}])
    assert x.dtype == np.float32
    predictions, probabilities = predictor.answer(prediction)
    assert predictions == ["yes", "no"]
    assert probabilities is not None
    assert probabilities[0] > 0.9
    assert probabilities[1] < 0.1
    np.testing.assert_array_equal(predictor.score(prediction), prediction)
    assert predictor.version == 7


@pytest.mark.parametrize(
    "family", [candidates.xgboost(), candidates.linear(), candidates.hist_boosting()], ids=lambda f: f.name
)
def test_calibration_and_threshold_travel_with_the_package_and_apply_to_every_runtime(
    make: Make, tmp_path: Path, family: Any
) -> None:
    plain = make(lambda a: a > 0, "binary", family=family)
    x = plain.encode([{"a": a, "c": "x"} for a in (-1.0, -0.1, 0.1, 1.0)])
    said = {name: runtime.predict(x) for name, runtime in plain._runtimes.items()}
    decision = Decision(
        calibration=Calibration(kind="platt", params={"a": (0.5,), "c": (-0.25,)}),
        threshold=Threshold(value=0.3, rule="fixed"),
    )
    native = load_estimator(tmp_path / "package", plain.manifest.form, "binary", 2)
    build_package(tmp_path / "decided", native, plain.contract, None, plain.reference, {}, decision=decision)
    predictor = Predictor.load(tmp_path / "decided")
    assert predictor.decision == decision
    for own in said.values():
        expected = 1 / (1 + np.exp(-(0.5 * np.log(own / (1 - own)) - 0.25)))
        for rows in (1, 4):
            np.testing.assert_allclose(predictor.predict(x[:rows]), expected[:rows], atol=1e-4)
    prediction = np.array([0.29, 0.3, 0.4, 0.6])
    assert predictor.answer(prediction)[0] == [False, True, True, True]
    assert plain.answer(prediction)[0] == [False, False, False, True]
    answered = answer_columns(predictor.contract, prediction, predictor.decision.threshold.value)
    assert answered["prediction"].to_pylist() == [False, True, True, True]


def test_a_package_that_was_changed_is_not_explained(make: Make, tmp_path: Path) -> None:
    predictor = make(lambda a: a > 0, "binary")
    assert predictor.explainer is predictor.explainer
    changed = Predictor.load(tmp_path / "package")
    model = tmp_path / "package" / "model.json"
    model.write_bytes(model.read_bytes() + b" ")
    with pytest.raises(DigestMismatch):
        _ = changed.explainer


def test_each_batch_goes_to_the_runtime_its_size_asks_for(make: Make) -> None:
    loaded = make(lambda a: a > 0, "binary")
    asked: list[tuple[str, int]] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def predict(self, x: Any) -> Any:
            asked.append((self.name, len(x)))
            return np.zeros(len(x))

    times = {"onnx": {"1": 1.0, "16": 9.0}, "native": {"1": 2.0, "16": 8.0}}
    runtimes = {name: Named(name) for name in times}
    predictor = Predictor(runtimes, loaded.contract, None, replace(loaded.manifest, batch_us=times), Path())
    for rows in (1, 8, 9, 2000):
        predictor.predict(np.zeros((rows, 2), dtype=np.float32))
    assert asked == [("onnx", 1), ("onnx", 8), ("native", 9), ("native", 2000)]


def test_a_multiclass_answer_gives_every_classs_probability_in_the_contracts_order(make: Make) -> None:
    predictor = make(lambda a: np.digitize(a, [-0.5, 0.5]) * 10, "multiclass")
    _, prediction, _ = predictor.predict_rows([{"a": -2.0, "c": "x"}, {"a": 0.0, "c": "x"}, {"a": 2.0, "c": "x"}])
    predictions, probabilities = predictor.answer(prediction)
    assert predictions == [0, 10, 20]
    assert np.shape(probabilities) == (3, 3)
    assert predictor.score(prediction).tolist() == [0.0, 1.0, 2.0]
    assert json.loads(json.dumps([predictions, probabilities]))[0] == [0, 10, 20]


def test_a_regression_answers_with_values(make: Make) -> None:
    predictor = make(lambda a: a * 10 + 5, "regression")
    predictions, probabilities = predictor.answer(predictor.predict_rows([{"a": 1.0, "c": "x"}])[1])
    assert probabilities is None
    assert predictions[0] == pytest.approx(15, abs=3)


def test_no_rows_give_no_predictions(make: Make) -> None:
    predictor = make(lambda a: np.digitize(a, [-0.5, 0.5]), "multiclass")
    assert predictor.predict(np.empty((0, 2), dtype=np.float32)).shape == (0, 3)


def test_rows_against_the_contract_are_refused(make: Make) -> None:
    predictor = make(lambda a: np.where(a > 0, 1, 0), "binary")
    with pytest.raises(ContractViolation, match="'a'"):
        predictor.predict_rows([{"a": "high", "c": "x"}])
    with pytest.raises(ContractViolation, match="'a'"):
        predictor.predict_rows([{"c": "x"}])


def _ratio(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(double=frame.a * 2)


def test_features_are_made_for_requests_too(make: Make) -> None:
    predictor = make(lambda a: np.where(a > 0, 1, 0), "binary", features=_ratio)
    x, _, _ = predictor.predict_rows([{"a": 1.5, "c": "x"}])
    assert predictor.contract.names == ("a", "c", "double")
    assert x[0, 2] == 3.0


def test_rows_that_the_features_cannot_work_on_are_the_clients_fault(make: Make) -> None:
    predictor = make(lambda a: np.where(a > 0, 1, 0), "binary", features=_ratio)
    with pytest.raises(ContractViolation, match=r"The features function .* The rows do not fit this endpoint"):
        predictor.predict_rows([{"c": "x"}])


def test_a_busy_machine_is_not_taken_for_a_slow_model_but_a_model_that_waits_is_slow() -> None:
    busy = np.full(100, 0.001)
    stalled = np.full(100, 0.0011)
    stalled[::10] = 0.2
    assert undisturbed_p99(stalled, busy) == pytest.approx(0.0011)
    assert undisturbed_p99(np.full(100, 0.05), busy) == pytest.approx(0.05)
    uneven = np.full(100, 0.001)
    uneven[:5] = 0.03
    assert undisturbed_p99(uneven, uneven) == pytest.approx(0.03)


def test_latency_takes_a_request_row_or_an_encoded_one(make: Make) -> None:
    predictor = make(lambda a: np.where(a > 0, 1, 0), "binary")
    assert 0 < measure_latency(predictor, {"a": 1.0, "c": "x"}, n=20) < 10_000
    assert 0 < measure_latency(predictor, predictor.reference.x[:1], n=20) < 10_000


@pytest.mark.parametrize("family", [candidates.xgboost(), candidates.hist_boosting()], ids=lambda f: f.name)
def test_threads_may_share_a_predictor(make: Make, family: Any) -> None:
    predictor = make(lambda a: np.where(a > 0, 1, 0), "binary", family=family)
    x = predictor.reference.x
    alone = predictor.predict(x)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: predictor.predict(x), range(20)):
            np.testing.assert_array_equal(together, alone)
