"""When fits on all rows are spread over workers, and over how many."""

from __future__ import annotations

from typing import Any

import pytest

from raymlops.errors import ConfigError
from raymlops.search import candidates
from raymlops.search.schedule import ladder
from raymlops.search.selection import Search, spreads
from raymlops.search.spread import Spread, fit_bytes, plan_spread

GIVEN: dict[str, Any] = {"rows": 10_000_000, "columns": 100, "classes": 2, "workers": 8, "able": True}


def test_rows_that_fit_one_worker_are_not_spread() -> None:
    assert fit_bytes(10_000_000, 100, 2) == pytest.approx(6.3e9, rel=0.01)
    assert plan_spread("auto", **GIVEN, worker_bytes=16e9) is None
    assert plan_spread(False, **GIVEN, worker_bytes=1e9) is None


def test_rows_that_do_not_are_spread_over_as_many_workers_as_hold_them() -> None:
    assert plan_spread("auto", **GIVEN, worker_bytes=3e9) == Spread(workers=4, share=pytest.approx(1 / 3, rel=0.01))
    # Trials climb to what one worker holds, and that is their full size.
    assert ladder(10_000_000, 1 / 3)[-1] == 1 / 3
    assert plan_spread("auto", **{**GIVEN, "workers": 2}, worker_bytes=3e9) == Spread(
        workers=2, share=pytest.approx(1 / 3, rel=0.01)
    )
    # Nothing could be done: as before.
    assert plan_spread("auto", **{**GIVEN, "workers": 1}, worker_bytes=3e9) is None
    assert plan_spread("auto", **{**GIVEN, "able": False}, worker_bytes=3e9) is None


def test_what_is_asked_for_is_done_or_refused() -> None:
    assert plan_spread(True, **GIVEN, worker_bytes=1e12) == Spread(workers=2, share=1.0)
    with pytest.raises(ConfigError, match=r"none of the candidates is candidates\.xgboost\(\)"):
        plan_spread(True, **{**GIVEN, "able": False}, worker_bytes=1e12)
    with pytest.raises(ConfigError, match="needs CPUs for two workers, and the cluster has 1"):
        plan_spread(True, **{**GIVEN, "workers": 1}, worker_bytes=1e12)
    with pytest.raises(ConfigError, match="distributed='yes': give 'auto'"):
        Search(distributed="yes")


def test_families_of_xgboost_can_be_spread() -> None:
    settled = candidates.settled(candidates.xgboost(name="mine"), {"rounds": 3})
    assert [spreads(family) for family in (candidates.xgboost(), settled, candidates.linear())] == [True, True, False]
