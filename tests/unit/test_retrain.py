"""When to train again, and the sentences of refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raymlops.errors import ConfigError
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis, Kind
from raymlops.retrain import AskPerson, Retrain, RetrainPolicy, RetrainState, Wait, decide_retrain
from raymlops.search.probe import Probe

POLICY = RetrainPolicy(cooldown=60.0, max_per_day=2, min_labels=100, give_up_after=3)
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


def test_a_refit_cost_weighs_ageing_against_a_retraining() -> None:
    policy, state = replace(POLICY, on_forecast=True, refit_cost=50.0), RetrainState().trained(0.0)
    found = Forecast(due_s=5.0, low_s=None, high_s=None, lives=5, censored=1, method="ageing", note="", rate=0.01)
    assert decide_retrain(policy, state, None, 500, 99.0, forecast=found) == Wait(
        until=100.0, reason="nothing asks for it before the champion is due"
    )
    decision = decide_retrain(policy, state, None, 500, 100.0, forecast=found)
    assert isinstance(decision, Retrain)
    assert decision.reason == "versions gain 86400.0% of loss a day, so every 1.67 min is cheapest"
    assert isinstance(decide_retrain(policy, state, None, 500, 1e9, forecast=replace(found, rate=None)), Wait)


@pytest.mark.parametrize("kind", ["broken_data", "serving_fault"])
def test_broken_data_and_a_serving_fault_are_a_veto(kind: Kind) -> None:
    decision = decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, diagnosis=Diagnosis(kind=kind, note="why"))
    assert decision == Wait(until=None, reason=f"{kind.replace('_', ' ')}: why")
    fine = Diagnosis(kind="concept_shift", note="")
    assert isinstance(decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, diagnosis=fine), Retrain)


def test_a_burning_error_budget_and_a_probe_without_a_gain_hold_it_back() -> None:
    decision = decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, burning="14 x")
    assert decision == Wait(until=None, reason="the error budget is burning: 14 x")
    none = Probe(gain=-0.1, standard_error=0.01, gains=False, rows=100, note="-0.1")
    decision = decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, probe=none)
    assert decision == Wait(until=None, reason="a probe refit shows no gain: -0.1")
    assert isinstance(decide_retrain(POLICY, RetrainState(), HARM, 500, 0.0, probe=replace(none, gains=True)), Retrain)


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


def test_state_moves_and_survives_json() -> None:
    state = RetrainState().started(5.0)
    assert state.running
    assert state.finished("promoted", 9.0).trained_at == 9.0
    assert state.finished("failed", 9.0).trained_at is None
    assert RetrainState().finished("failed", 1.0) == RetrainState()
    state = state.seen(HARM).asked("why")
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
        ("refit_cost", 0, "refit_cost=0 would retrain without end"),
        ("window", "newest", "window='newest' is not known: give 'recent', 'all' or a positive number of rows"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RetrainPolicy(**{field: value})
    assert sentence in str(caught.value)


def test_new_labels_make_a_retraining_due() -> None:
    policy, state = RetrainPolicy(every_labels=1000, cooldown=0), RetrainState()
    assert isinstance(decide_retrain(policy, state, None, 999, 0.0), Wait)
    due = decide_retrain(policy, state, None, 1000, 0.0)
    assert isinstance(due, Retrain)
    assert (due.trigger, due.reason) == ("age", "1000 new labelled rows, due at 1000")
