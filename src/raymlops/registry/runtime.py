"""A packaged model that answers: the same ``predict`` over ONNX Runtime or the native library, one thread each."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

from raymlops.errors import DataError
from raymlops.search.ensemble_model import EnsembleEstimator, mean
from raymlops.search.estimators import Estimator, Floats, HistBoostingEstimator, SklearnEstimator, XGBoostEstimator

if TYPE_CHECKING:
    from raymlops.data.schema import Task

ENSEMBLE = "ensemble.json"
_OPSET = {"": 17, "ai.onnx.ml": 3}


class Runtime(Protocol):
    """``predict`` as :class:`raymlops.search.estimators.Estimator` defines it; safe to call from several threads."""

    def predict(self, x: Floats) -> Floats: ...


class OnnxRuntime:
    """ONNX Runtime with one thread: a row takes microseconds, and requests do not fight for cores."""

    def __init__(self, model: bytes, task: Task) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        outputs = [item.name for item in self._session.get_outputs()]
        self._output = outputs[-1:] if task != "regression" else outputs[:1]
        self._input = self._session.get_inputs()[0].name
        self._task = task

    def predict(self, x: Floats) -> Floats:
        (raw,) = self._session.run(self._output, {self._input: np.ascontiguousarray(x, dtype=np.float32)})
        answer: Floats = np.asarray(raw, dtype=np.float64)
        if self._task == "regression":
            return answer.reshape(-1)
        return answer[:, 1] if self._task == "binary" else answer


class NativeRuntime:
    """The library that trained the model."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        # OpenMP inside scikit-learn is held only while it predicts; XGBoost was told its threads.
        self._pools = ThreadpoolController()

    def predict(self, x: Floats) -> Floats:
        with self._pools.limit(limits=1):
            return self._estimator.predict(x)


class MeanRuntime:
    """An ensemble: each member as it predicts fastest, one after another."""

    def __init__(self, members: Sequence[Runtime], weights: Sequence[float]) -> None:
        self._members, self._weights = members, weights

    def predict(self, x: Floats) -> Floats:
        return mean([member.predict(x) for member in self._members], self._weights)


def load_estimator(folder: Path, form: str, task: Task, n_classes: int, name: str = "model") -> Estimator:
    """What a verified package was trained as; ``form`` is ``"xgboost"`` (JSON), ``"pickle"``, or ``"ensemble"`` of these."""
    if form == "ensemble":
        held = json.loads((folder / ENSEMBLE).read_bytes())
        pairs = zip(held["forms"], held["names"], strict=True)
        members = [load_estimator(folder, kind, task, n_classes, at) for kind, at in pairs]
        return EnsembleEstimator(members, held["weights"])
    if form == "xgboost":
        return XGBoostEstimator.load(folder / f"{name}.json", task, n_classes)
    loaded: Estimator = pickle.loads((folder / f"{name}.pkl").read_bytes())
    return loaded


def load_native(folder: Path, form: str, task: Task, n_classes: int) -> Runtime:
    """The native model of a verified package, as it predicts fastest."""
    return _native(load_estimator(folder, form, task, n_classes))


def _native(estimator: Estimator) -> Runtime:
    if isinstance(estimator, EnsembleEstimator):
        return MeanRuntime([_native(member) for member in estimator.members], estimator.weights)
    if isinstance(estimator, XGBoostEstimator) and estimator.booster is not None:
        from raymlops.registry.booster import BoosterRuntime

        return BoosterRuntime(estimator.booster)
    return NativeRuntime(estimator)


def to_onnx(estimator: Estimator, n_features: int) -> bytes:
    """The ONNX form of a fitted estimator.

    Raises
    ------
    DataError : there is no converter for it, with the reason
    """
    try:
        if isinstance(estimator, EnsembleEstimator):
            return _from_ensemble(estimator, n_features)
        if isinstance(estimator, XGBoostEstimator):
            return _from_xgboost(estimator, n_features)
        if isinstance(estimator, SklearnEstimator):
            return _from_sklearn(estimator, n_features)
    except DataError:
        raise
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        raise DataError(f"the conversion failed: {type(error).__name__}: {words[0][:200]}") from error
    raise DataError(f"there is no converter for {type(estimator).__name__}")


def _from_ensemble(estimator: EnsembleEstimator, n_features: int) -> bytes:
    from raymlops.registry.merged_onnx import merge

    models = [to_onnx(member, n_features) for member in estimator.members]
    first: Any = estimator.members[0]  # one of ours, or it would have had no ONNX form
    return merge(models, estimator.weights, first.task, n_features)


def _from_xgboost(estimator: XGBoostEstimator, n_features: int) -> bytes:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster: Any = estimator.booster
    model = onnxmltools.convert_xgboost(
        booster, initial_types=[("x", FloatTensorType([None, n_features]))], target_opset=15
    )
    return bytes(model.SerializeToString())


def _from_sklearn(estimator: SklearnEstimator, n_features: int) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    pipeline = estimator.pipeline
    if isinstance(estimator, HistBoostingEstimator) and estimator.empty.any():
        raise DataError("a column was empty in the training rows, and its filling has no converter")
    options: dict[int, dict[str, bool]] = {}
    if estimator.task != "regression":
        if len(estimator.seen_classes()) < estimator.n_classes:
            raise DataError("the training rows did not hold every class")
        options = {id(pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline): {"zipmap": False}}
    model = convert_sklearn(
        pipeline, initial_types=[("x", FloatTensorType([None, n_features]))], options=options, target_opset=_OPSET
    )
    return bytes(model.SerializeToString())
