"""XGBoost's prediction by its C interface: the Python wrapper around it costs more than the trees do for a hundred rows.

Source: https://xgboost.readthedocs.io/en/stable/c.html, XGBoosterPredictFromDense.
"""

from __future__ import annotations

import ctypes
import json
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost
from xgboost import core

if TYPE_CHECKING:
    from raymlops.search.estimators import Floats

_WHOLE_MODEL = json.dumps(
    {"type": 0, "training": False, "iteration_begin": 0, "iteration_end": 0, "missing": math.nan, "strict_shape": False}
).encode()


class BoosterRuntime:
    """A trained booster that answers as ``Booster.inplace_predict`` does; safe to call from several threads."""

    def __init__(self, booster: xgboost.Booster) -> None:
        self._booster, self._columns = booster, booster.num_features()
        self._predict: Any = core._LIB.XGBoosterPredictFromDense
        self._proxies = threading.local()

    def predict(self, x: Floats) -> Floats:
        """Probabilities or values ``(n,)``, or ``(n, classes)``, float64, of a matrix ``(n, n_features)``.

        Raises
        ------
        ValueError : the matrix has another number of columns than the model was trained on
        xgboost.core.XGBoostError
        """
        if x.ndim != 2 or x.shape[1] != self._columns:
            raise ValueError(f"The model takes {self._columns} columns, got a matrix of shape {x.shape}.")
        rows = np.ascontiguousarray(x, dtype=np.float32)
        proxy = getattr(self._proxies, "matrix", None)
        if proxy is None:
            proxy = self._proxies.matrix = core._ProxyDMatrix()
        shape, dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        values = ctypes.POINTER(ctypes.c_float)()
        core._check_call(
            self._predict(
                self._booster.handle,
                b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}'
                % (rows.ctypes.data, len(rows), self._columns),
                _WHOLE_MODEL,
                proxy.handle,
                ctypes.byref(shape),
                ctypes.byref(dimensions),
                ctypes.byref(values),
            )
        )
        # The values are the booster's own memory until this thread's next call: the conversion copies them.
        found = np.ctypeslib.as_array(values, tuple(shape[: dimensions.value]))
        return np.asarray(found, dtype=np.float64)
