"""What must hold for every bet and every grid of cells."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from raymlops.monitor.persistent import project
from raymlops.sketch.cells import CellGrid

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    edges=npst.arrays(np.float32, st.integers(1, 70), elements=FLOATS, unique=True),
    values=npst.arrays(np.float32, st.integers(0, 60), elements=FLOATS),
    nudge=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_constant_time_cells_are_those_of_a_binary_search(
    edges: NDArray[np.float32], values: NDArray[np.float32], nudge: bool
) -> None:
    borders = np.sort(edges).astype(np.float64)
    if nudge:  # borders that no float32 meets, as the one above a column's maximum
        borders = np.nextafter(borders, np.inf)
    both = np.concatenate((values, edges, np.nextafter(edges, np.float32(0))))
    expected = np.searchsorted(borders, both.astype(np.float64), side="right")
    grid = CellGrid.build(borders)
    assert (grid.locate(both) == expected).all()
    assert (grid.locate(both.astype(np.float64)) == expected).all()


@given(center=st.floats(-1e6, 1e6), spread=st.floats(1e-3, 1e6), seed=st.integers(0, 10_000), heavy=st.booleans())
@settings(max_examples=100, deadline=None)
def test_cells_of_whole_columns_too(center: float, spread: float, seed: int, heavy: bool) -> None:
    rng = np.random.default_rng(seed)
    draw = np.exp(3 * rng.normal(size=500)) if heavy else rng.normal(size=500)
    column = (center + spread * draw).astype(np.float32)
    borders = np.unique(np.quantile(column, np.linspace(0, 1, 65)).astype(np.float64))
    assert (
        CellGrid.build(borders).locate(column) == np.searchsorted(borders, column.astype(np.float64), "right")
    ).all()


@given(seed=st.integers(0, 100_000), cells=st.integers(2, 12), width=st.floats(0.001, 0.5))
@settings(max_examples=200, deadline=None)
def test_no_distribution_in_the_band_wins_a_bet_on_average(seed: int, cells: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    center, guess = rng.dirichlet(np.ones(cells)), rng.dirichlet(np.full(cells, 0.5))[None]
    low, high = np.clip(center - width, 0, 1), np.clip(center + width, 0, 1)
    null = project(guess, low[None], high[None])
    assert abs(null.sum() - 1) < 1e-9
    e = np.where(guess > 0, guess / null, 0.0)[0]
    # The corner of the band that likes the guess best: as much as allowed where e is largest.
    worst, order = low.copy(), np.argsort(-e)
    for i in order:
        worst[i] += min(high[i] - low[i], 1 - worst.sum())
    assert (worst * e).sum() <= 1 + 1e-9
    assert (center * e).sum() <= 1 + 1e-9
