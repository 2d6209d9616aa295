"""What holds of every policy, whatever is seen: bounds of the share, at most one champion, sticky keys, the bandit."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.loop import controller
from raymlops.loop.controller import Observation, Publish
from raymlops.loop.state import EndpointState, Preparing, RollingOut
from raymlops.retrain import RetrainPolicy
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.bandit import probability_better
from raymlops.serving.policies import ABTest, Bandit, BlueGreen, Canary, Shadow
from raymlops.serving.rollout import Advance, Hold, Promote, Rollback, Rollout, decide
from raymlops.serving.traffic import TrafficSplit, draw

approvals = st.sampled_from(["auto", "manual"])
common = {"hold_s": st.just(10), "max_wait_s": st.just(500), "min_requests": st.just(60), "approval": approvals}
policies = st.one_of(
    st.builds(Canary, confirm_labels=st.sampled_from([0, 20]), keep_warm_s=st.sampled_from([0, 50]), **common),
    st.builds(BlueGreen, preview=st.booleans(), **common),
    st.builds(Shadow, share=st.floats(0.01, 1.0), min_labels=st.sampled_from([0, 20]), **common),
    st.builds(ABTest, share=st.floats(0.01, 0.99), min_labels=st.just(20), **common),
    st.builds(
        Bandit,
        floor=st.floats(0.01, 0.3),
        cap=st.floats(0.4, 0.99),
        min_labels=st.just(20),
        update_s=st.just(1),
        **common,
    ),
)


@st.composite
def figures(draw_one: Any) -> VariantStats:
    requests, labels = draw_one(st.integers(0, 3000)), draw_one(st.integers(0, 3000))
    mean, gap = draw_one(st.floats(0.0, 1.0)), draw_one(st.floats(-1.0, 1.0))
    errors = draw_one(st.one_of(st.just(0), st.integers(0, requests)))
    return VariantStats(
        requests=requests,
        errors=errors,
        loss_n=labels,
        loss_sum=mean * labels,
        loss_sumsq=mean * mean * labels,
        gap_n=labels // 3,
        gap_sum=gap * (labels // 3),
        gap_sumsq=gap * gap * (labels // 3),
    )


comparisons = st.builds(Comparison, champion=figures(), challenger=figures())
events = st.one_of(
    st.tuples(st.just("see"), st.floats(0.0, 300.0), comparisons),
    st.tuples(
        st.sampled_from(["candidate", "approve", "promote", "abort", "rollback", "pause", "resume"]), st.floats(0, 9)
    ),
)


@given(policies, st.lists(events, max_size=25))
@settings(max_examples=150, deadline=None)
def test_tables_only_grow_name_one_champion_and_follow_the_state(policy: Any, happened: list[tuple[Any, ...]]) -> None:
    """Any sequence of observations and commands: no illegal state, no table that disagrees with it."""
    state = controller.adopt(EndpointState(name="e", phase=Preparing(since=0.0)), 1, now=0.0)[0]
    now, newest = 1.0, 1
    for what, passed, *rest in happened:
        now += passed
        before = state
        try:
            match what:
                case "see":
                    rolling = isinstance(state.phase, RollingOut)
                    seen = Observation(
                        now=now,
                        comparison=rest[0] if rolling else None,
                        confirmation=rest[0] if state.confirming else None,
                    )
                    state, actions = controller.step(state, policy, RetrainPolicy(on_drift=False), seen)
                case "candidate":
                    newest += 1
                    state, actions = controller.begin_rollout(state, policy, newest, f"e{newest}", now)
                case "approve":
                    state, actions = controller.approve(state, "")
                case "promote":
                    state, actions = controller.promote(state, policy, "", now)
                case "rollback":
                    state, actions = controller.rollback(state, policy, "", now)
                case "abort":
                    state, actions = controller.abort(state, "", now)
                case _:
                    state, actions = controller.pause(state, what == "pause")
        except controller.RolloutError:
            continue
        assert state.split is not None
        assert before.split is not None
        published = [action.split for action in actions if isinstance(action, Publish)]
        numbers = [split.number for split in published]
        assert numbers == sorted(set(numbers))
        assert all(number > before.split.number for number in numbers)
        assert state.split == (published[-1] if published else before.split)
        # One champion, and the table says which; the challenger is the rollout's or the one to confirm against.
        assert state.split.champion == state.champion
        assert state.champion not in state.split.warm
        if isinstance(state.phase, RollingOut):
            rollout = state.phase.rollout
            assert (state.split.challenger, state.split.weight, state.split.shadow) == (
                rollout.challenger,
                rollout.weight,
                rollout.shadow,
            )
            assert state.confirming is None
        elif state.confirming is not None:
            assert (state.split.challenger, state.split.shadow) == (state.confirming.previous, True)
            assert state.confirming.previous in state.split.warm
        else:
            assert (state.split.challenger, state.split.weight) == (None, 0.0)
        if state.champion != before.champion:
            assert any(getattr(action, "kind", "") in ("promoted", "rolled_back") for action in actions)


@given(st.lists(st.tuples(comparisons, st.floats(0, 200)), max_size=12), st.floats(0.01, 0.3), st.floats(0.4, 0.99))
@settings(max_examples=80, deadline=None)
def test_a_bandits_share_stays_between_floor_and_cap_until_it_ends(
    looks: list[tuple[Comparison, float]], floor: float, cap: float
) -> None:
    policy = Bandit(floor=floor, cap=cap, min_requests=60, update_s=1, max_wait_s=10_000)
    rollout = Rollout(champion=1, challenger=2, step=0, entered_at=0.0, event_id="e", weight=policy.stages[0].weight)
    now = 0.0
    for comparison, passed in looks:
        now += passed
        match decide(policy, rollout, comparison, now):
            case Advance(weight=weight, step=0, shadow=False):
                assert floor <= weight <= cap
                split = TrafficSplit(number=1, champion=1, challenger=2, weight=weight)
                assert sum(split.pick((i + 0.5) / 1000) == 2 for i in range(1000)) / 1000 <= cap + 0.001
                rollout = Rollout(champion=1, challenger=2, step=0, entered_at=now, event_id="e", weight=weight)
            case Promote() | Rollback():
                break
            case decision:
                assert isinstance(decision, Hold)


rewards = st.lists(st.floats(0.0, 1.0), max_size=40)


@given(rewards, rewards, st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_the_bandit_is_deterministic_symmetric_and_monotone_in_the_evidence(
    old: list[float], new: list[float], more: float
) -> None:
    champion, challenger = VariantStats().with_losses(old), VariantStats().with_losses(new)
    chance = probability_better(champion, challenger)
    assert 0.0 <= chance <= 1.0
    assert probability_better(champion, challenger) == chance
    assert abs(probability_better(challenger, champion) + chance - 1.0) < 2e-3
    # A reward never lowers the share and a loss never raises it; half of each may do either.
    assert probability_better(champion, challenger.with_losses([0.0])) >= chance - 1e-9
    assert probability_better(champion, challenger.with_losses([1.0])) <= chance + 1e-9
    # The same label with a smaller loss is at least as good for the challenger.
    assert (
        probability_better(champion, challenger.with_losses([more / 2]))
        >= probability_better(champion, challenger.with_losses([more])) - 1e-9
    )


def test_the_bandit_learns_which_one_is_better_from_late_rewards() -> None:
    """Rewards of 0.7 against 0.5 that arrive 200 requests late: in expectation the share goes to the better one."""
    good_share, bad_share = [], []
    for seed in range(20):
        for better, shares in ((0.7, good_share), (0.3, bad_share)):
            rng, late = random.Random(seed), []
            stats, weight = {1: VariantStats(), 2: VariantStats()}, 0.5
            for turn in range(40):
                for _ in range(25):
                    arm = 2 if rng.random() < weight else 1
                    late.append((arm, float(rng.random() > (better if arm == 2 else 0.5))))
                while len(late) > 200:
                    arm, loss = late.pop(0)
                    stats[arm] = stats[arm].with_losses([loss])
                weight = min(0.95, max(0.05, probability_better(stats[1], stats[2])))
                shares += [weight] if turn == 39 else []
    assert sum(good_share) / 20 > 0.85
    assert sum(bad_share) / 20 < 0.15


@given(st.text(min_size=1, max_size=30), st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_keys_side_depends_on_the_weight_alone(key: str, weights: list[float]) -> None:
    """Up and down again gives the same side again; while the weight falls a key only moves to the champion."""
    u = draw(key, "e/2")
    side = {w: TrafficSplit(number=1, champion=1, challenger=2, weight=w).pick(u) for w in weights}
    falling = [side[w] for w in sorted(weights, reverse=True)]
    assert falling == sorted(falling, reverse=True)


@given(st.floats(0.0, 1.0), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_realised_share_is_the_weight_within_sampling_error(weight: float, seed: int) -> None:
    rng, n = random.Random(seed), 4000
    split = TrafficSplit(number=1, champion=1, challenger=2, weight=weight)
    taken = sum(split.pick(rng.random()) == 2 for _ in range(n))
    # Five standard deviations of a binomial, and five requests for the corners where it is no bell.
    assert abs(taken - weight * n) <= 5 * (n * weight * (1 - weight)) ** 0.5 + 5
