"""What stands between a model's probability and the answer: its calibration and its threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.search.calibration import Calibration, calibrate
from raymlops.search.threshold import Threshold, ThresholdSpec, choose_threshold

if TYPE_CHECKING:
    from raymlops.data.snapshot import Arrays
    from raymlops.search.estimators import Floats
    from raymlops.search.objective import Objective
    from raymlops.search.selection import SearchResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Part of a package. The default changes nothing: the model's own probabilities, a threshold of 0.5."""

    calibration: Calibration = field(default_factory=Calibration)
    threshold: Threshold = field(default_factory=Threshold)

    @property
    def calibrates(self) -> bool:
        return self.calibration.kind != "identity"

    def apply(self, prediction: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated probabilities of a classification model; the shape stays."""
        return self.calibration.apply(prediction)

    def for_metric(self, objective: Objective, prediction: NDArray[Any]) -> NDArray[np.float64]:
        """Predictions such that a metric of decisions, which decides at 0.5, sees those made at this threshold.

        Metrics of probabilities see the probabilities.
        """
        t = self.threshold.value
        if not objective.decides or t == 0.5 or prediction.ndim != 1:
            return np.asarray(prediction, dtype=np.float64)
        return np.where(prediction >= t, 0.5 + 0.5 * (prediction - t) / (1 - t), 0.5 * prediction / t)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {"calibration": self.calibration.to_dict(), "threshold": self.threshold.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        return cls(
            calibration=Calibration.from_dict(data["calibration"]), threshold=Threshold.from_dict(data["threshold"])
        )


def decide(
    result: SearchResult,
    arrays: Arrays,
    *,
    ordered: bool,
    calibrated: bool,
    threshold: ThresholdSpec,
    unseen: Floats | None = None,
) -> Decision:
    """Calibration and threshold of a search's winner, from what it says of the validation rows.

    Parameters
    ----------
    unseen : :func:`raymlops.search.selection.unseen_validation` of the same result, where it is known already
    """
    from raymlops.search.selection import unseen_validation

    if result.problem.task == "regression" or (not calibrated and threshold is None):
        return Decision()
    y = arrays.y_validation
    p = np.asarray(unseen_validation(result, arrays) if unseen is None else unseen, dtype=np.float64)
    calibration = Calibration(note="Switched off by the pipeline.")
    if calibrated:
        calibration, p = calibrate(y, p, ordered=ordered, seed=result.problem.seed)
    chosen = Threshold() if p.ndim == 2 else choose_threshold(threshold, y[-len(p) :], p, ordered=ordered)
    return Decision(calibration=calibration, threshold=chosen)
