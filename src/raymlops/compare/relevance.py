"""Which columns the model needs on rows it has not seen, and which say nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.compare.paired import row_loss
from raymlops.search.objective import Objective
from raymlops.search.resample import standard_error

_ROWS, _REPEATS = 1000, 3
_ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Relevance:
    """One column's permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019) on held-out rows.

    Attributes
    ----------
    loss : by how much the mean row loss rises when the column's values are shuffled
    error : standard error of that
    matters : it rises by more than chance, at 5 % for all columns together (Bonferroni)
    """

    column: str
    loss: float
    error: float
    matters: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Relevance:
        return cls(**data)


def relevance(
    objective: Objective,
    predict: Callable[[NDArray[np.float32]], NDArray[Any]],
    x: NDArray[np.float32],
    y: NDArray[Any],
    columns: Sequence[str],
    *,
    ordered: bool,
    seed: int = 0,
) -> tuple[Relevance, ...]:
    """The columns of ``x`` ``(n, d)``, the one the model needs most first; from at most 1,000 rows spread over ``x``.

    Columns that say the same cover for each other: both may look idle.
    """
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), _ROWS)).astype(int))
    x, y = x[rows], np.asarray(y)[rows]
    own = row_loss(objective, y, predict(x))
    limit = float(norm.isf(_ALPHA / max(1, len(columns))))
    found = []
    for index, column in enumerate(columns):
        rises = np.zeros(len(x))
        for _ in range(_REPEATS):
            shuffled = x.copy()
            shuffled[:, index] = rng.permutation(x[:, index])
            rises += (row_loss(objective, y, predict(shuffled)) - own) / _REPEATS
        rise, error = float(rises.mean()), standard_error(rises, ordered=ordered)
        found.append(Relevance(column=column, loss=rise, error=error, matters=rise > limit * error))
    return tuple(sorted(found, key=lambda item: -item.loss))
