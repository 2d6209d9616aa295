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


def sort_rows(keys: NDArray[np.int32]) -> NDArray[np.int32]:
    """:func:`sort_keys` of each row of ``(k, n)``."""
    if keys.shape[1] < _RADIX_ROWS:
        return np.sort(keys, axis=1)
    return np.array([sort_keys(row) for row in keys])


def exact_distance(reference: NDArray[np.int32], values: NDArray[np.int32]) -> float:
    """sup |F - G| of two samples as :func:`order_keys` keys, the reference sorted; both hold something.

    Equals scipy's statistic, ties included. Differences are of whole numbers, in units of ``1 / (n m)``.
    """
    return sorted_distance(reference, sort_keys(values))


def sorted_distance(reference: NDArray[np.int32], current: NDArray[np.int32]) -> float:
    """:func:`exact_distance` of two samples that are both sorted.

    F rises at window values only, so F - G is largest just after one of them, and G - F just before one. Among equal values the
    last one gives the first and the first one the second, so ties need no care on the window's side.
    """
    n, m = len(current), len(reference)
    after = np.searchsorted(reference, current, side="right")
    # No key is below the smallest and equal to the largest, so an index of -1 finds no tie.
    tied = reference[after - 1] == current
    before = after
    if tied.any():
        before = after.copy()
        before[tied] = np.searchsorted(reference, current[tied], side="left")
    steps = np.arange(n + 1) * m
    return max(int((steps[1:] - after * n).max()), int((before * n - steps[:-1]).max())) / (n * m)


def binned_distance(counts: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The same at the cells' borders only, from counts ``(cells,)``: exact there, and never larger."""
    return float(np.abs(np.cumsum(counts) / counts.sum() - np.cumsum(reference) / reference.sum()).max())


def p_value(statistic: float, n: float, m: float) -> float:
    """Asymptotic, with Stephens' correction for small samples (JRSS-B 1970)."""
    return float(p_values(np.array([statistic]), np.array([n]), np.array([m]))[0])


def p_values(statistics: NDArray[np.float64], n: NDArray[np.float64], m: NDArray[np.float64]) -> NDArray[np.float64]:
    """:func:`p_value` of many, each ``(k,)``."""
    from scipy.special import kolmogorov

    root = np.sqrt(n * m / (n + m))
    found: NDArray[np.float64] = kolmogorov((root + 0.12 + 0.11 / root) * statistics)
    return found
