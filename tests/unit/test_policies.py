"""Blue-green, shadow, A/B test and bandit: what each decides, from values alone. The canary has test_rollout.py."""

from __future__ import annotations

from typing import Any

import pytest

from raymlops.errors import ConfigError
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.bandit import probability_better
from raymlops.serving.policies import POLICIES, ABTest, Bandit, BlueGreen, Canary, Shadow
from raymlops.serving.rollout import (
    Advance,
    Confirm,
    Confirming,
    Hold,
    Promote,
    Rollback,
    Rollout,
    confirm,
    decide,
)

OLD = VariantStats(requests=1000)


def rollout(**changed: Any) -> Rollout:
    given = {"champion": 1, "challenger": 2, "step": 0, "entered_at": 1000.0, "began_at": 1000.0, "event_id": "e"}
    return Rollout(**{**given, **changed})


def seen(requests: int = 500, errors: int = 0, old: VariantStats = OLD, new: VariantStats | None = None) -> Comparison:
    return Comparison(champion=old, challenger=(new or VariantStats()) + VariantStats(requests=requests, errors=errors))


def losses(mean: float, n: int) -> VariantStats:
    return VariantStats().with_losses([mean] * n)


def gaps(mean: float, n: int) -> VariantStats:
    return VariantStats().with_gaps([mean] * n)


@pytest.mark.parametrize(
    ("policy", "field", "value", "sentence"),
    [
        (Shadow, "share", 0.0, "share=0.0 is not a share: give a number above 0 and up to 1."),
        (Shadow, "min_labels", -1, "min_labels=-1 cannot be: give a whole number from 0."),
        (ABTest, "share", 1.0, "share=1.0 is not a share: give a number above 0 and below 1."),
        (ABTest, "share", float("nan"), "share=nan is not a share"),
        (ABTest, "min_labels", 0, "give a whole number from 1"),
        (Bandit, "floor", 0.0, "floor=0.0 is not a share"),
        (Bandit, "cap", 0.05, "cap=0.05 is not a share: give a number above 0.05 and below 1."),
        (Bandit, "confidence", 0.4, "confidence=0.4 is not a share: give a number above 0.5 and below 1."),
        (Bandit, "update_s", "soon", "update_s='soon' is not a duration"),
        (BlueGreen, "keep_warm_s", -1, "keep_warm_s=-1 is not a duration"),
        (BlueGreen, "confirm_labels", True, "confirm_labels=True cannot be"),
    ],
)
def test_what_cannot_be_is_refused(policy: Any, field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(**{field: value})
    assert sentence in caught.value.message


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_rolls_a_broken_challenger_back_at_once(policy: Any) -> None:
    assert decide(policy(), rollout(), seen(20, 20), 1000.1) == Rollback(reason="20 of its 20 requests failed")


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_up_when_nothing_is_seen(policy: Any) -> None:
    made = policy(max_wait_s=100, hold_s=1)
    assert isinstance(decide(made, rollout(), seen(0), 1099.0), Hold)
    assert isinstance(decide(made, rollout(), seen(0), 1100.0), Rollback)


def test_blue_green_previews_switches_and_bakes() -> None:
    policy = BlueGreen(hold_s=60)
    first, second = policy.stages
    assert (first.weight, first.shadow, second.weight, second.shadow) == (1.0, True, 1.0, False)
    assert isinstance(decide(policy, rollout(), seen(), 1059.0), Hold)
    switch = decide(policy, rollout(), seen(), 1060.0)
    assert isinstance(switch, Advance)
    assert (switch.weight, switch.shadow) == (1.0, False)
    assert isinstance(decide(policy, rollout(step=1, entered_at=1060.0), seen(), 1119.0), Hold)
    assert isinstance(decide(policy, rollout(step=1, entered_at=1060.0), seen(), 1120.0), Promote)
    assert isinstance(decide(policy, rollout(step=1, entered_at=1060.0), seen(100, 60), 1061.0), Rollback)
    assert BlueGreen(preview=False).stages == (second,)


def test_a_shadow_is_promoted_on_clean_copies() -> None:
    assert isinstance(decide(Shadow(), rollout(), seen(), 1030.0), Promote)


def test_a_shadow_with_labels_waits_for_the_pairs() -> None:
    policy = Shadow(min_labels=1000)
    assert isinstance(decide(policy, rollout(), seen(), 1030.0), Hold)
    assert isinstance(decide(policy, rollout(), seen(new=gaps(-0.01, 999)), 1030.0), Hold)
    assert isinstance(decide(policy, rollout(), seen(new=gaps(-0.01, 4000)), 1030.0), Promote)
    worse = decide(policy, rollout(), seen(new=gaps(0.1, 4000)), 1030.0)
    assert isinstance(worse, Rollback)
    assert "against the champion on the same 4000 rows" in worse.reason


def test_pairs_tell_with_fewer_labels_than_two_samples() -> None:
    """The same models, the same losses, once as pairs and once as two samples that do not know of each other."""
    hard = [0.9 if i % 3 == 0 else 0.05 for i in range(1500)]
    old, new = VariantStats(requests=1500).with_losses(hard), [loss + 0.06 for loss in hard]
    apart = Comparison(champion=old, challenger=VariantStats(requests=1500).with_losses(new))
    paired = Comparison(champion=old, challenger=VariantStats(requests=1500).with_gaps([0.06] * 1500))
    assert apart.verdict(100).outcome == "PASS"
    assert paired.verdict(100).outcome == "FAIL"


def test_an_ab_test_ends_by_the_labels() -> None:
    policy = ABTest(hold_s=10, min_labels=200)
    assert policy.stages[0].weight == 0.5
    old = OLD + losses(0.3, 3000)
    assert isinstance(decide(policy, rollout(), seen(old=old, new=losses(0.2, 199)), 1100.0), Hold)
    assert isinstance(decide(policy, rollout(), seen(old=old, new=losses(0.2, 3000)), 1100.0), Promote)
    assert isinstance(decide(policy, rollout(), seen(old=old, new=losses(0.4, 3000)), 1100.0), Rollback)
    same = decide(policy, rollout(), seen(old=old, new=losses(0.3, 3000)), 1100.0)
    assert isinstance(same, Hold)
    assert same.reason.endswith("not yet told from chance")
    over = decide(policy, rollout(), seen(old=old, new=losses(0.3, 3000)), 1000.0 + 7 * 86400)
    assert isinstance(over, Rollback)
    assert over.reason.startswith("no verdict within 604800 s")


def test_a_bandit_follows_the_rewards_within_its_bounds() -> None:
    policy = Bandit(floor=0.1, cap=0.8, confidence=0.99, min_labels=50, update_s=5, hold_s=0)
    now, at = 1100.0, rollout(weight=0.1)
    assert isinstance(decide(policy, at, seen(50), now), Hold)  # it is not shown yet that it works
    first = decide(policy, at, seen(), now)
    assert isinstance(first, Advance)
    assert (first.step, round(first.weight, 3)) == (0, 0.5)  # no labels: both may be better
    good = decide(policy, at, seen(old=OLD + losses(0.5, 30), new=losses(0.2, 30)), now)
    assert isinstance(good, Advance)
    assert good.weight == 0.8
    bad = decide(policy, rollout(weight=0.5), seen(old=OLD + losses(0.2, 30), new=losses(0.5, 30)), now)
    assert isinstance(bad, Advance)
    assert bad.weight == 0.1
    assert isinstance(decide(policy, at, seen(old=OLD + losses(0.5, 100), new=losses(0.2, 100)), now), Promote)
    assert isinstance(decide(policy, at, seen(old=OLD + losses(0.2, 100), new=losses(0.5, 100)), now), Rollback)


def test_a_bandit_changes_its_share_only_so_often() -> None:
    policy = Bandit(update_s=5)
    assert isinstance(decide(policy, rollout(entered_at=1100.0), seen(), 1104.0), Hold)
    assert isinstance(decide(policy, rollout(entered_at=1100.0), seen(), 1105.0), Advance)


def test_the_probability_of_being_better_is_the_known_one() -> None:
    """Two uniform posteriors are even; Beta(2, 1) beats Beta(1, 1) with 2/3, Beta(1, 2) with 1/3."""
    nothing = VariantStats()
    assert probability_better(nothing, nothing) == pytest.approx(0.5, abs=1e-3)
    assert probability_better(nothing, losses(0.0, 1)) == pytest.approx(2 / 3, abs=1e-3)
    assert probability_better(nothing, losses(1.0, 1)) == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("policy", [Canary(approval="manual"), BlueGreen(approval="manual", hold_s=30)])
def test_manual_approval_holds_every_step(policy: Any) -> None:
    for step in (0, 1):
        held = decide(policy, rollout(step=step), seen(), 1030.0)
        assert isinstance(held, Hold)
        assert held.approval
        assert held.reason.endswith("waits for a person to approve it")
    assert isinstance(decide(policy, rollout(approved=True), seen(), 1030.0), Advance)
    assert isinstance(decide(policy, rollout(step=1, approved=True), seen(), 1030.0), Promote)
    assert isinstance(decide(policy, rollout(approved=True), seen(500, 400), 1030.0), Rollback)


def test_waiting_for_a_person_is_no_reason_to_give_up() -> None:
    policy = Canary(approval="manual", max_wait_s=60)
    assert isinstance(decide(policy, rollout(held=True), seen(5), 9000.0), Hold)
    assert isinstance(decide(policy, rollout(), seen(5), 9000.0), Rollback)


def test_a_bandit_moves_its_share_without_asking() -> None:
    assert isinstance(decide(Bandit(approval="manual", update_s=1), rollout(weight=0.05), seen(), 1030.0), Advance)


CONFIRMING = Confirming(champion=2, previous=1, event_id="e", since=0.0, labels=500, until=3600.0)


@pytest.mark.parametrize(
    ("mean", "n", "now", "kind"),
    [
        (0.0, 499, 10.0, Hold),
        (0.0, 500, 10.0, Confirm),
        (-0.3, 500, 10.0, Confirm),
        (0.05, 500, 10.0, Rollback),  # the asked number of labels is there, and it is worse than tolerated
        (0.5, 100, 10.0, Rollback),  # long before that it is worse beyond chance
        (0.0, 0, 3599.0, Hold),
        (0.0, 0, 3600.0, Confirm),
    ],
)
def test_a_provisional_promotion_is_decided_by_labels(mean: float, n: int, now: float, kind: type[Any]) -> None:
    assert isinstance(confirm(CONFIRMING, Comparison(champion=OLD, challenger=gaps(mean, n)), now), kind)
