"""The loop's decisions with the other policies: approval, warm champions, provisional promotions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymlops.errors import RolloutError
from raymlops.loop import controller
from raymlops.loop.controller import Action, DropChallenger, Observation, Publish, Record
from raymlops.loop.state import EndpointState, Monitoring, Preparing, RollingOut
from raymlops.retrain import RetrainPolicy
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.policies import BlueGreen, Canary, Shadow
from raymlops.serving.traffic import TrafficSplit

RETRAIN = RetrainPolicy(cooldown=0, probe=False)
WELL = Comparison(champion=VariantStats(requests=500), challenger=VariantStats(requests=200))


def serving() -> EndpointState:
    return controller.adopt(EndpointState(name="e", phase=Preparing(since=0.0)), 1, now=1.0)[0]


def rolling(policy: Any) -> EndpointState:
    return controller.begin_rollout(serving(), policy, 2, "event", now=10.0)[0]


def turn(state: EndpointState, policy: Any, now: float, **seen: Any) -> tuple[EndpointState, tuple[Action, ...]]:
    return controller.step(state, policy, RETRAIN, Observation(now=now, **seen))


def table(state: EndpointState) -> TrafficSplit:
    assert state.split is not None
    return state.split


def kinds(actions: tuple[Action, ...]) -> list[str]:
    return [action.kind for action in actions if isinstance(action, Record)]


def pairs(mean: float, n: int) -> Comparison:
    return Comparison(champion=VariantStats(), challenger=VariantStats().with_gaps([mean] * n))


def test_blue_green_is_copies_then_everything_then_the_champion() -> None:
    policy, state, seen = BlueGreen(hold_s=5), rolling(BlueGreen(hold_s=5)), []
    for now in (12.0, 15.0, 17.0, 20.0):
        seen.append((table(state).champion, table(state).challenger, table(state).weight, table(state).shadow))
        state, _ = turn(state, policy, now, comparison=WELL)
    assert seen == [(1, 2, 1.0, True), (1, 2, 1.0, True), (1, 2, 1.0, False), (1, 2, 1.0, False)]
    assert (table(state).champion, table(state).challenger, table(state).warm) == (2, None, (1,))


def test_an_approval_releases_one_step() -> None:
    policy = Canary(weights=(0.1, 0.5, 1.0), hold_s=1, min_requests=60, approval="manual")
    state, weights, asked = rolling(policy), [], 0
    with pytest.raises(RolloutError, match="No step of e's rollout waits for approval: version 2 has to pass"):
        controller.approve(state, "too early")
    for now in range(20, 60):
        state, actions = turn(state, policy, float(now), comparison=WELL)
        asked += kinds(actions).count("approval_awaited")
        weights.append((table(state).champion, table(state).weight))
        if now in (30, 40):
            state, actions = controller.approve(state, "looks well")
            assert kinds(actions) == ["approved"]
    assert weights[:11] == [(1, 0.1)] * 11
    assert weights[11:21] == [(1, 0.5)] * 10
    assert weights[21:] == [(2, 0.0)] * 19
    assert asked == 2
    with pytest.raises(RolloutError, match="there is no rollout to approve"):
        controller.approve(state, "")


def test_an_approved_challenger_that_breaks_is_rolled_back_all_the_same() -> None:
    policy = Canary(approval="manual", hold_s=1)
    state, _ = turn(rolling(policy), policy, 20.0, comparison=WELL)
    state, _ = controller.approve(state, "")
    broken = Comparison(champion=VariantStats(requests=500), challenger=VariantStats(requests=20, errors=20))
    state, actions = turn(state, policy, 21.0, comparison=broken)
    assert kinds(actions) == ["rolled_back"]
    assert table(state).champion == 1


def test_the_old_champion_is_kept_warm_for_its_time_and_no_longer() -> None:
    policy = Canary(keep_warm_s=100)
    state, _ = controller.promote(rolling(policy), policy, "by hand", now=20.0)
    assert table(state).warm == (1,)
    state, actions = turn(state, policy, 119.0)
    assert not any(isinstance(action, Publish) for action in actions)
    before = table(state)
    state, actions = turn(state, policy, 120.0)
    assert [action.split.warm for action in actions if isinstance(action, Publish)] == [()]
    assert (table(state).champion, table(state).number, state.previous) == (2, before.number + 1, 1)
    back, _ = controller.rollback(state, policy, "late", now=500.0)
    assert (table(back).champion, table(back).warm) == (1, (2,))


def test_a_warm_champion_survives_the_tables_of_the_next_rollout() -> None:
    policy = Canary(keep_warm_s=100, hold_s=1, min_requests=60)
    state, _ = controller.promote(rolling(policy), policy, "by hand", now=20.0)
    state, _ = controller.begin_rollout(state, policy, 3, "next", now=30.0)
    assert (table(state).champion, table(state).challenger, table(state).warm) == (2, 3, (1,))
    state, _ = turn(state, policy, 120.0, comparison=WELL)
    assert (table(state).challenger, table(state).weight, table(state).warm) == (3, 0.5, ())


@pytest.mark.parametrize(("mean", "n", "champion"), [(0.0, 50, 2), (0.4, 50, 1)])
def test_a_provisional_promotion_is_confirmed_or_revoked_by_labels(mean: float, n: int, champion: int) -> None:
    policy = Canary(confirm_labels=50, keep_warm_s=10)
    state, actions = controller.promote(rolling(policy), policy, "passed", now=20.0)
    assert state.confirming is not None
    assert actions[0] == Record(kind="promoted", body={**actions[0].body, "provisional": True})
    copied = table(state)
    assert (copied.champion, copied.challenger, copied.weight, copied.shadow, copied.warm) == (2, 1, 1.0, True, (1,))
    state, _ = turn(state, policy, 100.0, confirmation=pairs(0.0, 49))
    assert (state.confirming is not None, table(state).warm) == (True, (1,))  # behind keep_warm_s, but still needed
    state, actions = turn(state, policy, 101.0, confirmation=pairs(mean, n))
    assert kinds(actions) == ["promotion_confirmed" if champion == 2 else "rolled_back"]
    assert (state.champion, table(state).champion, table(state).challenger) == (champion, champion, None)
    assert state.confirming is None
    if champion == 1:
        assert actions[0].body["reason"].startswith("the promotion is revoked: loss +0.400")
    state, _ = turn(state, policy, 200.0)
    assert table(state).warm == ()


def test_the_next_rollout_ends_the_wait_for_a_confirmation_openly() -> None:
    policy = Canary(confirm_labels=50)
    state, _ = controller.promote(rolling(policy), policy, "passed", now=20.0)
    state, actions = controller.begin_rollout(state, policy, 3, "next", now=30.0)
    assert kinds(actions) == ["promotion_confirmed", "rollout_started"]
    assert actions[0].body["reason"] == "not decided: version 3 is next"
    assert state.confirming is None


def test_a_version_that_comes_again_is_not_taken_down_under_its_own_rollout() -> None:
    policy = Shadow()
    state, _ = controller.abort(rolling(policy), "by hand", now=20.0)
    state, _ = controller.begin_rollout(state, policy, 2, "again", now=21.0)
    _, actions = turn(state, policy, 60.0, comparison=Comparison(champion=VariantStats(), challenger=VariantStats()))
    assert DropChallenger(version=2) not in actions


def test_the_state_of_every_policy_survives_its_json_form() -> None:
    policy = Canary(confirm_labels=5, approval="manual", hold_s=1)
    held, _ = turn(rolling(policy), policy, 20.0, comparison=WELL)
    provisional, _ = controller.promote(held, policy, "", now=30.0)
    for state in (held, provisional, rolling(Shadow())):
        assert EndpointState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_a_state_saved_before_there_were_policies_is_read() -> None:
    body = json.loads(json.dumps(rolling(Canary()).to_dict()))
    for name in ("warm", "confirming"):
        del body[name]
    del body["split"]["warm"]
    for name in ("began_at", "weight", "shadow", "held", "approved"):
        del body["phase"][1]["rollout"][name]
    state = EndpointState.from_dict(body)
    assert isinstance(state.phase, RollingOut)
    done, _ = turn(state, Canary(), 9000.0, comparison=WELL)
    assert table(done).weight == 0.5
    assert not isinstance(done.phase, Monitoring)
