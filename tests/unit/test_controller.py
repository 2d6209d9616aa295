"""The loop's decisions, without Ray and without a clock."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from raymlops.errors import RolloutError
from raymlops.loop import controller
from raymlops.loop.controller import (
    DeployChallenger,
    DropChallenger,
    Observation,
    Publish,
    Record,
    SetAlias,
    SubmitProbe,
    SubmitRetraining,
)
from raymlops.loop.state import EndpointState, Monitoring, Preparing, RollingOut
from raymlops.monitor.pace import Pace
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis
from raymlops.retrain import RetrainPolicy
from raymlops.retrain_state import Episode, Probing
from raymlops.search.probe import Probe
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.policies import Canary

CANARY = Canary(weights=(0.1, 0.5, 1.0), hold_s=10, min_requests=60)
POLICY = RetrainPolicy(cooldown=0, probe=False)
WELL = Comparison(champion=VariantStats(requests=500), challenger=VariantStats(requests=200))
BROKEN = Comparison(champion=VariantStats(requests=500), challenger=VariantStats(requests=20, errors=20))


def fresh() -> EndpointState:
    return EndpointState(name="e", phase=Preparing(since=0.0))


def serving(version: int = 1) -> EndpointState:
    return controller.adopt(fresh(), version, now=1.0)[0]


def rolling() -> EndpointState:
    return controller.begin_rollout(serving(), CANARY, 2, "event", now=10.0)[0]


def test_the_first_version_serves_at_once() -> None:
    state, actions = controller.begin_rollout(fresh(), CANARY, 1, "event", now=1.0)
    assert isinstance(state.phase, Monitoring)
    assert [type(action) for action in actions] == [Record, SetAlias, Publish]
    assert state.split is not None
    assert (state.split.champion, state.split.challenger, state.split.number) == (1, None, 1)


def test_a_later_version_is_deployed_in_isolation_before_it_gets_traffic() -> None:
    state, actions = controller.begin_rollout(serving(), CANARY, 2, "event", now=10.0)
    kinds = [type(action) for action in actions]
    assert kinds.index(Record) < kinds.index(DeployChallenger) < kinds.index(Publish)
    assert state.split is not None
    assert (state.split.champion, state.split.challenger, state.split.weight) == (1, 2, 0.1)
    with pytest.raises(RolloutError, match="rolling out version 2: version 3 must wait"):
        controller.begin_rollout(state, CANARY, 3, "other", now=11.0)


def test_a_good_challenger_climbs_and_is_promoted() -> None:
    state, weights = rolling(), []
    for now in (15.0, 21.0, 25.0, 32.0):
        state, _ = controller.step(state, CANARY, POLICY, Observation(now=now, comparison=WELL))
        assert state.split is not None
        weights.append((state.split.champion, state.split.weight))
    assert weights == [(1, 0.1), (1, 0.5), (1, 0.5), (2, 0.0)]
    assert (state.champion, state.previous) == (2, 1)
    dropped = controller.step(state, CANARY, POLICY, Observation(now=32.0 + controller.RETIRE_AFTER_S))[1]
    assert DropChallenger(version=2) in dropped


def test_a_broken_challenger_is_rolled_back_at_once() -> None:
    state, actions = controller.step(rolling(), CANARY, POLICY, Observation(now=10.1, comparison=BROKEN))
    assert isinstance(state.phase, Monitoring)
    assert state.champion == 1
    assert state.split is not None
    assert state.split.challenger is None
    assert isinstance(actions[0], Record)
    assert "20 of its 20 requests failed" in actions[0].body["reason"]


def test_rollback_after_a_promotion_is_a_new_table_with_the_old_champion() -> None:
    promoted, _ = controller.promote(rolling(), CANARY, "by hand", now=20.0)
    back, actions = controller.rollback(promoted, CANARY, "by hand", now=21.0)
    assert (back.champion, back.previous) == (1, 2)
    assert not any(isinstance(action, DeployChallenger) for action in actions)
    assert promoted.split is not None
    assert back.split is not None
    assert back.split.number == promoted.split.number + 1


def test_a_paused_rollout_waits() -> None:
    paused, _ = controller.pause(rolling(), True)
    assert controller.step(paused, CANARY, POLICY, Observation(now=100.0, comparison=WELL))[0] == paused
    resumed, _ = controller.pause(paused, False)
    assert controller.step(resumed, CANARY, POLICY, Observation(now=100.0, comparison=WELL))[0] != resumed


def test_a_burning_error_budget_holds_a_rollout_where_it_is_but_not_its_rollback() -> None:
    state = rolling()
    held, actions = controller.step(
        state, CANARY, POLICY, Observation(now=100.0, comparison=WELL, burning="15 times too fast over 1 h")
    )
    assert (held, actions) == (state, ())
    moved, _ = controller.step(held, CANARY, POLICY, Observation(now=101.0, comparison=WELL))
    assert isinstance(moved.phase, RollingOut)
    assert moved.phase.rollout.weight == 0.5
    back, _ = controller.step(
        moved, CANARY, POLICY, Observation(now=102.0, comparison=BROKEN, burning="15 times too fast over 1 h")
    )
    assert isinstance(back.phase, Monitoring)
    assert back.champion == 1


def test_what_holds_a_wanted_retraining_back_is_told_once_until_it_changes() -> None:
    harm = DriftReport(
        window=1,
        version=1,
        rows=1,
        from_at=0,
        to_at=0,
        severity=4,
        may_retrain=True,
        reference_loss=0.1,
        loss_limit=0.1,
    )
    broken = Diagnosis(kind="broken_data", note="values went missing: price (+40% of the rows)")
    state, told = serving(), []
    for now, diagnosis, burning in ((10.0, broken, ""), (11.0, broken, ""), (12.0, None, "14 x"), (13.0, None, "15 x")):
        seen = Observation(now=now, report=harm, labelled=1000, diagnosis=diagnosis, burning=burning)
        state, actions = controller.step(state, CANARY, POLICY, seen)
        told += [action.body["reason"] for action in actions if isinstance(action, Record)]
    assert told == ["broken data: values went missing: price (+40% of the rows)", "the error budget is burning: 14 x"]
    state, actions = controller.step(state, CANARY, POLICY, Observation(now=14.0, report=harm, labelled=1000))
    assert state.retraining is not None
    assert EndpointState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_one_retraining_at_a_time() -> None:
    state, actions = controller.start_retraining(serving(), "drift", {}, now=100.0)
    assert state.retraining is not None
    assert actions[-1] == SubmitRetraining(event_id=state.retraining.event_id)
    with pytest.raises(RolloutError, match="already retraining"):
        controller.start_retraining(state, "drift", {}, now=101.0)
    with pytest.raises(RolloutError, match="rolling out: a retraining starts only"):
        controller.start_retraining(rolling(), "drift", {}, now=101.0)


def test_after_fruitless_retrainings_a_person_is_asked_once_and_resume_goes_on() -> None:
    policy, state = RetrainPolicy(cooldown=0, give_up_after=2, max_per_day=50, probe=False), serving()
    harm = DriftReport(
        window=1,
        version=1,
        rows=1,
        from_at=0,
        to_at=0,
        severity=4,
        may_retrain=True,
        reference_loss=0.1,
        loss_limit=0.1,
    )
    kinds = []
    for now in range(10, 16):
        seen = Observation(now=now, report=replace(harm, window=now // 2), labelled=1000)
        state, actions = controller.step(state, CANARY, policy, seen)
        kinds += [action.kind for action in actions if isinstance(action, Record)]
        if state.retraining is not None:
            state = controller.refused(state, state.retraining.event_id, "gate: worse", now)[0]
    # Each window twice: an alarm that was answered asks for nothing more.
    assert kinds == ["retrain_started", "retrain_held", "retrain_started", "retrain_held", "needs_person"]
    assert isinstance(state.phase, Monitoring)
    resumed, actions = controller.resume(state, 20.0)
    assert isinstance(actions[0], Record)
    assert actions[0].kind == "resumed"
    again, _ = controller.step(resumed, CANARY, policy, replace(seen, now=21.0))
    assert again.retraining is not None
    by_hand, _ = controller.start_retraining(state, "by hand", {}, now=22.0)
    assert (by_hand.retrain.needs_person, by_hand.retrain.fruitless) == (None, 0)
    with pytest.raises(RolloutError, match="there is no rollout to pause"):
        controller.resume(serving(), 1.0)


def test_a_report_of_an_earlier_champion_starts_nothing() -> None:
    old = DriftReport(
        window=1,
        version=7,
        rows=1,
        from_at=0,
        to_at=0,
        severity=4,
        may_retrain=True,
        reference_loss=0.1,
        loss_limit=0.1,
    )
    state, actions = controller.step(serving(), CANARY, POLICY, Observation(now=9.0, report=old, labelled=1000))
    assert (state, actions) == (serving(), ())


@pytest.mark.parametrize(
    ("job", "now", "ended"),
    [
        ("running", 101.0, False),
        ("unknown", 101.0, False),
        ("failed", 101.0, True),
        ("succeeded", 101.0, True),
        ("missing", 101.0, False),  # decided on, and about to be submitted
        ("missing", 161.0, True),
    ],
)
def test_a_job_that_ends_without_a_version_has_failed(job: Any, now: float, ended: bool) -> None:
    state, _ = controller.start_retraining(serving(), "drift", {}, now=100.0)
    after, actions = controller.step(state, CANARY, POLICY, Observation(now=now, job=job))
    assert (after.retraining is None) == ended
    assert any(isinstance(action, Record) and action.kind == "retrain_failed" for action in actions) == ended


def test_a_refused_candidate_leaves_the_champion() -> None:
    state, _ = controller.start_retraining(serving(), "drift", {}, now=100.0)
    assert state.retraining is not None
    after, actions = controller.refused(state, state.retraining.event_id, "gate: worse", now=120.0)
    assert (after.champion, after.retraining) == (1, None)
    assert isinstance(actions[0], Record)
    assert actions[0].kind == "candidate_refused"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: controller.promote(serving(), CANARY, "", 0.0), "e is monitoring: there is no challenger to promote"),
        (lambda: controller.abort(serving(), "", 0.0), "there is no rollout to abort"),
        (
            lambda: controller.rollback(serving(), CANARY, "", 0.0),
            "no earlier champion to roll back to: version 1 is its first",
        ),
        (lambda: controller.pause(serving(), True), "there is no rollout to pause"),
    ],
)
def test_what_does_not_apply_is_refused(act, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        act()


@pytest.mark.parametrize(
    "state", [fresh(), serving(), rolling(), controller.start_retraining(serving(), "r", {}, 5.0)[0]]
)
def test_the_state_survives_its_json_form(state: EndpointState) -> None:
    assert EndpointState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_restoring_after_a_crash_repeats_what_makes_the_world_agree() -> None:
    state = rolling()
    assert isinstance(state.phase, RollingOut)
    actions = controller.restore(state)
    assert DeployChallenger(version=2) in actions
    assert actions[-1] == Publish(split=state.split)


def test_a_version_that_has_just_taken_over_is_not_judged_by_what_the_old_champion_did() -> None:
    policy = RetrainPolicy(cooldown=0, refit_cost=100.0)
    one_step = Canary(weights=(1.0,), hold_s=1, min_requests=60)
    state = controller.begin_rollout(serving(), one_step, 2, "event", now=10.0)[0]
    seen = Observation(now=20.0, comparison=WELL, labelled=100_000)
    after, actions = controller.step(state, one_step, policy, seen)
    assert (after.champion, after.retrain.probing) == (2, None)
    assert not any(isinstance(action, SubmitProbe) for action in actions)
    later, _ = controller.step(after, one_step, policy, Observation(now=21.0, labelled=100_000))
    assert later.retrain.probing is not None


def test_a_rollback_forgets_what_probes_and_reports_said_of_the_version_that_goes() -> None:
    promoted, _ = controller.promote(rolling(), CANARY, "by hand", now=20.0)
    trouble = Episode(id="v2-w1", version=2, began_at=15.0, window=1)
    pace = Pace(
        rows=400, newest=Probe(gain=0.1, standard_error=0.01, gains=True, rows=90, note=""), excess=0.2, lost=9.0
    )
    memory = replace(promoted.retrain, episode=trouble, pace=pace, held_by="no_gain").probe_asked("p", 500)
    back, _ = controller.rollback(replace(promoted, retrain=memory), CANARY, "by hand", now=21.0)
    assert (back.retrain.episode, back.retrain.probing, back.retrain.held_by) == (None, None, "")
    assert (back.retrain.pace.newest, back.retrain.pace.lost, back.retrain.pace.rows) == (None, 0.0, 0)
    assert back.retrain.trained_at == promoted.retrain.trained_at


def test_a_candidate_that_is_told_of_again_changes_nothing() -> None:
    state = rolling()
    assert controller.begin_rollout(state, CANARY, 2, "event", now=11.0) == (state, ())
    with pytest.raises(RolloutError, match="rolling out version 2"):
        controller.begin_rollout(state, CANARY, 2, "another", now=11.0)
    promoted, _ = controller.promote(state, CANARY, "by hand", now=20.0)
    assert controller.begin_rollout(promoted, CANARY, 2, "event", now=21.0) == (promoted, ())
    first, _ = controller.begin_rollout(fresh(), CANARY, 1, "event", now=1.0)
    assert controller.begin_rollout(first, CANARY, 1, "event", now=2.0) == (first, ())


@pytest.mark.parametrize(("asked_in", "change_at"), [("v1-w3", 15.0), (None, None)])
def test_a_probe_is_asked_for_again_as_it_was_asked_for(asked_in: str | None, change_at: float | None) -> None:
    probing = Probing(id="p", rows=500, episode=asked_in)
    trouble = Episode(id="v1-w3", version=1, began_at=15.0, window=3)
    state = serving()
    state = replace(state, retrain=replace(state.retrain, episode=trouble, probing=probing))
    assert controller.restore(state)[-1] == SubmitProbe(probe_id="p", version=1, change_at=change_at)
