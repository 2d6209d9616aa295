"""Which cell a value falls in, found in constant time and exactly as a binary search would find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRID = 1024
"""Equal-width steps between the first and the last border, each of which knows the borders inside it."""


@dataclass(frozen=True, slots=True, eq=False)
class CellGrid:
    """Borders of one column with a table over a uniform grid.

    A step of the grid holds no border, one, or many. For the first two, a value's cell is the number of borders before
    the step plus one comparison; only values in a crowded step are searched for. The position ``(x - low) * scale`` is
    monotone in ``x`` however it is rounded, and each border got its step by the same formula, so the answer is exact.

    Attributes
    ----------
    edges : increasing borders, float64; a value's cell is how many are ``<=`` it
    """

    edges: NDArray[np.float64]
    _borders: NDArray[np.float32]
    _low: np.float32
    _scale: np.float32
    _first: NDArray[np.intp]
    _border: NDArray[np.float32]
    _crowded: NDArray[np.bool_] | None

    @classmethod
    def build(cls, edges: NDArray[np.float64]) -> CellGrid:
        with np.errstate(over="ignore"):
            borders = edges.astype(np.float32)
            # A float32 is >= the border exactly when it is >= the next float32 that is not below it.
            borders = np.where(borders < edges, np.nextafter(borders, np.float32(np.inf)), borders)
            low = np.float32(borders[0])
            scale = np.float32(GRID) / (borders[-1] - low) if borders[-1] > low else np.float32(0.0)
        empty, none = np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.float32)
        if not (np.isfinite(scale) and scale > 0 and np.isfinite(borders[-1])):
            return cls(edges, borders, low, np.float32(0.0), empty, none, None)
        steps = _steps(borders, low, scale)
        inside = np.bincount(steps, minlength=GRID)
        border = np.full(GRID, np.inf, dtype=np.float32)
        border[steps[::-1]] = borders[::-1]
        crowded = inside > 1
        first = np.concatenate(([0], np.cumsum(inside)[:-1])).astype(np.intp)
        return cls(edges, borders, low, scale, first, border, crowded if crowded.any() else None)

    def locate(self, finite: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """Cells of finite values ``(n,)``: ``searchsorted(edges, values, side="right")``, for float32 in constant time."""
        if finite.dtype != np.float32:
            return np.searchsorted(self.edges, finite.astype(np.float64), side="right")
        if not self._first.size:
            return np.searchsorted(self._borders, finite, side="right")
        steps = _steps(finite, self._low, self._scale)
        cells = self._first.take(steps)
        cells += finite >= self._border.take(steps)
        if self._crowded is not None:
            search = np.flatnonzero(self._crowded.take(steps))
            cells[search] = np.searchsorted(self._borders, finite[search], side="right")
        return cells


def _steps(values: NDArray[np.float32], low: np.float32, scale: np.float32) -> NDArray[np.intp]:
    with np.errstate(over="ignore"):
        position = (values - low) * scale
    np.clip(position, 0, GRID - 1, out=position)
    return position.astype(np.intp)
