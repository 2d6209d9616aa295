"""Kolmogorov-Smirnov distance of a window from a reference that was sorted once: exact from rows, or from counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_RADIX_ROWS = 2000
"""Rows from which two radix passes over half keys beat a comparison sort."""


def order_keys(values: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Finite float32 values as whole numbers in the same order, ties included (0 and -0 are one); unsorted.

    The bits of an IEEE float, read as a whole number, rise with it where it is positive and fall where it is negative.
    """
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0.0)).view(np.int32)
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def sort_keys(keys: NDArray[np.int32]) -> NDArray[np.int32]:
    """``keys`` ``(n,)`` sorted, many of them by radix: numpy's stable sort of 16-bit numbers is one, of 32-bit ones not."""
    if len(keys) < _RADIX_ROWS:
        return np.sort(keys)
    by_low = (keys & 0xFFFF).astype(np.uint16).argsort(kind="stable")
    by_high = (keys >> 16).astype(np.int16)[by_low].argsort(kind="stable")
    return keys[by_low[by_high]]


def exact_distance(reference: NDArray[np.int32], values: NDArray[np.int32]) -> float:
    """sup |F - G| of two samples as :func:`order_keys` keys, the reference sorted; both hold something.

    Equals scipy's statistic, ties included. Differences are of whole numbers, in units of ``1 / (n m)``.
    """
    current = sort_keys(values)
    n, m = len(current), len(reference)
    # Between two window values G is constant and F monotone, so its extremes are just before and at each of them.
    last = np.append(current[1:] != current[:-1], True)
    ends = np.arange(1, n + 1) if last.all() else np.flatnonzero(last) + 1
    jumps = current if len(ends) == n else current[ends - 1]
    at = np.searchsorted(reference, jumps, side="right")
    tied = np.flatnonzero(reference[np.maximum(at - 1, 0)] == jumps)
    lead = ends * m - at * n
    # Just before a jump F has not risen yet; nor has G where the reference holds the same value.
    before = lead - (m if len(ends) == n else np.diff(ends, prepend=0) * m)
    before[tied] += (at[tied] - np.searchsorted(reference, jumps[tied], side="left")) * n
    return int(max(lead.max(), -lead.min(), before.max(), -before.min())) / (n * m)


def binned_distance(counts: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The same at the cells' borders only, from counts ``(cells,)``: exact there, and never larger."""
    return float(np.abs(np.cumsum(counts) / counts.sum() - np.cumsum(reference) / reference.sum()).max())


def p_value(statistic: float, n: float, m: float) -> float:
    """Asymptotic, with Stephens' correction for small samples (JRSS-B 1970)."""
    from scipy.special import kolmogorov

    root = np.sqrt(n * m / (n + m))
    return float(kolmogorov((root + 0.12 + 0.11 / root) * statistic))
