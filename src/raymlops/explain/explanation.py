"""What an explanation is: how much each column of the contract moved a prediction away from the average one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Units = Literal["log-odds", "score", "probability", "value"]
Method = Literal["tree_shap", "linear", "sampled_shapley"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Shapley values of n rows: ``base + contributions summed over the columns = output``, for each row.

    Attributes
    ----------
    columns : of the data contract, d of them; one-hot columns are summed up
    contributions : ``(n, d)``, or ``(n, k, d)`` for k classes
    base : ``(n,)`` or ``(n, k)``: the output for no row in particular; the same for all rows but where it is sampled
    output : ``(n,)`` or ``(n, k)``: what the model itself says, in the same units, before any calibration
    units : ``log-odds``, ``score`` (before the softmax, for more than two classes), ``probability`` or ``value``
    method : ``tree_shap`` (exact; Lundberg et al. 2020, path-dependent), ``linear`` (exact against the reference rows) or
        ``sampled_shapley`` (Štrumbelj & Kononenko 2014, against the reference rows). Of an ensemble's mean of values whose members are
        all of one exact kind, that kind: the weighted sum of the members' contributions is exact; of all other ensembles, sampled
    error : standard error of each contribution, of its shape; ``None`` for exact methods
    """

    columns: tuple[str, ...]
    contributions: Floats
    base: Floats
    output: Floats
    units: Units
    method: Method
    error: Floats | None = None

    @property
    def residual(self) -> float:
        """The largest distance of a row's sum from its output: rounding, and nothing else."""
        gap = self.base + self.contributions.sum(axis=-1) - self.output
        return float(np.abs(gap).max(initial=0.0))


class Explainer(Protocol):
    """Explains one model.

    Attributes
    ----------
    most_rows : rows it takes at once, so that one call stays within seconds
    costly : that many rows do take seconds
    """

    most_rows: int
    costly: bool

    def explain(self, x: NDArray[np.float32]) -> Explanation:
        """Explain encoded rows, ``(n, d)``, at least one; NaN is missing. Safe to call from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """One column over many rows: its mean absolute contribution, in ``units``, and the share of all columns' sum."""

    column: str
    mean_abs: float
    share: float
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def importances(explanation: Explanation) -> tuple[Importance, ...]:
    """Global importance of each column, largest first; for several classes their mean.

    The error is the standard error over rows, which also holds the sampling of the method.
    """
    size = np.abs(explanation.contributions)
    if size.ndim == 3:
        size = size.mean(axis=1)
    n = len(size)
    means = size.mean(axis=0) if n else np.zeros(len(explanation.columns))
    errors = size.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else None
    total = float(means.sum())
    found = [
        Importance(
            column=column,
            mean_abs=float(means[i]),
            share=float(means[i]) / total if total > 0 else 0.0,
            error=None if errors is None else float(errors[i]),
        )
        for i, column in enumerate(explanation.columns)
    ]
    return tuple(sorted(found, key=lambda item: (-item.mean_abs, item.column)))
