"""How sure a difference is: resampling of rows that keeps what the rows share with their neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.intp]


def block_rows(values: Floats) -> int:
    """Rows a block should hold when time-ordered ``values`` ``(n,)`` are resampled by moving blocks; 1 where they look independent.

    Andrews (1991), equation 6.2 with the AR(1) plug-in, for the Bartlett kernel, whose variance the moving-block
    bootstrap has. A lag-1 correlation within two standard errors of 0 counts as none; a block is at most a tenth of the rows.
    """
    n = len(values)
    centred = values - values.mean() if n else values
    spread = float(centred @ centred)
    if n < 20 or spread <= 0:
        return 1
    rho = float(centred[1:] @ centred[:-1]) / spread
    if rho <= 2.0 / math.sqrt(n):
        return 1
    rho = min(rho, 0.97)
    alpha = 4 * rho**2 / ((1 - rho) ** 2 * (1 + rho) ** 2)
    return int(min(max(2, math.ceil(1.1447 * (alpha * n) ** (1 / 3))), max(1, n // 10)))


def standard_error(values: Floats, *, ordered: bool) -> float:
    """Of the mean of ``values`` ``(n,)``; when ``ordered``, by the means of overlapping blocks (Künsch 1989). NaN below two rows."""
    n = len(values)
    if n < 2:
        return math.nan
    block = block_rows(values) if ordered else 1
    if block == 1:
        return float(np.std(values, ddof=1)) / math.sqrt(n)
    sums = np.cumsum(np.insert(np.asarray(values, dtype=np.float64), 0, 0.0))
    means = (sums[block:] - sums[:-block]) / block
    return math.sqrt(block * float(np.var(means)) / n)


def moving_blocks(n: int, block: int, replicates: int, seed: int) -> Iterator[Rows]:
    """Row numbers ``(n,)`` of each replicate of the moving-block bootstrap (Künsch 1989, Annals of Statistics 17).

    With ``block=1`` it is Efron's bootstrap of independent rows.
    """
    rng = np.random.default_rng(seed)
    pieces, within = -(-n // block), np.arange(block)
    for _ in range(replicates):
        starts = rng.integers(0, n - block + 1, size=pieces)
        yield (starts[:, None] + within).reshape(-1)[:n]


def stratified(strata: NDArray[Any], replicates: int, seed: int) -> Iterator[Rows]:
    """Row numbers ``(n,)`` of each replicate, drawn within each stratum, so that every replicate holds as many of each."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    for _ in range(replicates):
        yield np.concatenate([rows[rng.integers(0, len(rows), size=len(rows))] for rows in members])
