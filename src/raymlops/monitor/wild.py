"""Single rows unlike any the model was judged on, flagged one by one with a stated rate of false flags.

A row's strangeness is its Mahalanobis distance from the reference, in robust units a column and over inputs and score; a
value at infinity or a category never seen counts as ten deviations. Split conformal prediction turns it into a p-value:
location and shape come from one half of the reference, ranks from the other, so of rows exchangeable with the reference at
most the stated share is flagged, whatever the distribution (Laxhammar and Falkman, 2010; Vovk et al., 2005).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 20
"""Flagged rows a report holds; more are only counted."""
RATE = 1e-3
_FAR = 10.0
_BLOCKS = 20
_RIDGE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WildRow:
    """One row.

    Attributes
    ----------
    row : its number in the version's traffic, from 0; -1 where the monitor was given counts and a sample
    request_id : ``""`` when the traffic came without
    p_value : conformal; of unchanged rows at most this share is as strange
    score : what the model said
    columns : where it lies furthest out, most first
    """

    row: int
    request_id: str
    p_value: float
    score: float
    columns: tuple[str, ...]

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> WildRow:
        return cls(**{**body, "columns": tuple(body["columns"])})


class WildRows:
    """Flags rows; pure, remembers nothing.

    Parameters
    ----------
    x : reference rows ``(n, d)`` in time order, the score in the last column, NaN = missing
    columns : names
    categories : column index -> number of codes
    rate : share of unchanged rows that may be flagged; not below one in as many rows as rank
    """

    def __init__(
        self,
        x: NDArray[np.floating[Any]],
        columns: Sequence[str],
        *,
        categories: Mapping[int, int] | None = None,
        rate: float = RATE,
    ) -> None:
        self._columns, self._categories = tuple(columns), dict(categories or {})
        block = np.arange(len(x)) * _BLOCKS // max(len(x), 1)
        learn, rank = np.asarray(x)[block % 2 == 0], np.asarray(x)[block % 2 == 1]
        finite = np.where(np.isfinite(learn), learn, np.nan).astype(np.float64)
        empty = np.isnan(finite).all(axis=0)
        finite[:, empty] = 0.0
        low, self._center, high = np.nanquantile(finite, (0.25, 0.5, 0.75), axis=0)
        spread = (high - low) / 1.349
        # Where half the values are one, the quartiles meet: then the standard deviation, and for a constant 1.
        self._scale = np.where(spread > 0, spread, np.nanstd(finite, axis=0))
        self._scale = np.where(self._scale > 0, self._scale, 1.0)
        z = self._robust(learn)
        covariance = (z.T @ z) / max(len(z), 1)
        values, vectors = np.linalg.eigh(covariance + _RIDGE * np.eye(len(covariance)))
        self._whiten = vectors / np.sqrt(values)
        self._ranks = np.sort(self._strangeness(self._robust(rank)))
        self.rate = max(rate, 1.0 / (len(self._ranks) + 1))

    def flag(
        self, x: NDArray[np.floating[Any]], *, first_row: int | None = 0, ids: Sequence[str] = ()
    ) -> tuple[tuple[WildRow, ...], int]:
        """The strangest rows of ``x`` ``(n, d)``, at most 20, and how many were flagged.

        ``first_row`` is the number of its first row, ``None`` when the rows are not neighbours; ``ids`` the requests they
        came with.
        """
        z = self._robust(x)
        strange = self._strangeness(z)
        at_least = len(self._ranks) - np.searchsorted(self._ranks, strange, side="left")
        p = (1.0 + at_least) / (len(self._ranks) + 1.0)
        flagged = np.flatnonzero(p <= self.rate)
        worst = flagged[np.lexsort((flagged, -strange[flagged]))][:MOST_ROWS]
        found = []
        for i in worst:
            out = np.argsort(-np.abs(z[i]), kind="stable")[:3]
            found.append(
                WildRow(
                    row=-1 if first_row is None else first_row + int(i),
                    request_id=ids[i] if len(ids) else "",
                    p_value=float(p[i]),
                    score=float(x[i, -1]),
                    columns=tuple(self._columns[j] for j in out if abs(z[i, j]) > 1.0),
                )
            )
        return tuple(found), len(flagged)

    def _robust(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Robust units ``(n, d)``; missing is 0, for a missing value is the rate tests' business."""
        values = np.asarray(x, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            z = (values - self._center) / self._scale
        for i, size in self._categories.items():
            unseen = np.isfinite(values[:, i]) & ((values[:, i] < 0) | (values[:, i] >= size))
            z[:, i] = np.where(unseen | np.isinf(values[:, i]), 100 * _FAR, 0.0)
        z = np.where(np.isnan(z), 0.0, z)
        # Beyond ten deviations only the logarithm counts: one column must not drown the rest, nor be cut off.
        far = np.abs(z) > _FAR
        with np.errstate(divide="ignore"):
            damped = np.sign(z) * (_FAR + np.log(np.maximum(np.abs(z), _FAR) / _FAR))
        return np.where(far, np.clip(damped, -10 * _FAR, 10 * _FAR), z)

    def _strangeness(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        y = z @ self._whiten
        distance: NDArray[np.float64] = (y * y).sum(axis=1)
        return distance
