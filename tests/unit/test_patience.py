from __future__ import annotations

import pytest

from raymlops.serving.patience import DOUBTED_S, LEAST_S, Patience


def used_to(took_s: float, answers: int = 20) -> Patience:
    patience = Patience(3.0)
    for _ in range(answers):
        patience.answered(took_s)
    return patience


def test_before_anything_is_usual_the_whole_limit_is_waited_for() -> None:
    patience = used_to(0.01, answers=4)
    assert patience.limit_s(1) == 3.0
    patience.answered(0.01)
    assert patience.limit_s(1) == LEAST_S


@pytest.mark.parametrize(("took_s", "limit_s"), [(0.01, 0.25), (0.1, 0.5), (2.0, 3.0)])
def test_then_five_times_the_usual_longest(took_s: float, limit_s: float) -> None:
    assert used_to(took_s).limit_s(1) == pytest.approx(limit_s)


def test_many_rows_may_take_longer() -> None:
    patience = used_to(0.01)
    assert patience.limit_s(64) == LEAST_S
    assert patience.limit_s(256) == pytest.approx(4 * LEAST_S)
    assert patience.limit_s(10_000) == 3.0


def test_while_nothing_is_heard_callers_hardly_wait() -> None:
    patience = used_to(0.01)
    patience.silent()
    assert patience.limit_s(1) == DOUBTED_S
    patience.answered(0.01)
    assert patience.limit_s(1) == LEAST_S


def test_a_doubted_version_still_gets_what_it_usually_takes() -> None:
    patience = used_to(0.4)
    patience.silent()
    assert patience.limit_s(1) == pytest.approx(0.4)


def test_a_version_that_became_slower_is_given_more_time() -> None:
    patience = used_to(0.01, answers=100)
    for _ in range(25):
        patience.answered(0.2)
    assert patience.limit_s(1) == pytest.approx(1.0)


def test_one_that_was_silent_from_the_start_costs_a_quarter_second_from_the_second_time_on() -> None:
    patience = Patience(3.0)
    assert patience.limit_s(1) == 3.0
    patience.silent()
    assert patience.limit_s(1) == LEAST_S
    patience.answered(0.01)
    assert patience.limit_s(1) == 3.0
