"""What a model costs to serve: the time of one row, its size, the columns it reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import numpy as np

if TYPE_CHECKING:
    from raymlops.search.estimators import Estimator, Floats

Prefer = Literal["score", "balanced", "fast", "small"]

# How many standard errors of score a cheaper model may lose, and what cheap means: weights of log cost.
_WEIGHTS: dict[Prefer, tuple[float, Mapping[str, float]]] = {
    "score": (0.0, {}),
    "balanced": (1.0, {"latency_us": 1.0, "size_kb": 0.25, "features": 0.25}),
    "fast": (2.0, {"latency_us": 1.0}),
    "small": (2.0, {"size_kb": 1.0}),
}
PREFERENCES = tuple(_WEIGHTS)
_REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Measured natively in the worker: what a package's ONNX form saves is not known yet, but the order is much the same.

    Attributes
    ----------
    latency_us : median microseconds of predicting one row
    size_kb : of the pickled model, as a package stores it
    features : columns that the model reads, of those it was given
    """

    latency_us: float
    size_kb: float
    features: int


def serving_cost(estimator: Estimator, x: Floats) -> Cost:
    """Measure a fitted model on the first of the rows ``x`` ``(n, d)``."""
    row = np.ascontiguousarray(x[:1])
    estimator.predict(row)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        estimator.predict(row)
        times.append(time.perf_counter() - began)
    return Cost(
        latency_us=round(float(np.median(times)) * 1e6, 1),
        size_kb=round(len(cloudpickle.dumps(estimator)) / 1024, 1),
        features=_features(estimator, x.shape[1]),
    )


def tolerance(prefer: Prefer) -> float:
    """Standard errors of score that a cheaper model may lose."""
    return _WEIGHTS[prefer][0]


def price(cost: Cost, prefer: Prefer) -> float:
    """One number to order models by, on a log scale: lower is cheaper."""
    return sum(weight * float(np.log(max(getattr(cost, name), 1e-3))) for name, weight in _WEIGHTS[prefer][1].items())


def _features(estimator: Any, width: int) -> int:
    """Columns that a model reads; of an ensemble at most so many."""
    if members := getattr(estimator, "members", ()):
        return min(width, sum(_features(member, width) for member in members))
    booster = getattr(estimator, "booster", None)
    if booster is not None:
        return len(booster.get_fscore())
    model: Any = getattr(estimator, "pipeline", None)
    model = model[-1] if hasattr(model, "steps") else model
    importances = getattr(model, "feature_importances_", None)
    return width if importances is None else min(width, int(np.count_nonzero(importances)))
