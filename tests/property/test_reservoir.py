"""Samples and sketches of partitions merge to what all rows at once give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymlops.errors import DataError
from raymlops.monitor.reservoir import Sample, sketch_batches
from raymlops.monitor.sketch import Bins, Sketch


def test_every_row_is_as_likely_to_stay() -> None:
    kept = np.zeros(300)
    for seed in range(2000):
        kept[Sample.of(np.arange(300.0)[:, None], 30, seed=seed).rows[:, 0].astype(int)] += 1
    assert kept.sum() == 60_000
    # Each is kept 200 times of 2,000 with a standard deviation of 13.4.
    assert abs(kept - 200).max() < 5 * 13.4
    assert abs(kept[:150].sum() - 30_000) < 600


def test_merged_partitions_are_a_uniform_sample_whatever_their_sizes() -> None:
    kept = np.zeros(300)
    values = np.arange(300.0)[:, None]
    for seed in range(2000):
        parts = [Sample.of(x, 30, seed=seed, part=i) for i, x in enumerate((values[:10], values[10:250], values[250:]))]
        merged = parts[0] + parts[1] + parts[2]
        assert (merged.seen, len(merged.rows)) == (300, 30)
        kept[merged.rows[:, 0].astype(int)] += 1
    assert abs(kept - 200).max() < 5 * 13.4


def test_merging_is_associative_and_keeps_the_order_of_keys() -> None:
    a, b, c = (Sample.of(np.random.default_rng(i).normal(size=(90, 2)), 20, seed=7, part=i) for i in range(3))
    one, other = (a + b) + c, a + (b + c)
    assert one.rows.tobytes() == other.rows.tobytes()
    assert one.rows.tobytes() == (c + (b + a)).rows.tobytes()
    assert (np.diff(one.keys) > 0).all()


def test_few_rows_are_all_kept_and_what_does_not_fit_is_refused() -> None:
    few = Sample.of(np.arange(5.0)[:, None], 20, seed=0)
    assert sorted(few.rows[:, 0]) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="size=0 cannot be used"):
        Sample.of(np.zeros((3, 1)), 0, seed=0)
    with pytest.raises(DataError, match="cannot be merged"):
        _ = few + Sample.of(np.zeros((3, 1)), 10, seed=0)


def test_partitions_of_a_frame_merge_to_the_same_bytes() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"b": rng.integers(0, 4, 5000), "a": rng.normal(size=5000), "note": "x"})
    frame.loc[::9, "a"] = np.nan
    x = frame[["a", "b"]].to_numpy(dtype=np.float32)
    bins = Bins.learn(x[:2000], ["a", "b"], {1: 4})
    whole = Sketch.of(bins, x)
    cuts = np.sort(rng.choice(5000, 6, replace=False))
    parts = [frame.iloc[index] for index in np.split(np.arange(5000), cuts)]
    merged = sketch_batches(bins, [pa.RecordBatch.from_pandas(part, preserve_index=False) for part in reversed(parts)])
    assert merged == whole
    assert merged.counts.tobytes() == whole.counts.tobytes()
    with pytest.raises(DataError, match="The partition has no column 'b'"):
        sketch_batches(bins, [pa.RecordBatch.from_pandas(frame[["a"]])])
