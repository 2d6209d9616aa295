"""How long columns remember: autocorrelation times by the number of rows that are averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Memory:
    """Autocorrelation times of a period in time order: rows that carry as much information as one independent row.

    Attributes
    ----------
    lengths : ``(k,)`` rows averaged, increasing
    times, missing : ``(k, d)`` at least 1: of a column's values, and of whether they are there
    joint : ``(k,)`` of the linear combination of columns that remembers longest
    """

    lengths: NDArray[np.int64]
    times: NDArray[np.float64]
    missing: NDArray[np.float64]
    joint: NDArray[np.float64]

    def of_mean(self, rows: float) -> NDArray[np.float64]:
        """Times ``(d,)`` for a mean of so many rows: the longest over blocks up to the first that is as long."""
        return _longest(self.times[: self._upto(rows)])

    def of_rate(self, rows: float) -> NDArray[np.float64]:
        """As :meth:`of_mean`, for the rate of missing values."""
        return _longest(self.missing[: self._upto(rows)])

    @property
    def longest(self) -> NDArray[np.float64]:
        """Times ``(d,)`` for whatever goes on from window to window, and for the period itself."""
        return _longest(self.times)

    @property
    def longest_joint(self) -> float:
        """The same for all columns together."""
        return float(np.max(self.joint, initial=1.0))

    def _upto(self, rows: float) -> int:
        return int(np.searchsorted(self.lengths, rows)) + 1


def _longest(times: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = times.max(axis=0, initial=1.0)
    return found
