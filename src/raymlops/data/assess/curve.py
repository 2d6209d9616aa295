"""A learning curve: error = a + b · rows^-c, fitted so that one odd repeat does not bend it, and carried on with an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.errors import DataError

Floats = npt.NDArray[np.float64]

_POWERS = np.concatenate([np.linspace(0.05, 1.0, 20), [1.25, 1.5]])
_BOOTSTRAPS = 200
_ROUNDS = 4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LearningCurve:
    """An inverse power law (Cortes, Jackel, Solla, Vapnik & Denker 1994) through errors at growing numbers of rows.

    Attributes
    ----------
    sizes, errors : rows trained on, and the median error at each
    a, b, c : of ``a + b * rows ** -c``: the error that no number of rows takes away, the rest, and how fast it goes
    bootstraps : ``(n, 3)``, the same of curves through resampled repeats
    """

    sizes: tuple[int, ...]
    errors: tuple[float, ...]
    a: float
    b: float
    c: float
    bootstraps: Floats

    def error(self, rows: float) -> float:
        """The error expected with ``rows`` rows."""
        return self.a + self.b * rows**-self.c

    def gain(self, rows: float, more: float) -> tuple[float, float, float]:
        """By how much the error falls from ``rows`` to ``more`` rows: the estimate and its 95 % interval."""
        _, b, c = self.bootstraps.T
        low, high = np.quantile(b * (rows**-c - more**-c), (0.025, 0.975))
        middle = self.error(rows) - self.error(more)
        return middle, min(float(low), middle), max(float(high), middle)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable: the points, the curve, and its interval at each point and at twice and four times the last."""
        ahead = [*self.sizes, 2 * self.sizes[-1], 4 * self.sizes[-1]]
        a, b, c = (part[:, None] for part in self.bootstraps.T)
        low, high = np.quantile(a + b * np.array(ahead, dtype=np.float64)[None, :] ** -c, (0.025, 0.975), axis=0)
        return {
            "sizes": list(self.sizes),
            "errors": [round(error, 6) for error in self.errors],
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "ahead": ahead,
            "low": [round(float(one), 6) for one in low],
            "high": [round(float(one), 6) for one in high],
        }


def fit_curve(sizes: npt.NDArray[np.integer[Any]], errors: Floats, *, seed: int = 0) -> LearningCurve:
    """The curve through ``errors``, shape ``(n_sizes, n_repeats)``.

    The power is searched on a grid; at each power ``a`` and ``b`` are a weighted straight line in ``rows ** -c`` with
    Huber's weights, none of them below zero. The interval is that of curves through repeats drawn with replacement.

    Raises
    ------
    DataError : fewer than three sizes
    """
    if len(sizes) < 3:
        raise DataError(f"A learning curve needs three sizes, not {len(sizes)}.")
    n = np.asarray(sizes, dtype=np.float64)
    rng = np.random.default_rng(seed)
    repeats = errors.shape[1]
    drawn = rng.integers(0, repeats, size=(_BOOTSTRAPS, len(n), repeats))
    resampled = np.take_along_axis(errors[None].repeat(_BOOTSTRAPS, axis=0), drawn, axis=2).mean(axis=2)
    middle = np.median(errors, axis=1)
    best = _fits(n, np.vstack([middle[None], resampled]))
    a, b, c = (float(value) for value in best[0])
    return LearningCurve(
        sizes=tuple(int(size) for size in sizes),
        errors=tuple(float(error) for error in middle),
        a=a,
        b=b,
        c=c,
        bootstraps=best[1:],
    )


def _fits(n: Floats, errors: Floats) -> Floats:
    """``(a, b, c)`` for each row of ``errors``, shape ``(k, n_sizes)``, all at once."""
    x = n[None, :] ** -_POWERS[:, None]  # (powers, sizes)
    y = errors[:, None, :]  # (k, 1, sizes)
    weights = np.ones((len(errors), len(_POWERS), len(n)))
    for _ in range(_ROUNDS):
        total = weights.sum(axis=2)
        mean_x, mean_y = (weights * x).sum(axis=2) / total, (weights * y).sum(axis=2) / total
        centred = x[None] - mean_x[..., None]
        spread = (weights * centred**2).sum(axis=2)
        b = np.maximum((weights * centred * (y - mean_y[..., None])).sum(axis=2) / np.maximum(spread, 1e-300), 0.0)
        a = mean_y - b * mean_x
        # An error cannot fall below zero: with a at zero the line goes through the origin.
        through = (weights * x * y).sum(axis=2) / (weights * x**2).sum(axis=2)
        b, a = np.where(a < 0, np.maximum(through, 0.0), b), np.maximum(a, 0.0)
        left = np.abs(y - a[..., None] - b[..., None] * x)
        scale = np.maximum(1.5 * np.median(left, axis=2, keepdims=True), 1e-12)
        weights = np.minimum(1.0, scale / np.maximum(left, 1e-12))
    loss = np.minimum(left, scale).sum(axis=2) + left.sum(axis=2)
    pick = np.argmin(loss, axis=1)
    each = np.arange(len(errors))
    return np.column_stack([a[each, pick], b[each, pick], _POWERS[pick]])
