"""A period's counts do not hang on how its chunks were shared out, nor on the order in which parts came back."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.sketch.period import CHUNK, PeriodPart, PeriodPlan, counted

CHUNKS = 6


@cache
def made() -> tuple[PeriodPlan, tuple[PeriodPart, ...], bytes]:
    rng = np.random.default_rng(9)
    x = np.column_stack((rng.normal(size=(5 * CHUNK + 777, 2)), rng.integers(0, 5, 5 * CHUNK + 777))).astype(np.float32)
    x[::11, 1], x[7, 0] = np.nan, np.inf
    plan = PeriodPlan.learn(x[:: len(x) // 500], ("a", "b", "c"), {2: 5})
    parts = tuple(plan.count(k, x[k * CHUNK : (k + 1) * CHUNK]) for k in range(CHUNKS))
    return plan, parts, plan.profile(counted(parts), ordered=True).to_bytes()


@settings(deadline=None)
@given(order=st.permutations(range(CHUNKS)), cuts=st.sets(st.integers(1, CHUNKS - 1)), travelled=st.booleans())
def test_any_partition_in_any_order_gives_the_same_bits(order: list[int], cuts: set[int], travelled: bool) -> None:
    plan, parts, expected = made()
    bounds = [0, *sorted(cuts), CHUNKS]
    shares = [counted(parts[k] for k in order[a:b]) for a, b in pairwise(bounds)]
    if travelled:
        shares = [PeriodPart.from_bytes(share.to_bytes()) for share in shares]
    assert plan.profile(counted(shares), ordered=True).to_bytes() == expected
