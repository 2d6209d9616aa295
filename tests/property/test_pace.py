"""The pace of retrainings: the cost rule finds the period of least cost, whatever the units, and never runs away."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlops.monitor.pace import Pace, renewed
from raymlops.search.probe import Probe


def found(excess: float, rows: int, *, usual: float = 0.2, error: float = 0.0) -> Probe:
    return Probe(
        gain=excess * usual, standard_error=error * usual, gains=excess + 2 * error > 0, rows=rows, note="", loss=usual
    )


def life(rate: float, cost: float, *, first: int = 200, least: float = 0.0, usual: float = 0.2) -> tuple[int, int]:
    """Age at which a champion whose excess grows by ``rate`` a row is replaced, and how many probes that took."""
    pace, age, probes = Pace(), first, 0
    while probes < 500:
        compared = max(age // 5, 10)
        # The champion was on average half of the compared rows younger, the refit half of them old.
        pace = pace.probed(found(rate * (age - compared), compared, usual=usual), age, cost, least=least)
        probes += 1
        if pace.ready:
            return age, probes
        age = max(pace.next_rows, age + 1)
    raise AssertionError("it never ended")


@given(st.floats(1e-6, 1e-3), st.floats(1.0, 1000.0), st.sampled_from([1e-6, 0.2, 300.0]))
def test_a_champion_is_replaced_about_when_it_is_cheapest_whatever_the_loss_is_measured_in(
    rate: float, cost: float, usual: float
) -> None:
    best = math.sqrt(2 * cost / rate)
    age, probes = life(rate, cost, first=100, usual=usual)
    assert max(best, 100) * 0.999 <= age <= max(best * 1.15 + 2, 101)
    # A quarter more each time up to the age, then closing in.
    assert probes <= 3 + math.log(max(age / 100, 1), 1.25) + 8


@given(st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.integers(100, 10**6), st.floats(1, 1000))
def test_the_next_probe_is_later_and_at_most_a_quarter(excess: float, error: float, rows: int, cost: float) -> None:
    pace = Pace().probed(found(excess, rows // 5, error=error), rows, cost)
    assert 1.12 * rows <= pace.next_rows <= 1.25 * rows + 1
    low, middle, high = pace.due()
    known = [item for item in (low, middle, high) if item is not None]
    assert known == sorted(known)
    assert Pace.from_dict(json.loads(json.dumps(pace.to_dict()))) == pace


def test_hard_times_that_are_hard_for_a_fresh_model_too_are_no_excess() -> None:
    """A champion that loses twice what it promised, and a refit just as much."""
    pace = Pace().probed(found(0.0, 200, usual=0.4), 1000, 60.0)
    assert (pace.lost, pace.ready, pace.due()) == (0.0, False, (None, None, None))


def test_an_excess_that_is_over_is_not_added_up_for_ever() -> None:
    pace = Pace().probed(found(0.10, 200), 1000, 100.0).probed(found(-0.30, 200), 1500, 100.0)
    assert pace.lost < 30.0
    pace = pace.probed(found(-0.30, 200), 2000, 100.0)
    assert pace.lost == 0.0


@pytest.mark.parametrize(("promoted", "next_rows"), [(True, 333), (False, 1000)])
def test_the_successor_is_looked_at_sooner_than_its_predecessor_lasted(promoted: bool, next_rows: int) -> None:
    assert renewed(Pace().probed(found(0.1, 200), 1000, 60.0), promoted) == Pace(next_rows=next_rows)


def test_a_probe_that_failed_is_asked_for_again_at_twice_the_age() -> None:
    pace = Pace().probed(None, 700, 60.0)
    assert (pace.newest, pace.ready, pace.next_rows) == (None, False, 1400)
