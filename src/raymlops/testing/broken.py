"""Models that break once they are served: for tests and benchmarks of what then happens."""

from __future__ import annotations

import os
import time
from typing import Any, Literal

import numpy as np

from raymlops.search.estimators import Estimator, Floats

Fault = Literal["raises", "nan", "shape", "slow"]


class FaultyEstimator:
    """Predicts as another estimator does in the process that made it, and badly in every other one, so that it can be
    packaged, loaded and warmed (with rows of zeros) first.

    Parameters
    ----------
    fault : ``"shape"`` gives one prediction too few, ``"slow"`` takes ``slow_s`` seconds for each batch
    times : a file that gets a line with the wall time of each bad batch, before its answer; or ``""``
    """

    def __init__(self, good: Estimator, fault: Fault, times: str = "", slow_s: float = 0.0) -> None:
        self._good, self._fault, self._times, self._slow_s = good, fault, times, slow_s
        self._made_in = os.getpid()

    def fit(self, x: Floats, y: Floats, x_val: Floats | None = None, y_val: Floats | None = None) -> FaultyEstimator:
        self._good.fit(x, y, x_val, y_val)
        return self

    def predict(self, x: Floats) -> Floats:
        prediction = self._good.predict(x)
        if os.getpid() == self._made_in or not np.any(x):
            return prediction
        if self._times:
            with open(self._times, "a") as out:
                out.write(f"{time.time()}\n")
        if self._fault == "raises":
            raise RuntimeError("this version is broken")
        if self._fault == "slow":
            time.sleep(self._slow_s)
            return prediction
        bad: Any = prediction[1:] if self._fault == "shape" else np.full(prediction.shape, np.nan)
        return bad
