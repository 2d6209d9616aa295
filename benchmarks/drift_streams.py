"""Streams that drift detectors are compared on; numpy only, so that every tool's own interpreter draws the same ones.

Windows of 1,000 rows, 20 columns that correlate by 0.3, a reference of 10,000 rows; independent rows and AR(1) with 0.8 and
0.98. A change comes after 40 windows of independent rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REFERENCE, WINDOW, COLUMNS, CHANGE, WINDOWS = 10_000, 1000, 20, 40, 100
PHIS = {"iid": 0.0, "ar8": 0.8, "ar98": 0.98}
SIZES = ((10_000, 1000), (10_000, 10_000), (100_000, 100_000), (10_000, 1_000_000))
CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], None]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """``kind`` is a key of :data:`PHIS` (nothing changes) or of :data:`CHANGES`."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}"

    def draw(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The reference ``(10,000, 20)`` float32 and the windows, ``(1,000, 20)`` each."""
        x = autoregressive(PHIS.get(self.kind, 0.0), REFERENCE + WINDOWS * WINDOW, self.seed)
        if self.kind in CHANGES:
            CHANGES[self.kind](x[REFERENCE + CHANGE * WINDOW :], np.random.default_rng(self.seed + 7000))
        live = x[REFERENCE:]
        return x[:REFERENCE], [live[start : start + WINDOW] for start in range(0, len(live), WINDOW)]


def plan(seed: int, quiet: int, changed: int) -> list[Stream]:
    """Streams of ``quiet`` seeds without a change and of ``changed`` other seeds with each one."""
    still = [Stream(kind=kind, seed=seed + i) for kind in PHIS for i in range(quiet)]
    return still + [Stream(kind=kind, seed=seed + 500 + i) for kind in CHANGES for i in range(changed)]


def autoregressive(phi: float, rows: int, seed: int) -> np.ndarray:
    """Stationary AR(1) of unit variance, ``(rows, 20)`` float32."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(0.7 * np.eye(COLUMNS) + 0.3)
    noise = rng.normal(size=(rows, COLUMNS)) @ root.T
    if phi:
        noise[1:] *= np.sqrt(1 - phi**2)
        for i in range(1, rows):
            noise[i] += phi * noise[i - 1]
    return noise.astype(np.float32)


def sized(reference: int, window: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent rows of 50 columns to time a pass on: ``(reference, 50)`` and ``(window, 50)`` float32."""
    x = np.random.default_rng(seed).standard_normal((reference + window, 50), dtype=np.float32)
    return x[:reference], x[reference:]


def change(function: Callable[[np.ndarray, np.random.Generator], None]) -> None:
    CHANGES[function.__name__] = function


@change
def mean_shift(x: np.ndarray, rng: np.random.Generator) -> None:
    x[:, 3] += 0.25


@change
def small_mean_shift(x: np.ndarray, rng: np.random.Generator) -> None:
    x[:, 3] += 0.1


@change
def small_shift_everywhere(x: np.ndarray, rng: np.random.Generator) -> None:
    x += 0.1


@change
def variance(x: np.ndarray, rng: np.random.Generator) -> None:
    x[:, :3] *= 1.2


@change
def correlation(x: np.ndarray, rng: np.random.Generator) -> None:
    x[:] = rng.normal(size=x.shape)


@change
def gradual(x: np.ndarray, rng: np.random.Generator) -> None:
    x[:, 3] += 0.5 * np.minimum(np.arange(len(x)) / 50_000, 1.0)


@change
def missingness(x: np.ndarray, rng: np.random.Generator) -> None:
    x[rng.uniform(size=len(x)) < 0.1, 3] = np.nan
