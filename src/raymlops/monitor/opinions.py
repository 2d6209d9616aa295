"""What costs the monitor more than all of its own detectors: the second opinion, and the estimate of performance.

Both explain, and neither spends of the alarm budget, so they need not keep step with the traffic: each is formed anew when what it
says is :data:`EVERY_S` old in served time, and until then it is carried along. Where windows are longer than that, every window
has its own; where they come by the second, the monitor's work does not grow with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.monitor.estimate import PerformanceEstimate, PerformanceEstimator, labels_of

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.monitor.alibi import AlibiDetector
    from raymlops.registry.package import Reference

EVERY_S = 10.0
"""An estimate takes about half a second for 28 columns and a reference of 5,000 rows, alibi-detect a twentieth."""
_ESTIMATE_ROWS = 300


class Opinions:
    """The newest second opinion and estimate of one version, and when each was formed.

    Parameters
    ----------
    reference, contract : of the version; there are estimates for binary models with enough labels of both classes only
    x : ``(n, d + 1)`` the reference's rows, the score last
    columns, categories : names, and column index -> number of codes
    ask : whether alibi-detect is asked where it is installed
    """

    def __init__(
        self,
        reference: Reference,
        contract: DataContract,
        x: NDArray[np.float32],
        columns: Sequence[str],
        categories: Mapping[int, int],
        *,
        ask: bool,
    ) -> None:
        self._x, self._columns, self._categories, self._ask = x, tuple(columns), categories, ask
        self._estimator = _estimator(reference, contract)
        self._alibi: AlibiDetector | None = None
        self._second: tuple[float, dict[str, Any]] | None = None
        self._estimated: tuple[float, PerformanceEstimate] | None = None

    def second(self, x: NDArray[np.float32], alpha: float, window: int, at: float) -> dict[str, Any] | None:
        """What alibi-detect says of a window that ended at ``at``, or of which window it last did; ``None`` without it."""
        if not self._ask:
            return None
        from raymlops.monitor import alibi

        if not alibi.available():
            return None
        if self._second is not None and 0.0 <= at - self._second[0] < EVERY_S:
            return self._second[1]
        if self._alibi is None:
            self._alibi = alibi.AlibiDetector(self._x, self._columns, categories=self._categories)
        found = self._alibi.detect(x, alpha)
        drifted = [item for item in found if item.drifted]
        said = {
            "detector": self._alibi.name,
            "window": window,
            "drifted": bool(drifted),
            "columns": [item.column for item in sorted(drifted, key=lambda e: (e.p_value, e.column))],
            "p_value": min((item.p_value for item in found), default=1.0),
            "limit": found[0].limit if found else alpha,
            "note": "assumes independent rows: on an ordered stream it flags windows in which nothing changed",
        }
        self._second = at, said
        return said

    def estimate(self, x: NDArray[np.float32], at: float) -> tuple[PerformanceEstimate | None, bool]:
        """Performance without labels of a window that ended at ``at``, and whether it is this window's own.

        ``None`` where there is no estimator, or fewer than 300 finite scores.
        """
        if self._estimator is None:
            return None, False
        if self._estimated is not None and 0.0 <= at - self._estimated[0] < EVERY_S:
            return self._estimated[1], False
        if np.isfinite(x[:, -1]).sum() < _ESTIMATE_ROWS:
            return None, False
        found = self._estimator.estimate(x[:, :-1], x[:, -1])
        self._estimated = at, found
        return found, True

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        estimated = None if self._estimated is None else [self._estimated[0], self._estimated[1].to_dict()]
        return {"second": None if self._second is None else list(self._second), "estimated": estimated}

    def load_state(self, state: Mapping[str, Any]) -> None:
        second, estimated = state["second"], state["estimated"]
        self._second = None if second is None else (second[0], second[1])
        self._estimated = None if estimated is None else (estimated[0], PerformanceEstimate.from_dict(estimated[1]))


def _estimator(reference: Reference, contract: DataContract) -> PerformanceEstimator | None:
    """For binary models whose reference holds enough labels of both classes; there is none for other tasks."""
    if contract.task != "binary":
        return None
    labels = labels_of(reference.scores, reference.losses)
    try:
        return PerformanceEstimator(reference.x, reference.scores, labels)
    except DataError:
        return None
