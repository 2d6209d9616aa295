"""When to train again, and the sentences of refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raymlops.errors import ConfigError
from raymlops.monitor.monitor import DriftReport
from raymlops.retrain import Retrain, RetrainPolicy, RetrainState, Wait, decide_retrain

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


def test_fruitless_retrainings_are_given_up_for_a_day() -> None:
    policy = replace(POLICY, max_per_day=50)
    state = ended((0.0, "refused"), (100.0, "failed"), (200.0, "refused"))
    decision = decide_retrain(policy, state, HARM, 500, 1000.0)
    assert decision == Wait(until=86600.0, reason="the last 3 retrainings promoted nothing; look at their gate reports")
    assert isinstance(decide_retrain(policy, state, HARM, 500, 86600.0), Retrain)
    state = ended((0.0, "refused"), (100.0, "promoted"), (200.0, "refused"))
    assert isinstance(decide_retrain(policy, state, HARM, 500, 1000.0), Retrain)


def test_state_moves_and_survives_json() -> None:
    state = RetrainState().started(5.0)
    assert state.running
    assert state.finished("promoted", 9.0).trained_at == 9.0
    assert state.finished("failed", 9.0).trained_at is None
    assert RetrainState().finished("failed", 1.0) == RetrainState()
    assert RetrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    for at in range(100):
        state = state.started(float(at))
    assert len(state.history) == 64


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("on_drift", 1, "on_drift=1 is not a yes or no: give True or False"),
        ("max_per_day", 0, "max_per_day=0 cannot be used: give a whole number of at least 1"),
        ("min_labels", 2.5, "min_labels=2.5 cannot be used"),
        ("cooldown", "later", "cooldown='later' is not a duration"),
        ("every", 0, "every=0 would retrain without end"),
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
