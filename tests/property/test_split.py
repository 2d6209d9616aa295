"""Splits never leak: no group on two sides, nothing older than what trained, no row lost, each stratum's share kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.data.split import Parts, SplitBy, by_group, by_stratum, by_time, by_time_and_group, column_of, split_rows
from raymlops.errors import ConfigError, DataError

SHARES = (0.15, 0.15)
SEEDS = st.integers(0, 2**32 - 1)


def sides(parts: Parts) -> list[np.ndarray]:
    return [parts.train, parts.validation, parts.test]


def whole(parts: Parts, rows: int) -> None:
    """Every row once, used or not."""
    assert sorted(np.concatenate([*sides(parts), parts.unused]).tolist()) == list(range(rows))


def follows(parts: Parts, times: np.ndarray, embargo: float = 0.0) -> None:
    for earlier, later in ((parts.train, parts.validation), (parts.train, parts.test), (parts.validation, parts.test)):
        if len(earlier) and len(later):
            newest, oldest = times[earlier].max(), times[later].min()
            assert newest < oldest - embargo if embargo else newest <= oldest


@given(st.integers(3, 300), st.floats(0, 50), st.one_of(st.none(), st.integers(1, 50)), SEEDS)
@settings(max_examples=80, deadline=None)
def test_by_time(rows: int, embargo: float, holdout: int | None, seed: int) -> None:
    times = np.sort(np.random.default_rng(seed).integers(0, 200, rows)).astype(float)
    parts = by_time(times, embargo_s=embargo, holdout_rows=holdout)
    whole(parts, rows)
    follows(parts, times, embargo)
    if not embargo:
        assert parts.order.tolist() == list(range(rows))
        assert not len(parts.unused)
    if holdout is not None:
        assert max(len(parts.validation), len(parts.test)) <= holdout


@given(st.integers(3, 300), st.integers(1, 60), SEEDS)
@settings(max_examples=80, deadline=None)
def test_by_group(rows: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = pd.Series(rng.integers(0, groups, rows)).map("customer {}".format)
    parts = by_group(keys)
    whole(parts, rows)
    assert not len(parts.unused)
    found = [set(keys.iloc[side]) for side in sides(parts)]
    assert not (found[0] & found[1])
    assert not (found[0] & found[2])
    assert not (found[1] & found[2])
    # More rows, in any order, move no group.
    more = pd.concat([pd.Series(["somebody new"] * 5), keys.sample(frac=1, random_state=seed)], ignore_index=True)
    again = [set(more.iloc[side]) for side in sides(by_group(more))]
    assert all(one <= other for one, other in zip(found, again, strict=True))


@given(st.integers(3, 300), st.integers(1, 60), st.floats(0, 30), SEEDS)
@settings(max_examples=80, deadline=None)
def test_by_time_and_group(rows: int, groups: int, embargo: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times, keys = np.sort(rng.uniform(0, 200, rows)), pd.Series(rng.integers(0, groups, rows))
    parts = by_time_and_group(times, keys, embargo_s=embargo)
    whole(parts, rows)
    follows(parts, times, embargo)
    found = [set(keys.iloc[side]) for side in sides(parts)]
    assert not (found[0] & found[1])
    assert not (found[0] & found[2])
    assert not (found[1] & found[2])


@given(st.integers(3, 400), st.integers(1, 8), st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 9))
@settings(max_examples=120, deadline=None)
def test_by_stratum(rows: int, kinds: int, holdout: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    strata = (rng.random(rows) ** 3 * kinds).astype(int)
    parts = by_stratum(strata, holdout_rows=holdout, seed=seed)
    whole(parts, rows)
    assert not len(parts.unused)
    assert min(map(len, sides(parts))) >= 1
    if holdout is not None:
        assert max(len(parts.validation), len(parts.test)) <= holdout
    wanted = [len(side) / rows for side in sides(parts)]
    if min(wanted) * rows < 2 * kinds:
        return  # fewer rows in a part than strata: each stratum cannot have its row there
    for kind in np.unique(strata):
        for side, share in zip(sides(parts), (0.7, 0.15, 0.15) if holdout is None else wanted, strict=True):
            # Within a row of its share; half a row more for the rounding of the parts themselves.
            assert abs((strata[side] == kind).sum() - share * (strata == kind).sum()) <= 1.5 + kinds * (
                holdout is not None
            )


def test_singletons_do_not_all_fall_on_one_side() -> None:
    strata = np.r_[np.arange(100), np.full(100, 100)]
    parts = by_stratum(strata)
    assert 13 <= (strata[parts.test] == 100).sum() <= 17
    assert len(parts.test) == 30


def test_parts_that_cannot_be() -> None:
    with pytest.raises(DataError, match="2 rows cannot be split into train, validation and test"):
        split_rows(2, SplitBy())
    with pytest.raises(DataError, match="holdout_rows=0"):
        split_rows(100, SplitBy(), holdout_rows=0)
    one = split_rows(50, SplitBy(group="who"), keys=pd.Series(["a"] * 50))
    with pytest.raises(DataError, match=r"The split leaves no rows for .*too few rows, groups or times"):
        one.counts()
    frame = pd.DataFrame({"customer": ["a", None, "b"]})
    with pytest.raises(
        DataError, match=r"no group column 'custmer', which SplitBy\(group=\) names. Did you mean 'customer'"
    ):
        column_of(frame, "group", "custmer")
    with pytest.raises(DataError, match="The group column 'customer' is missing in 1 of 3 rows"):
        column_of(frame, "group", "customer")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"test": 0}, r"SplitBy\(test=0\) is no share"),
        ({"validation": 0.6, "test": 0.5}, "leave nothing to train on"),
        ({"group": ""}, r"SplitBy\(group=''\) is not a column name"),
        ({"group": "a", "stratify": "b"}, "groups stay whole, so strata cannot be kept"),
        ({"embargo": "soon"}, "embargo='soon' is not a duration"),
    ],
)
def test_specs_that_cannot_be(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SplitBy(**given)
