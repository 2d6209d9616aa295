"""Observations add up: in any grouping, over any gateways, with any sample, the counts are those of all rows at once."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.sketch.histogram import Sketch
from raymlops.sketch.observed import MOST_FAR, WHOLE, Observed, keys_of
from raymlops.sketch.profile import Profile, with_score

RNG = np.random.default_rng(0)
X = np.column_stack((RNG.normal(size=(2000, 2)), RNG.integers(0, 3, 2000))).astype(np.float32)
PROFILE = Profile.learn(X, X[:, 1], ("a", "b", "job"), {2: 3})
BINS = PROFILE.bins
LIVE = np.column_stack((RNG.normal(size=(900, 2)) * 1.3, RNG.integers(-1, 4, 900))).astype(np.float32)
LIVE[::13, 0] = np.nan
LIVE[::101, 1] = np.inf
LIVE = with_score(LIVE, LIVE[:, 0])
CUTS = st.lists(st.integers(0, 900), max_size=12)


def told(rows: NDArray[np.intp], first: int, start: int, limit: int | None) -> Observed:
    """What a gateway says of some rows, the first of them the ``first``-th it counted."""
    return Observed.of(
        BINS, LIVE[rows], rows.astype(float), keys_of(first, len(rows), start), [f"r{i}" for i in rows], limit=limit
    )


@given(cuts=CUTS, gateways=st.integers(1, 4), limit=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_any_batches_of_any_gateways_in_any_order_give_the_counts_of_all_rows(
    cuts: list[int], gateways: int, limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    counted, batches = [0] * gateways, []
    for rows in np.split(np.arange(900), sorted(cuts)):
        gateway = int(rng.integers(gateways))
        batches.append(told(rows, counted[gateway], gateway * 2**61 + seed, limit))
        counted[gateway] += len(rows)
    orders = (batches, [batches[i] for i in rng.permutation(len(batches))])
    found = [sum(order, Observed.empty(BINS)).limit(limit) for order in orders]
    merged_early = Observed.empty(BINS)
    for batch in orders[1]:
        merged_early = (merged_early + batch).limit(limit)
    for one in (*found, merged_early):
        assert one.sketch == Sketch.of(BINS, LIVE)
        assert (one.from_at, one.to_at) == (0.0, 899.0)
        assert len(one.sample) <= limit
        assert set(one.sample.ids) == set(found[0].sample.ids)
        assert one.far.ids == found[0].far.ids
        assert Observed.from_dict(json.loads(json.dumps(one.to_dict()))).to_dict() == one.to_dict()
        kept = [int(name[1:]) for name in one.sample.ids]
        np.testing.assert_array_equal(one.sample.x, LIVE[kept])
        assert one.sample.at.tolist() == kept


@given(
    first=st.integers(0, 2**63), start=st.integers(0, 2**64 - 1), rows=st.integers(50, 5000), share=st.floats(0.01, 0.9)
)
@settings(max_examples=60, deadline=None)
def test_a_sample_is_spread_evenly_over_the_traffic(first: int, start: int, rows: int, share: float) -> None:
    limit = max(int(rows * share), 2)
    x = np.zeros((rows, len(BINS.columns)), dtype=np.float32)
    kept = Observed.of(BINS, x, np.arange(rows), keys_of(first, rows, start), limit=limit).sample.at
    assert len(kept) == limit
    gaps = {int(b - a) for a, b in pairwise(kept)}
    assert len(gaps) <= 3
    # No stretch of the traffic is left out: the golden ratio's longest gap is below three times the mean one.
    assert max(gaps | {int(kept[0]) + 1, int(rows - kept[-1])}) <= 3 * rows / limit + 1


def test_a_quiet_gateway_weighs_by_what_it_served() -> None:
    busy, quiet = told(np.arange(800), 0, 5, 80), told(np.arange(800, 900), 0, 2**63 + 11, 80)
    both = (busy + quiet).limit(90)
    assert not both.whole
    of_quiet = int((both.sample.at >= 800).sum())
    assert len(both.sample) / 10 <= 10
    assert of_quiet == pytest.approx(len(both.sample) / 9, abs=2)


def test_far_rows_are_kept_whatever_the_sample_holds() -> None:
    x = np.zeros((5000, 4), dtype=np.float32)
    x[4000, 0], x[4001, 1], x[4002, 2] = 50.0, -np.inf, 7.0
    x[10:60, 0] = X[:, 0].max() + 0.01
    x[4003] = np.nan
    seen = Observed.of(BINS, x, 0.0, keys_of(0, 5000), [str(i) for i in range(5000)], limit=10)
    assert len(seen.far) == MOST_FAR
    assert set(seen.far.ids[:3]) == {"4000", "4001", "4002"}
    assert "4003" not in seen.far.ids
    assert (np.diff(seen.far_by) <= 0).all()


@given(size=st.integers(1, 899))
@settings(max_examples=30, deadline=None)
def test_a_whole_observation_is_parted_like_its_rows(size: int) -> None:
    whole = told(np.arange(900), 0, 3, None)
    head, others = whole.split(BINS, size)
    assert head.sketch == Sketch.of(BINS, LIVE[:size])
    assert others.sketch == Sketch.of(BINS, LIVE[size:])
    assert (head.to_at, others.from_at) == (size - 1.0, float(size))
    assert set(head.far.ids) | set(others.far.ids) == set(whole.far.ids)
    assert not set(head.far.ids) & set(others.far.ids)
    assert (head + others).sketch == whole.sketch


def test_what_cannot_be_done_is_refused() -> None:
    some = told(np.arange(900), 0, 3, 20)
    with pytest.raises(DataError, match=r"Of 900 rows 20 are kept: they cannot be parted"):
        some.split(BINS, 100)
    other = Profile.learn(X[:500], X[:500, 1], ("a", "b", "job"), {2: 3})
    with pytest.raises(DataError, match="over different bins"):
        _ = some + Observed.empty(other.bins)
    assert told(np.arange(900), 0, 3, 900).cut == WHOLE
    with pytest.raises(DataError, match=r"do not fit scores of shape \(3,\)"):
        Profile.learn(X, np.zeros(3), ("a", "b", "job"))


def test_a_profile_survives_its_file_to_the_byte() -> None:
    again = Profile.from_bytes(PROFILE.to_bytes())
    assert again.bins.digest == BINS.digest
    assert again.sketch == PROFILE.sketch
    assert Sketch.of(again.bins, LIVE) == Sketch.of(BINS, LIVE)
