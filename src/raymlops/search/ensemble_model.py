"""A few models that answer as one: the weighted mean of what they say. Only numpy: a package that holds one loads without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raymlops.search.rows import chosen

if TYPE_CHECKING:
    from raymlops.search.estimators import Estimator, Floats, Weigh


class EnsembleEstimator:
    """The weighted mean of its members' probabilities or values; of quantiles it is the mean of the members' quantiles.

    Attributes
    ----------
    members : estimators, fitted by :meth:`fit` each on its own window of the rows
    weights : one a member, at least 0, of sum 1
    recent : share of the newest rows that each member learns from
    weigh, monotone, quantile : passed on to the members that have them, see :class:`raymlops.search.estimators.XGBoostEstimator`;
        a mean of predictions that only rise with a column only rises with it
    """

    def __init__(
        self, members: Sequence[Estimator], weights: Sequence[float], recent: Sequence[float] = (), seed: int = 0
    ) -> None:
        self.members = tuple(members)
        self.weights = tuple(float(weight) for weight in weights)
        self.recent = tuple(recent) or (1.0,) * len(self.members)
        self.learned: dict[str, Any] = {}
        self.weigh: Weigh | None = None
        self.monotone: tuple[int, ...] = ()
        self.quantile: float | None = None
        self.threads = 1
        self._seed = seed

    def watch(self, metric: str) -> None:
        """Tell the members what the search optimises."""
        for member in self.members:
            told = getattr(member, "watch", None)
            if told is not None:
                told(metric)

    def fit(self, x: Floats, y: Floats, x_val: Floats | None = None, y_val: Floats | None = None) -> EnsembleEstimator:
        for member, recent in zip(self.members, self.recent, strict=True):
            for name in ("weigh", "monotone", "quantile", "threads"):
                if hasattr(member, name):
                    setattr(member, name, getattr(self, name))
            rows = chosen(len(y), recent, 1.0, self._seed)
            window = slice(int(rows[0]), None)
            member.fit(x[window], y[window], x_val, y_val)
        return self

    def predict(self, x: Floats) -> Floats:
        return mean([member.predict(x) for member in self.members], self.weights)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "weigh": None}


def mean(said: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """The weighted mean of predictions of one shape, float64."""
    total = weights[0] * np.asarray(said[0], dtype=np.float64)
    for part, weight in zip(said[1:], weights[1:], strict=True):
        total = total + weight * np.asarray(part, dtype=np.float64)
    return total
