"""What must hold for every window, every sketch and every history of retrainings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.report import DriftReport
from raymlops.retrain import Retrain, RetrainPolicy, RetrainState, decide_retrain
from raymlops.sketch.histogram import Bins, Sketch

REFERENCE = np.column_stack(
    (np.random.default_rng(0).normal(size=500), np.random.default_rng(1).integers(0, 4, 500), np.full(500, 2.0))
).astype(np.float32)
TESTS = ColumnTests(REFERENCE, ["number", "category", "constant"], categories={1: 4})
BINS = Bins.learn(REFERENCE, ["number", "category", "constant"], {1: 4})
HARM = DriftReport(
    window=1, rows=1, from_at=0.0, to_at=0.0, severity=4, may_retrain=True, reference_loss=0.1, loss_limit=0.1
)


def windows(least: int = 0) -> st.SearchStrategy[NDArray[np.float32]]:
    values = st.floats(width=32, allow_nan=True, allow_infinity=True)
    return npst.arrays(np.float32, st.tuples(st.integers(least, 40), st.just(3)), elements=values)


@given(window=windows(1), copies=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_statistics_do_not_depend_on_row_order(window: NDArray[np.float32], copies: int, seed: int) -> None:
    rows = np.repeat(window, copies, axis=0)
    shuffled = np.random.default_rng(seed).permutation(rows)
    found = TESTS.detect(rows, 1e-3)
    assert repr(found) == repr(TESTS.detect(shuffled, 1e-3))
    for item in found:
        assert 0.0 <= item.p_value <= 1.0
        assert 0.0 <= item.distance <= 1.0 + 1e-9


@given(a=windows(), b=windows(), c=windows())
@settings(max_examples=100, deadline=None)
def test_sketches_merge_in_any_order_and_equal_the_sketch_of_all_rows(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> None:
    one, two, three = (Sketch.of(BINS, x) for x in (a, b, c))
    assert (one + two) + three == one + (two + three)
    assert one + two == two + one
    assert one + Sketch.empty(BINS) == one
    whole = Sketch.of(BINS, np.concatenate((a, b, c)))
    assert one + two + three == whole
    counted = whole.counts.sum(axis=1) + whole.missing + whole.infinite
    assert (counted == whole.rows).all()


@given(
    cooldown=st.floats(0, 5000),
    per_day=st.integers(1, 6),
    give_up=st.integers(1, 4),
    every=st.one_of(st.none(), st.floats(1, 90_000)),
    looks=st.lists(
        st.tuples(
            st.floats(0, 30_000), st.booleans(), st.integers(0, 300), st.sampled_from(["promoted", "refused", "failed"])
        ),
        max_size=60,
    ),
)
@settings(max_examples=300, deadline=None)
def test_never_twice_in_a_cooldown_nor_more_than_the_days_budget(
    cooldown: float,
    per_day: int,
    give_up: int,
    every: float | None,
    looks: list[tuple[float, bool, int, str]],
) -> None:
    policy = RetrainPolicy(cooldown=cooldown, max_per_day=per_day, give_up_after=give_up, every=every, min_labels=100)
    state, now, starts = RetrainState().trained(0.0), 0.0, list[float]()
    for pause, harm, labelled, outcome in looks:
        now += pause
        report = HARM if harm else replace(HARM, severity=0, may_retrain=False)
        if isinstance(decide_retrain(policy, state, report, labelled, now), Retrain):
            assert labelled >= 100
            starts.append(now)
            state = state.started(now)
            assert not isinstance(decide_retrain(policy, state, HARM, 300, now), Retrain)
            state = state.finished(outcome, now)
    assert all(later >= earlier + cooldown for earlier, later in pairwise(starts))
    for start in starts:
        assert sum(start <= other < start + 86_400.0 for other in starts) <= per_day
