"""When to train again, and the sentences of refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raymlops.errors import ConfigError
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.pace import Pace
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis, Kind
from raymlops.retrain import AskPerson, ProbeFirst, Retrain, RetrainPolicy, RetrainState, Wait, decide_retrain
from raymlops.retrain_state import Probing
from raymlops.search.probe import Probe

POLICY = RetrainPolicy(cooldown=60.0, max_per_day=2, min_labels=100, give_up_after=3, probe=False)
HARM = DriftReport(
    window=7,
    rows=1000,
    from_at=0.0,
    to_at=1.0,
    severity=4,
    harm=True,
    may_retrain=True,
    loss=0.3,
    reference_loss=0.1,
    loss_limit=0.12,
    note="Measured harm.",
)
DRIFT = replace(HARM, severity=3, harm=False, confirmed=2, note="Moved: (score) (0.40).")


def ended(*turns: tuple[float, str]) -> RetrainState:
    state = RetrainState()
    for at, outcome in turns:
        state = state.started(at).finished(outcome, at + 1)
    return state


def test_harm_and_confirmed_drift_retrain() -> None:
    decision = decide_retrain(POLICY, RetrainState(), HARM, 500, 100.0)
    assert isinstance(decision, Retrain)
    assert (decision.trigger, decision.reason) == ("harm", "Measured harm.")
    assert decision.evidence["labelled_rows"] == 500
    assert decision.evidence["loss_limit"] == 0.12
    json.dumps(decision.evidence)
    decision = decide_retrain(POLICY, RetrainState(), DRIFT, 500, 100.0)
    assert isinstance(decision, Retrain)
    assert decision.trigger == "drift"
    assert "moved in 2 windows running" in decision.reason


@pytest.mark.parametrize("report", [None, replace(HARM, severity=2, harm=False, may_retrain=False)])
def test_nothing_asks_for_it(report: DriftReport | None) -> None:
    assert decide_retrain(POLICY, RetrainState(), report, 500, 0.0) == Wait(until=None, reason="nothing asks for it")


def test_triggers_can_be_switched_off() -> None:
    assert isinstance(decide_retrain(replace(POLICY, on_harm=False), RetrainState(), HARM, 500, 0.0), Wait)
    assert isinstance(decide_retrain(replace(POLICY, on_drift=False), RetrainState(), DRIFT, 500, 0.0), Wait)


def test_age_retrains_when_due() -> None:
    policy, state = replace(POLICY, every="1h"), RetrainState().trained(1000.0)
    assert decide_retrain(policy, state, None, 500, 4599.0) == Wait(
        until=4600.0, reason="nothing asks for it before the champion is due"
    )
    decision = decide_retrain(policy, state, None, 500, 4600.0)
    assert isinstance(decision, Retrain)
    assert (decision.trigger, decision.reason) == ("age", "the champion is 3600 s old")


def test_labels_a_running_job_and_the_cooldown_hold_it_back() -> None:
    assert decide_retrain(POLICY, RetrainState(), HARM, 99, 0.0) == Wait(
        until=None, reason="99 labelled rows, 100 needed"
    )
    assert decide_retrain(POLICY, RetrainState().started(0.0), HARM, 500, 1e6) == Wait(
        until=None, reason="a retraining is under way"
    )
    state = ended((100.0, "promoted"))
    assert decide_retrain(POLICY, state, HARM, 500, 159.0) == Wait(until=160.0, reason="cooldown")
    assert isinstance(decide_retrain(POLICY, state, HARM, 500, 160.0), Retrain)


def test_the_days_budget_holds_it_back() -> None:
    state = ended((0.0, "promoted"), (1000.0, "promoted"))
    decision = decide_retrain(POLICY, state, HARM, 500, 2000.0)
    assert decision == Wait(until=86400.0, reason="2 retrainings in 24 hours, 2 allowed")
    assert isinstance(decide_retrain(POLICY, state, HARM, 500, 86400.0), Retrain)


def test_after_fruitless_retrainings_a_person_is_asked_and_nothing_starts_until_then() -> None:
    policy = replace(POLICY, max_per_day=50)
    state = ended((0.0, "refused"), (100.0, "failed"), (200.0, "refused"))
    decision = decide_retrain(policy, state, HARM, 500, 1000.0)
    assert isinstance(decision, AskPerson)
    assert decision.reason == "the last 3 retrainings promoted nothing; look at their gate reports"
    assert decision.evidence["wanted"] == "harm: Measured harm."
    state = state.asked(decision.reason)
    for now in (1000.0, 1e9):
        waits = decide_retrain(policy, state, HARM, 500, now)
        assert waits == Wait(until=None, reason=f"waits for a person: {decision.reason}")
    cleared = state.cleared(1000.0)
    assert cleared.fruitless == 0
    assert isinstance(decide_retrain(policy, cleared, HARM, 500, 1000.0), Retrain)
    assert state.trained(2000.0).needs_person is None
    state = ended((0.0, "refused"), (100.0, "promoted"), (200.0, "refused"))
    assert state.fruitless == 1
    assert isinstance(decide_retrain(policy, state, HARM, 500, 1000.0), Retrain)


def test_each_fruitless_retraining_doubles_the_cooldown_up_to_its_limit() -> None:
    policy = replace(POLICY, max_per_day=50, give_up_after=10, max_cooldown=200.0)
    state = ended((0.0, "refused"))
    assert decide_retrain(policy, state, HARM, 500, 119.0) == Wait(
        until=120.0, reason="cooldown, longer after 1 without a promotion"
    )
    assert isinstance(decide_retrain(policy, state, HARM, 500, 120.0), Retrain)
    assert [policy.pause_s(n) for n in (0, 1, 2, 1000)] == [60.0, 120.0, 200.0, 200.0]
    assert replace(policy, cooldown=300.0).pause_s(5) == 300.0


def test_a_refusal_of_what_the_calendar_asked_for_neither_backs_off_nor_calls_a_person() -> None:
    policy, state = replace(POLICY, every=100.0, max_per_day=50), RetrainState().trained(0.0)
    for at in (100.0, 200.0, 300.0, 400.0):
        decision = decide_retrain(policy, state, None, 500, at)
        assert isinstance(decision, Retrain)
        assert isinstance(decide_retrain(policy, state, None, 500, at - 1), Wait)
        state = state.started(at, decision.trigger).finished("refused", at + 1)
    assert state.fruitless == 0
    assert isinstance(decide_retrain(policy, state, HARM, 500, 470.0), Retrain)
    assert state.started(500.0, "age").finished("failed", 501.0).fruitless == 1


def test_the_schedule_is_kept_once_a_slot() -> None:
    policy, day = replace(POLICY, schedule="0 3 * * *"), 86400.0
    state = RetrainState().trained(10 * day)
    assert decide_retrain(policy, state, None, 500, 10 * day + 10799.0) == Wait(
        until=10 * day + 10800.0, reason="nothing asks for it before the champion is due"
    )
    decision = decide_retrain(policy, state, None, 500, 10 * day + 10800.0)
    assert isinstance(decision, Retrain)
    assert decision.trigger == "schedule"
    state = state.started(10 * day + 10800.0, "schedule").finished("refused", 10 * day + 10900.0)
    assert isinstance(decide_retrain(policy, state, None, 500, 11 * day), Wait)


def test_the_forecast_asks_only_when_it_may_and_knows() -> None:
    due = Forecast(due_s=500.0, low_s=400.0, high_s=None, lives=5, censored=1, method="survival", note="aged")
    state = RetrainState().trained(0.0)
    assert isinstance(decide_retrain(POLICY, state, None, 500, 600.0, forecast=due), Wait)
    policy = replace(POLICY, on_forecast=True)
    assert isinstance(decide_retrain(policy, state, None, 500, 499.0, forecast=due), Wait)
    decision = decide_retrain(policy, state, None, 500, 500.0, forecast=due)
    assert isinstance(decision, Retrain)
    assert (decision.trigger, decision.reason) == ("forecast", "aged")
    assert isinstance(decide_retrain(policy, state, None, 500, 1e9, forecast=replace(due, due_s=None)), Wait)


GAIN = Probe(gain=0.02, standard_error=0.005, gains=True, rows=100, note="+0.02 ± 0.005", loss=0.1)
NONE = Probe(gain=-0.1, standard_error=0.01, gains=False, rows=100, note="-0.1", loss=0.2)
CAREFUL = replace(POLICY, probe=True, refit_cost=60.0)


def probed(state: RetrainState, found: Probe | None, rows: int) -> RetrainState:
    return state.probe_asked("p", rows).probed(found, CAREFUL.refit_cost)


def test_the_cost_asks_for_a_probe_and_retrains_when_what_was_lost_has_reached_it() -> None:
    state = RetrainState().trained(0.0)
    assert decide_retrain(CAREFUL, state, None, 99, 0.0) == Wait(until=None, reason="nothing asks for it")
    assert decide_retrain(CAREFUL, state, None, 100, 0.0) == ProbeFirst(
        trigger="cost", reason="100 labelled rows since the champion's training"
    )
    asked = state.probe_asked("p", 300)
    assert decide_retrain(CAREFUL, asked, None, 400, 0.0) == Wait(until=None, reason="a probe is under way")
    # 20 % more than a refit that is itself 100 rows young: 30 % at an age of 300, so 45 rows' worth have been lost.
    seen = asked.probed(GAIN, 60.0)
    assert seen.pace.excess == pytest.approx(0.3)
    assert seen.pace.lost == pytest.approx(45.0)
    assert isinstance(decide_retrain(CAREFUL, seen, None, seen.pace.next_rows - 1, 0.0), Wait)
    assert isinstance(decide_retrain(CAREFUL, seen, None, seen.pace.next_rows, 0.0), ProbeFirst)
    assert 300 < seen.pace.next_rows <= 350  # 15 more rows' worth at 30 % or a little above
    decision = decide_retrain(CAREFUL, probed(seen, GAIN, 360), None, 380, 0.0)
    assert isinstance(decision, Retrain)
    assert decision.trigger == "cost"
    assert decision.reason == (
        "left alone, the champion has lost 62 rows' worth more than a fresh model (+27.7% a row now), and a retraining costs 60"
    )
    assert decision.evidence["probe"]["gain"] == 0.02
    for idle in (replace(CAREFUL, refit_cost=None), replace(CAREFUL, probe=False)):
        assert decide_retrain(idle, seen, None, 10_000, 0.0) == Wait(until=None, reason="nothing asks for it")


def test_an_excess_too_small_to_matter_is_not_retrained_for() -> None:
    slight = replace(GAIN, gain=0.001, standard_error=0.0001, rows=2000)
    state = RetrainState().trained(0.0).probe_asked("p", 100_000).probed(slight, 60.0, 0.02)
    assert state.pace.lost > 60.0
    assert isinstance(decide_retrain(CAREFUL, state, None, 124_999, 0.0), Wait)
    assert state.pace.due()[1] == pytest.approx(196_000.0)  # at twice the excess
    larger = RetrainState().trained(0.0).probe_asked("p", 100_000).probed(replace(slight, gain=0.003), 60.0, 0.02)
    assert isinstance(decide_retrain(CAREFUL, larger, None, 150_000, 0.0), Retrain)


def test_a_gain_that_may_be_chance_is_looked_at_again_before_anything_is_trained() -> None:
    state = probed(RetrainState().trained(0.0), replace(GAIN, standard_error=0.03), 1000)
    assert state.pace.lost > 60.0
    assert isinstance(decide_retrain(CAREFUL, state, None, 1001, 0.0), Wait)
    assert isinstance(decide_retrain(CAREFUL, state, None, 1125, 0.0), ProbeFirst)


def test_the_pace_tells_when_the_refit_is_due_as_an_interval_or_never() -> None:
    pace = probed(RetrainState().trained(0.0), GAIN, 300).pace
    low, middle, high = pace.due()
    assert low is not None
    assert middle is not None
    assert high is not None
    assert 300 < low < middle < high
    assert probed(RetrainState().trained(0.0), NONE, 300).pace.due()[1:] == (None, None)
    assert Pace().due() == (None, None, None)


def test_an_alarm_waits_for_a_probe_of_its_episode() -> None:
    state = RetrainState().trained(0.0).seen(HARM)
    assert decide_retrain(CAREFUL, state, HARM, 500, 0.0) == ProbeFirst(trigger="harm", reason="Measured harm.")
    before = probed(RetrainState().trained(0.0), NONE, 480).seen(HARM)
    assert isinstance(decide_retrain(CAREFUL, before, HARM, 500, 0.0), ProbeFirst)
    for answer in (GAIN, None):  # one that failed leaves the doubt to the alarm
        decision = decide_retrain(CAREFUL, probed(state, answer, 500), HARM, 5000, 0.0)
        assert isinstance(decision, Retrain)
        assert decision.trigger == "harm"


def test_probes_without_a_gain_hold_an_alarm_back_ever_longer_and_then_call_a_person() -> None:
    state, rows = RetrainState().trained(0.0).seen(HARM), 1000
    for count in (1, 2, 3):
        state = probed(state, NONE, rows)
        assert state.pace.barren == count
        if count < CAREFUL.give_up_after:
            waits = decide_retrain(CAREFUL, state, HARM, rows + rows // 2 - 1, 0.0)
            assert waits == Wait(until=None, reason="a probe refit shows no gain: -0.1")
            rows += rows // 2
            assert isinstance(decide_retrain(CAREFUL, state, HARM, rows, 0.0), ProbeFirst)
    asks = decide_retrain(CAREFUL, state, HARM, rows, 0.0)
    assert isinstance(asks, AskPerson)
    assert asks.reason == "the loss is too high and 3 refits in a row would not lower it; look at the data or the model"
    cleared = state.asked(asks.reason).cleared(1.0)
    assert isinstance(decide_retrain(CAREFUL, cleared, HARM, rows * 2, 0.0), ProbeFirst)


def test_what_the_calendar_asks_for_needs_no_probe() -> None:
    policy, state = replace(CAREFUL, every=100.0), probed(RetrainState().trained(0.0), NONE, 300)
    assert isinstance(decide_retrain(policy, state, None, 500, 100.0), Retrain)


@pytest.mark.parametrize("kind", ["broken_data", "serving_fault"])
def test_broken_data_and_a_serving_fault_are_a_veto(kind: Kind) -> None:
    decision = decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, diagnosis=Diagnosis(kind=kind, note="why"))
    assert decision == Wait(until=None, reason=f"{kind.replace('_', ' ')}: why")
    fine = Diagnosis(kind="concept_shift", note="")
    assert isinstance(decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, diagnosis=fine), Retrain)


def test_a_burning_error_budget_holds_it_back() -> None:
    decision = decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, burning="14 x")
    assert decision == Wait(until=None, reason="the error budget is burning: 14 x")


def test_an_episode_lasts_until_two_calm_windows_or_another_champion() -> None:
    alarm, calm = replace(HARM, version=3), replace(HARM, version=3, severity=1, harm=False, may_retrain=False)
    state = RetrainState().seen(replace(calm, window=6))
    assert state.episode is None
    state = state.seen(alarm)
    assert state.episode is not None
    assert (state.episode.id, state.episode.began_at) == ("v3-w7", 0.0)
    assert state.started(1.0).history[-1].episode == "v3-w7"
    once = state.seen(replace(calm, window=8))
    assert once.seen(replace(calm, window=8)) == once
    relapsed = once.seen(replace(alarm, window=9)).seen(replace(calm, window=10))
    assert relapsed.episode is not None
    assert relapsed.episode.id == "v3-w7"
    assert relapsed.seen(replace(calm, window=11)).episode is None
    assert once.seen(replace(calm, version=4, window=1)).episode is None
    assert state.trained(9.0).episode is None


def test_an_episode_has_one_retraining_and_trouble_that_goes_on_is_the_next_one() -> None:
    alarm = replace(HARM, version=3)
    answered = RetrainState().seen(alarm).started(1.0)
    assert answered.episode is not None
    assert answered.episode.answered
    later = replace(alarm, window=8, from_at=1.0, to_at=2.0)
    assert answered.seen(later).episode == answered.episode  # while it runs
    over = answered.finished("refused", 2.0)
    assert decide_retrain(POLICY, over.seen(alarm), alarm, 500, 1e6) == Wait(
        until=None,
        reason="drift episode v3-w7 has had its retraining: only a later window that alarms asks for another",
    )
    calm = replace(later, severity=1, harm=False, may_retrain=False)
    assert over.seen(calm).seen(replace(calm, window=9)).episode is None
    following = over.seen(later)
    assert following.episode is not None
    assert (following.episode.id, following.episode.after) == ("v3-w8", "v3-w7")
    assert (following.episode.began_at, following.episode.answered) == (0.0, False)
    decision = decide_retrain(POLICY, following, later, 500, 1e6)
    assert isinstance(decision, Retrain)
    assert (decision.evidence["episode"], decision.evidence["after_episode"]) == ("v3-w8", "v3-w7")
    # What a person asks for meanwhile is not the episode's second.
    assert over.started(3.0, "person").history[-1].episode is None
    # A version that serves again counts its windows from 1: another episode all the same.
    again = over.went_back().seen(replace(alarm, to_at=50.0))
    assert again.episode is not None
    assert again.episode.id == "v3-w7-50"


def test_state_moves_and_survives_json() -> None:
    state = RetrainState().started(5.0)
    assert state.running
    assert state.finished("promoted", 9.0).trained_at == 9.0
    assert state.finished("failed", 9.0).trained_at is None
    assert RetrainState().finished("failed", 1.0) == RetrainState()
    state = probed(state.seen(HARM).asked("why"), GAIN, 300).probe_asked("again", 400)
    assert RetrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    before = {"history": [{"at": 5.0, "outcome": "refused"}], "trained_at": 2.0}
    assert RetrainState.from_dict(before).fruitless == 1
    for at in range(300):
        state = state.started(float(at))
    assert len(state.history) == 256


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("on_drift", 1, "on_drift=1 is not a yes or no: give True or False"),
        ("max_per_day", 0, "max_per_day=0 cannot be used: give a whole number of at least 1"),
        ("min_labels", 2.5, "min_labels=2.5 cannot be used"),
        ("cooldown", "later", "cooldown='later' is not a duration"),
        ("every", 0, "every=0 would retrain without end"),
        ("max_per_day", 257, "max_per_day=257 is more than are remembered: give at most 256"),
        ("backoff", 0.5, "backoff=0.5 cannot be used: give a factor from 1 to 100"),
        ("schedule", "0 25 * * *", "schedule='0 25 * * *': '25' is no hour. Give 0 to 23"),
        ("refit_cost", 0, "refit_cost=0 cannot be weighed: give a number of rows above 0, or None for no cost"),
        ("least_excess", -0.1, "least_excess=-0.1 cannot be used: give a share of the loss, 0 or more"),
        ("refit_cost", "4d", "refit_cost='4d' cannot be weighed"),
        ("window", "newest", "window='newest' is not known: give 'recent', 'all' or a positive number of rows"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RetrainPolicy(**{field: value})
    assert sentence in str(caught.value)


def test_new_labels_make_a_retraining_due() -> None:
    policy, state = RetrainPolicy(every_labels=1000, cooldown=0, probe=False), RetrainState()
    assert isinstance(decide_retrain(policy, state, None, 999, 0.0), Wait)
    due = decide_retrain(policy, state, None, 1000, 0.0)
    assert isinstance(due, Retrain)
    assert (due.trigger, due.reason) == ("age", "1000 new labelled rows, due at 1000")


def test_a_probe_counts_for_the_episode_in_which_it_was_asked_for() -> None:
    barren = Probe(gain=-0.1, standard_error=0.01, gains=False, rows=60, note="")
    state = RetrainState().probe_asked("p", 500).seen(replace(HARM, version=1))
    assert state.episode is not None
    assert state.probing == Probing(id="p", rows=500)
    after = state.probed(barren, None)
    assert (after.pace.episode, after.pace.barren) == (None, 1)
    again = after.probe_asked("q", 600).probed(barren, None)
    assert (again.pace.episode, again.pace.barren) == ("v1-w7", 1)


def test_a_probe_under_way_of_an_earlier_release_is_read() -> None:
    body = RetrainState().probe_asked("p", 500).to_dict()
    assert RetrainState.from_dict(json.loads(json.dumps(body))).probing == Probing(id="p", rows=500)
    del body["probing"]["episode"]
    assert RetrainState.from_dict(body).probing == Probing(id="p", rows=500)
