"""What to do next with a rollout: one decision from the policy, how far it is, and what both versions did.

Pure functions of values and ``now``; nothing here acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from raymlops.serving.policies import ABTest, Bandit, Policy, Shadow
from raymlops.serving.policies import Canary as Canary

if TYPE_CHECKING:
    from raymlops.serving.analysis import Comparison, Verdict

_LEAST_CHANGE = 0.01  # of a bandit's share; smaller ones are not worth a table


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout under way.

    Attributes
    ----------
    step : index of the policy's stage, entered at ``entered_at`` (wall time in seconds)
    began_at : wall time of the first stage
    weight, shadow : the challenger's share now, and whether of copies
    held : a step waits for a person
    approved : the next step was approved
    """

    champion: int
    challenger: int
    step: int
    entered_at: float
    event_id: str
    began_at: float = 0.0
    weight: float = 0.0
    shadow: bool = False
    held: bool = False
    approved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirming:
    """A provisional promotion since ``since``: ``previous`` answers copies of what ``champion`` answers.

    Attributes
    ----------
    labels : labelled rows with both answers that decide
    until : wall time after which the promotion stands without them
    """

    champion: int
    previous: int
    event_id: str
    since: float
    labels: int
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stay as it is. With ``approval`` only a person's word is missing for the next step."""

    reason: str
    approval: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Go to stage ``step``, or to another share within it."""

    step: int
    weight: float
    reason: str
    shadow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make the challenger the champion."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """Take the challenger out of the traffic."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """A provisional promotion stands."""

    reason: str


Decision: TypeAlias = Hold | Advance | Promote | Rollback


def decide(policy: Policy, rollout: Rollout, comparison: Comparison, now: float) -> Decision:
    """What to do with a rollout at ``now`` (wall time in seconds), given what both versions did since it began."""
    verdict = comparison.verdict(policy.min_requests, max_slowdown=policy.max_slowdown)
    if verdict.outcome == "FAIL":
        return Rollback(reason=verdict.reason)
    match policy:
        case ABTest():
            decision = _ab_test(policy, rollout, comparison, verdict, now)
        case Bandit():
            decision = _bandit(policy, rollout, comparison, verdict, now)
        case _:
            decision = _stages(policy, rollout, comparison, verdict, now)
    # A bandit moves its share by itself; what a person approves there is the end of it.
    asked = isinstance(decision, Promote) or (isinstance(decision, Advance) and decision.step != rollout.step)
    if policy.approval == "manual" and asked and not rollout.approved:
        return Hold(reason=f"{decision.reason}; waits for a person to approve it", approval=True)
    return decision


def confirm(confirming: Confirming, comparison: Comparison, now: float) -> Hold | Confirm | Rollback:
    """What to do with a provisional promotion, given the losses of both on the same rows.

    It is revoked as soon as the new champion's loss is higher beyond chance (:meth:`Comparison.pairs`); when the asked
    number of labelled pairs is there, by whether its mean loss is higher than tolerated.
    """
    from raymlops.serving.analysis import LOSS_TOLERANCE

    verdict, new = comparison.pairs(confirming.labels), comparison.challenger
    if verdict.outcome == "FAIL":
        return Rollback(reason=verdict.reason)
    if new.gap_n >= confirming.labels:
        worse = new.gap_sum > LOSS_TOLERANCE * new.gap_n
        return Rollback(reason=verdict.reason) if worse else Confirm(reason=verdict.reason)
    if now >= confirming.until:
        return Confirm(reason=f"no more than {new.gap_n} of {confirming.labels} labelled pairs came, none against it")
    return Hold(reason=f"{new.gap_n} of {confirming.labels} labelled pairs")


def _stages(policy: Policy, rollout: Rollout, comparison: Comparison, verdict: Verdict, now: float) -> Decision:
    """Canary, blue-green and shadow: stage by stage, each held for its time and passed on a PASS."""
    hold_s, held = float(policy.hold_s), now - rollout.entered_at
    if held < hold_s:
        return Hold(reason=f"at this weight for {max(0.0, held):.0f} of {hold_s:g} s")
    if verdict.outcome == "PASS" and isinstance(policy, Shadow) and policy.min_labels:
        verdict = comparison.pairs(policy.min_labels)
    if verdict.outcome == "PASS":
        following = rollout.step + 1
        if following < len(policy.stages):
            stage = policy.stages[following]
            return Advance(step=following, weight=stage.weight, shadow=stage.shadow, reason=verdict.reason)
        return Promote(reason=verdict.reason)
    return _in_time(policy, rollout, verdict.reason, rollout.entered_at, now)


def _ab_test(policy: ABTest, rollout: Rollout, comparison: Comparison, verdict: Verdict, now: float) -> Decision:
    better = comparison.better(policy.min_labels)
    if better.outcome == "FAIL":
        return Rollback(reason=better.reason)
    if better.outcome == "PASS" and verdict.outcome == "PASS" and now - rollout.began_at >= float(policy.hold_s):
        return Promote(reason=better.reason)
    return _in_time(policy, rollout, better.reason, rollout.began_at, now)


def _bandit(policy: Bandit, rollout: Rollout, comparison: Comparison, verdict: Verdict, now: float) -> Decision:
    from raymlops.serving.bandit import probability_better

    old, new = comparison.champion, comparison.challenger
    if verdict.outcome != "PASS":
        return _in_time(policy, rollout, verdict.reason, rollout.began_at, now)
    if now - rollout.entered_at < float(policy.update_s):
        return Hold(reason=f"share {rollout.weight:.2f}")
    chance = probability_better(old, new)
    reason = f"the challenger is better with probability {chance:.3f} (Bayesian, {new.loss_n} and {old.loss_n} labels)"
    enough = min(old.loss_n, new.loss_n) >= policy.min_labels and now - rollout.began_at >= float(policy.hold_s)
    if enough and chance > policy.confidence:
        return Promote(reason=reason)
    if enough and chance < 1.0 - policy.confidence:
        return Rollback(reason=reason)
    weight = min(policy.cap, max(policy.floor, chance))
    if abs(weight - rollout.weight) >= _LEAST_CHANGE:
        return Advance(step=rollout.step, weight=weight, reason=reason)
    return _in_time(policy, rollout, reason, rollout.began_at, now)


def _in_time(policy: Policy, rollout: Rollout, reason: str, since: float, now: float) -> Decision:
    """Go on, until the time is up; a rollout that a person was asked about waits for the answer."""
    if now - since >= float(policy.max_wait_s) and not (rollout.held or rollout.approved):
        return Rollback(reason=f"no verdict within {float(policy.max_wait_s):g} s: {reason}")
    return Hold(reason=reason)
