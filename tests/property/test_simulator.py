"""A year of drift storms through the real controller: cooldown, budget, back-off and the call for a person hold."""

from __future__ import annotations

from itertools import pairwise

import pytest

from raymlops.loop.state import Monitoring
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.triage import Diagnosis
from raymlops.retrain import RetrainPolicy
from raymlops.testing.simulator import Simulator, Story, World

DAY, HOUR = 86_400.0, 3600.0
POLICY = RetrainPolicy(cooldown="1h", max_per_day=4, give_up_after=5)


def hold(story: Story, policy: RetrainPolicy, least_gap: float = HOUR) -> None:
    """What must hold in every world; a probe is cheap, but not free."""
    assert len(story.probes) <= 80 + 12 * len(story.starts)
    assert story.down_ticks == 0
    assert story.most_in_flight <= 1
    assert story.most_in(DAY) <= policy.max_per_day
    assert all(gap >= least_gap for gap in story.gaps)


def test_a_quiet_year_retrains_nothing() -> None:
    story = Simulator(POLICY, World()).run(365)
    hold(story, POLICY)
    assert (story.starts, story.windows) == ([], 365 * 24)


def test_a_change_that_retraining_answers_costs_one_retraining() -> None:
    change = 100 * DAY
    world = World(harm=lambda at, trained_at: at >= change > trained_at)
    story = Simulator(POLICY, world).run(365)
    hold(story, POLICY)
    assert len(story.starts) == story.count("promoted") == 1
    assert change <= story.starts[0] <= change + 2 * HOUR
    assert story.harmful_windows <= 4


def test_a_permanent_shift_that_nothing_answers_backs_off_then_asks_a_person_and_serves_on() -> None:
    world = World(harm=lambda at, _: at >= 10 * DAY, ending=lambda _turn, _at: "refused")
    story = Simulator(POLICY, world).run(365)
    hold(story, POLICY)
    assert len(story.starts) == POLICY.give_up_after
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(story.gaps))
    assert story.count("needs_person") == 1
    assert story.state is not None
    assert isinstance(story.state.phase, Monitoring)
    assert story.state.champion == 1
    assert story.state.retrain.needs_person is not None
    asked = [body["evidence"] for kind, _, body in story.events if kind == "retrain_started"]
    assert len({each["episode"] for each in asked}) == POLICY.give_up_after
    assert [each["after_episode"] for each in asked] == [None, *[each["episode"] for each in asked[:-1]]]


def test_a_person_lets_it_try_again() -> None:
    world = World(harm=lambda at, _: at >= 10 * DAY, ending=lambda _turn, _at: "failed")
    story = Simulator(POLICY, world, person=lambda at: at % (30 * DAY) < HOUR).run(100)
    hold(story, POLICY)
    assert story.count("needs_person") == 4
    assert len(story.starts) == 4 * POLICY.give_up_after


@pytest.mark.parametrize("half_period_h", [1, 5, 30])
def test_an_oscillating_shift_stays_within_the_budget(half_period_h: int) -> None:
    def phase(at: float) -> int:
        return int(at // (half_period_h * HOUR)) % 2

    story = Simulator(POLICY, World(harm=lambda at, trained_at: phase(at) != phase(trained_at))).run(180)
    hold(story, POLICY)
    assert len(story.starts) - story.count("promoted") in (0, 1)  # the last may still be under way
    # A shift that is over before a probe has looked at it is nothing that a refit answers: a person is told.
    assert len(story.starts) > 100 or story.count("needs_person") == 1


def test_an_alarm_on_every_window_with_candidates_that_pass_stays_within_the_budget() -> None:
    story = Simulator(POLICY, World(harm=lambda _at, _trained: True, window_s="10m", train_s="10m")).run(180)
    hold(story, POLICY)
    assert len(story.starts) >= 4 * 177
    story = Simulator(POLICY, World(harm=lambda _at, _trained: True)).run(1)
    assert len(story.starts) == POLICY.max_per_day


def test_a_canary_that_always_fails_is_a_fruitless_retraining() -> None:
    story = Simulator(POLICY, World(harm=lambda _at, _trained: True, canary_fails=lambda _version: True)).run(60)
    hold(story, POLICY)
    assert len(story.starts) == story.count("rolled_back") == POLICY.give_up_after
    assert story.count("needs_person") == 1


def test_harm_that_no_refit_would_lower_trains_nothing_and_calls_a_person() -> None:
    world = World(harm=lambda at, _: at >= 10 * DAY, excess=lambda _at, _trained: 0.0)
    story = Simulator(POLICY, world).run(365)
    hold(story, POLICY)
    assert (len(story.starts), story.count("needs_person")) == (0, 1)
    body = next(body for kind, _, body in story.events if kind == "needs_person")
    assert body["reason"].startswith("the loss is too high and 5 refits in a row would not lower it")


def test_a_probe_that_gives_no_answer_does_not_hold_an_alarm_back() -> None:
    world = World(harm=lambda at, trained_at: at >= DAY > trained_at, probe_fails=lambda _number: True)
    story = Simulator(POLICY, world).run(30)
    hold(story, POLICY)
    assert story.count("probe_failed") == len(story.probes)
    assert len(story.starts) == 1


@pytest.mark.parametrize("doubled_after_d", [60, 240])
def test_slow_ageing_is_answered_at_the_pace_that_costs_least(doubled_after_d: int) -> None:
    """The best period of an excess that grows by ``rate`` a row is sqrt(2 * cost / rate); more often would waste refits."""
    rows_a_day = 24 * 100
    world = World(
        labels_per_window=100, excess=lambda at, trained_at: (at - trained_at) / (doubled_after_d * DAY), train_s="10m"
    )
    policy = RetrainPolicy(refit_cost=1000.0)
    story = Simulator(policy, world).run(365)
    hold(story, policy)
    best_d = (2 * 1000 * doubled_after_d / rows_a_day) ** 0.5
    assert {body["reason"].split(":")[0] for kind, _, body in story.events if kind == "retrain_started"} == {"cost"}
    assert story.count("needs_person") == 0
    assert sum(story.gaps) / len(story.gaps) / DAY == pytest.approx(best_d, rel=0.25)


def test_broken_data_and_a_burning_budget_start_nothing_until_they_are_over() -> None:
    broken = Diagnosis(kind="broken_data", note="price is missing")
    world = World(
        harm=lambda at, trained_at: at >= DAY > trained_at,
        diagnosis=lambda at: broken if at < 20 * DAY else None,
        burning=lambda at: "" if at >= 30 * DAY else "14 times too fast",
    )
    story = Simulator(POLICY, world).run(60)
    hold(story, POLICY)
    assert len(story.starts) == 1
    assert 30 * DAY <= story.starts[0] <= 30 * DAY + 2 * HOUR


def test_calendar_and_forecast_are_kept_in_a_healthy_year_and_call_nobody() -> None:
    policy = RetrainPolicy(schedule="0 3 * * mon")
    refuses = World(ending=lambda _turn, _at: "refused")
    story = Simulator(policy, refuses).run(364)
    hold(story, policy)
    assert len(story.starts) == 52
    assert story.count("needs_person") == 0
    due = Forecast(due_s=30 * DAY, low_s=None, high_s=None, lives=4, censored=0, method="ageing", note="aged")
    story = Simulator(RetrainPolicy(on_forecast=True), World(forecast=due)).run(364)
    assert story.count("promoted") == 12
