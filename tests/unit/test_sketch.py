"""Sketches: where values fall, that addition is exact, and that nothing is lost in silence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raymlops.errors import DataError
from raymlops.sketch.histogram import CELLS, Bins, Sketch, pack_array, unpack_array


def test_quantile_cells_hold_equal_shares() -> None:
    x = np.random.default_rng(0).normal(size=(6400, 1)).astype(np.float32)
    sketch = Sketch.of(Bins.learn(x, ["a"]), x)
    inside = sketch.counts[0, 1 : CELLS + 1]
    assert sketch.counts[0, 0] == 0
    assert inside.sum() == 6400
    assert inside.min() >= 95
    assert inside.max() <= 105


def test_values_outside_the_reference_have_cells_of_their_own() -> None:
    bins = Bins.learn(np.linspace(0, 1, 500)[:, None], ["a"])
    sketch = Sketch.of(bins, np.array([[-5.0], [0.0], [1.0], [1.5], [9.0]]))
    last = len(bins.edges[0])
    assert sketch.counts[0, 0] == 1
    assert sketch.counts[0, last] == 2
    assert sketch.counts[0].sum() == 5


def test_a_constant_column_sees_a_rise_and_a_fall() -> None:
    bins = Bins.learn(np.full((200, 1), 3.0), ["a"])
    assert Sketch.of(bins, np.array([[2.0], [3.0], [4.0]])).counts[0].tolist() == [1, 1, 1]


def test_missing_and_infinite_are_counted_apart() -> None:
    bins = Bins.learn(np.zeros((100, 1)), ["a"])
    sketch = Sketch.of(bins, np.array([[np.nan], [np.inf], [-np.inf], [0.0]]))
    assert (sketch.missing[0], sketch.infinite[0], sketch.counts[0].sum(), sketch.rows) == (1, 2, 1, 4)


def test_categories_have_one_cell_a_code_and_one_for_the_rest() -> None:
    bins = Bins.learn(np.array([[0.0], [1.0], [2.0]]), ["c"], {0: 3})
    assert Sketch.of(bins, np.array([[0.0], [2.0], [2.0], [7.0]])).counts[0].tolist() == [0, 1, 0, 2, 1]


def test_a_column_without_values_in_the_reference_still_counts() -> None:
    bins = Bins.learn(np.full((50, 1), np.nan), ["a"])
    assert Sketch.of(bins, np.array([[-1.0], [5.0]])).counts[0].sum() == 2


def test_other_bins_do_not_add() -> None:
    one = Sketch.empty(Bins.learn(np.zeros((9, 1)), ["a"]))
    other = Sketch.empty(Bins.learn(np.ones((9, 1)), ["a"]))
    with pytest.raises(DataError, match="different bins cannot be added"):
        _ = one + other


def test_another_width_is_refused_not_cut() -> None:
    bins = Bins.learn(np.zeros((9, 2)), ["a", "b"])
    with pytest.raises(DataError, match=r"shape \(5, 3\) do not fit bins of 2 columns"):
        Sketch.of(bins, np.zeros((5, 3)))
    with pytest.raises(DataError, match="but 1 columns are named"):
        Bins.learn(np.zeros((9, 2)), ["a"])


def test_json_round_trip_is_bit_identical() -> None:
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    sketch = Sketch.of(Bins.learn(x, ["a", "b", "c"]), x)
    assert Sketch.from_dict(json.loads(json.dumps(sketch.to_dict()))) == sketch
    odd = np.array([np.nan, -0.0, np.inf, 1e-310])
    assert unpack_array(json.loads(json.dumps(pack_array(odd)))).tobytes() == odd.tobytes()
    assert unpack_array(pack_array(np.zeros((0, 4), dtype=np.float32))).shape == (0, 4)
