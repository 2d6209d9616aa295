"""The loop's decisions: one state and one observation in, one state and actions out. Those about training again are in
:mod:`raymlops.loop.retraining`.

Nothing here acts or reads a clock. The steward carries the actions out in order, so the whole loop also runs in a
unit test. Every action that changes what is served follows a :class:`Record` with its evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from raymlops.errors import RolloutError
from raymlops.loop.actions import Action as Action
from raymlops.loop.actions import DeployChallenger as DeployChallenger
from raymlops.loop.actions import DropChallenger as DropChallenger
from raymlops.loop.actions import Publish as Publish
from raymlops.loop.actions import Record as Record
from raymlops.loop.actions import SetAlias as SetAlias
from raymlops.loop.actions import Step
from raymlops.loop.actions import SubmitProbe as SubmitProbe
from raymlops.loop.actions import SubmitRetraining as SubmitRetraining
from raymlops.loop.observation import Observation as Observation
from raymlops.loop.retraining import at_stage as at_stage
from raymlops.loop.retraining import consider, finished, probe_action, watch_job
from raymlops.loop.retraining import refused as refused
from raymlops.loop.retraining import start_retraining as start_retraining
from raymlops.loop.state import EndpointState, Monitoring, Retired, RollingOut, Stopped, Warm, phase_word
from raymlops.retrain import RetrainPolicy
from raymlops.serving.policies import Policy
from raymlops.serving.rollout import Advance, Confirm, Confirming, Hold, Promote, Rollback, Rollout, confirm, decide
from raymlops.serving.traffic import TrafficSplit

RETIRE_AFTER_S = 10.0


def adopt(state: EndpointState, version: int, now: float) -> Step:
    """The first version of an endpoint: nothing to compare it with, so it serves at once."""
    retrain = state.retrain if state.retrain.trained_at is not None else state.retrain.trained(now)
    after = replace(state, phase=Monitoring(since=now), champion=version, retrain=retrain)
    after = replace(after, split=_split(after))
    return after, (
        Record(kind="deployed", body={"version": version}),
        SetAlias(alias="champion", version=version),
        *_published(after),
    )


def begin_rollout(state: EndpointState, policy: Policy, version: int, event_id: str, now: float) -> Step:
    """A version that passed the gate starts as a challenger. Being told again of one that serves already, or of the rollout
    under way, changes nothing: a call whose steward died before it answered is made again.

    Raises
    ------
    RolloutError : another rollout is under way, or the endpoint is stopped
    """
    if state.champion == version:
        return state, ()
    if state.champion is None:
        return adopt(finished(state, event_id, "promoted", now), version, now)
    if isinstance(state.phase, RollingOut):
        busy = state.phase.rollout.challenger
        if (busy, state.phase.rollout.event_id) == (version, event_id):
            return state, ()
        raise RolloutError(
            f"{state.name} is rolling out version {busy}: version {version} must wait. Promote or abort that rollout first."
        )
    if isinstance(state.phase, Stopped):
        raise RolloutError(f"{state.name} is stopped: run its pipeline again to start it.")
    stage = policy.stages[0]
    rollout = Rollout(
        champion=state.champion,
        challenger=version,
        step=0,
        entered_at=now,
        began_at=now,
        event_id=event_id,
        weight=stage.weight,
        shadow=stage.shadow,
    )
    closed, records = _unconfirmed(state, f"version {version} is next")
    split = _split(closed, challenger=version, weight=stage.weight, shadow=stage.shadow)
    retired = tuple(item for item in closed.retired if item.version != version)
    after = replace(closed, phase=RollingOut(rollout=rollout), split=split, retired=retired)
    body = {
        "version": version,
        "champion": state.champion,
        "policy": type(policy).__name__,
        "weight": stage.weight,
        "shadow": stage.shadow,
        "event_id": event_id,
    }
    return after, (
        *records,
        Record(kind="rollout_started", body=body),
        SetAlias(alias="challenger", version=version),
        DeployChallenger(version=version),
        Publish(split=split),
    )


def step(state: EndpointState, rollout: Policy, retrain: RetrainPolicy, seen: Observation) -> Step:
    """One turn: look after the rollout, the promotion to confirm, the retraining in flight, and whether to retrain."""
    actions: list[Action] = []
    champion = state.champion
    due = tuple(item for item in state.retired if item.drop_at <= seen.now)
    if due:
        state = replace(state, retired=tuple(item for item in state.retired if item not in due))
        actions += [DropChallenger(version=item.version) for item in due]
    turns: tuple[Callable[[EndpointState], Step], ...] = (
        lambda state: _watch_rollout(state, rollout, seen),
        lambda state: _watch_confirmation(state, rollout, seen),
        lambda state: watch_job(state, seen),
        # What was seen is the champion's before this turn: of one that has just taken over it says nothing.
        lambda state: consider(state, retrain, seen) if state.champion == champion else (state, ()),
        lambda state: _cool_down(state, seen.now),
    )
    for turn in turns:
        state, more = turn(state)
        actions += more
    return state, tuple(actions)


def _watch_rollout(state: EndpointState, policy: Policy, seen: Observation) -> Step:
    if not isinstance(state.phase, RollingOut) or state.phase.paused or seen.comparison is None:
        return state, ()
    rollout = state.phase.rollout
    decision = decide(policy, rollout, seen.comparison, seen.now)
    if seen.burning and isinstance(decision, (Advance, Promote)):
        # No change while the error budget burns; a rollback is what may put the fire out.
        return state, ()
    match decision:
        case Hold(approval=True, reason=reason) if not rollout.held:
            after = replace(state, phase=RollingOut(rollout=replace(rollout, held=True)))
            return after, (Record(kind="approval_awaited", body={"version": rollout.challenger, "reason": reason}),)
        case Hold():
            return state, ()
        case Advance(step=index, weight=weight, shadow=shadow, reason=reason):
            split = _split(state, challenger=rollout.challenger, weight=weight, shadow=shadow)
            moved = replace(
                rollout,
                step=index,
                entered_at=seen.now,
                weight=weight,
                shadow=shadow,
                held=rollout.held and index == rollout.step,
                approved=rollout.approved and index == rollout.step,
            )
            after = replace(state, phase=RollingOut(rollout=moved), split=split)
            body = {"version": rollout.challenger, "weight": weight, "shadow": shadow, "reason": reason}
            return after, (Record(kind="rollout_advanced", body=body), Publish(split=split))
        case Promote(reason=reason):
            return promote(state, policy, reason, seen.now)
        case Rollback(reason=reason):
            return abort(state, reason, seen.now)


def _watch_confirmation(state: EndpointState, policy: Policy, seen: Observation) -> Step:
    """A provisional promotion: confirmed or revoked when labels compared the two champions."""
    if state.confirming is None or seen.confirmation is None:
        return state, ()
    match confirm(state.confirming, seen.confirmation, seen.now):
        case Rollback(reason=reason):
            return rollback(state, policy, f"the promotion is revoked: {reason}", seen.now)
        case Confirm(reason=reason):
            after = replace(state, confirming=None)
            after = replace(after, split=_split(after))
            body = {"version": state.champion, "previous": state.confirming.previous, "reason": reason}
            return after, (Record(kind="promotion_confirmed", body=body), *_published(after))
        case Hold():
            return state, ()


def _cool_down(state: EndpointState, now: float) -> Step:
    """Let the gateways free former champions whose time is up; the traffic stays as it is."""
    needed = None if state.confirming is None else state.confirming.previous
    kept = tuple(item for item in state.warm if item.until > now or item.version == needed)
    if kept == state.warm or state.split is None:
        return state, ()
    versions = tuple(item.version for item in kept)
    split = replace(state.split, number=state.split.number + 1, warm=versions)
    return replace(state, warm=kept, split=split), (Publish(split=split),)


def promote(state: EndpointState, policy: Policy, reason: str, now: float) -> Step:
    """Make the challenger the champion. The old one stays loaded for ``keep_warm_s``; with ``confirm_labels`` it goes on
    answering copies until labels have confirmed or revoked the promotion.

    Raises
    ------
    RolloutError : no rollout is under way
    """
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {phase_word(state)}: there is no challenger to promote.")
    rollout = state.phase.rollout
    provisional = None
    if policy.confirm_labels:
        provisional = Confirming(
            champion=rollout.challenger,
            previous=rollout.champion,
            event_id=rollout.event_id,
            since=now,
            labels=policy.confirm_labels,
            until=now + float(policy.confirm_wait_s),
        )
    after = replace(
        finished(state, rollout.event_id, "promoted", now),
        phase=Monitoring(since=now),
        champion=rollout.challenger,
        previous=rollout.champion,
        warm=_warmed(state, rollout.champion, rollout.challenger, policy, now),
        confirming=provisional,
        retired=(*state.retired, Retired(version=rollout.challenger, drop_at=now + RETIRE_AFTER_S)),
    )
    copies = 0.0 if provisional is None else 1.0
    after = replace(
        after,
        split=_split(after, challenger=rollout.champion if provisional else None, weight=copies, shadow=bool(copies)),
    )
    body = {
        "version": rollout.challenger,
        "previous": rollout.champion,
        "reason": reason,
        "event_id": rollout.event_id,
        "provisional": provisional is not None,
    }
    return after, (
        Record(kind="promoted", body=body),
        SetAlias(alias="champion", version=rollout.challenger),
        SetAlias(alias="challenger", version=None),
        *_published(after),
    )


def abort(state: EndpointState, reason: str, now: float) -> Step:
    """Take the challenger out of the traffic; the champion serves on."""
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {phase_word(state)}: there is no rollout to abort.")
    rollout = state.phase.rollout
    after = replace(
        finished(state, rollout.event_id, "refused", now),
        phase=Monitoring(since=now),
        split=_split(state),
        retired=(*state.retired, Retired(version=rollout.challenger, drop_at=now + RETIRE_AFTER_S)),
    )
    body = {"version": rollout.challenger, "champion": rollout.champion, "reason": reason, "event_id": rollout.event_id}
    return after, (
        Record(kind="rolled_back", body=body),
        *_published(after),
        SetAlias(alias="challenger", version=None),
    )


def rollback(state: EndpointState, policy: Policy, reason: str, now: float) -> Step:
    """Out of a rollout: abort it. Otherwise: serve the champion before this one again, which revokes a provisional
    promotion. While the gateways keep that version warm it is a pointer swap; later they load it first.

    Raises
    ------
    RolloutError : there is no earlier champion
    """
    if isinstance(state.phase, RollingOut):
        return abort(state, reason, now)
    if state.previous is None or state.champion is None:
        raise RolloutError(
            f"{state.name} has no earlier champion to roll back to: version {state.champion} is its first."
        )
    after = replace(
        state,
        champion=state.previous,
        previous=state.champion,
        warm=_warmed(state, state.champion, state.previous, policy, now),
        confirming=None,
        phase=Monitoring(since=now),
        retrain=state.retrain.went_back(),
    )
    after = replace(after, split=_split(after))
    body = {"version": state.champion, "champion": state.previous, "reason": reason}
    return after, (
        Record(kind="rolled_back", body=body),
        *_published(after),
        SetAlias(alias="champion", version=state.previous),
    )


def approve(state: EndpointState, reason: str) -> Step:
    """Release the one step that waits for a person. The analysis still has its word: a challenger that has failed since
    is rolled back all the same.

    Raises
    ------
    RolloutError : no step waits
    """
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {phase_word(state)}: there is no rollout to approve.")
    rollout = state.phase.rollout
    if not rollout.held:
        raise RolloutError(
            f"No step of {state.name}'s rollout waits for approval: version {rollout.challenger} has to pass the analysis "
            'first, and its policy to say approval="manual".'
        )
    after = replace(state, phase=replace(state.phase, rollout=replace(rollout, held=False, approved=True)))
    return after, (Record(kind="approved", body={"version": rollout.challenger, "reason": reason}),)


def pause(state: EndpointState, paused: bool) -> Step:
    """Hold a rollout at its present weight, or let it go on."""
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {phase_word(state)}: there is no rollout to pause.")
    after = replace(state, phase=replace(state.phase, paused=paused))
    return after, (Record(kind="paused" if paused else "resumed", body={"version": state.phase.rollout.challenger}),)


def resume(state: EndpointState, now: float) -> Step:
    """Let a paused rollout go on; or, where the policy asked for a person, let it start retrainings again."""
    if isinstance(state.phase, RollingOut) or state.retrain.needs_person is None:
        return pause(state, False)
    after = replace(state, retrain=state.retrain.cleared(now))
    return after, (Record(kind="resumed", body={"reason": "a person took note", "asked": state.retrain.needs_person}),)


def restore(state: EndpointState) -> tuple[Action, ...]:
    """What makes the world agree with the state again after a crash; doing it twice does no harm."""
    actions: list[Action] = []
    if state.champion is not None:
        actions.append(SetAlias(alias="champion", version=state.champion))
    if isinstance(state.phase, RollingOut):
        actions.append(DeployChallenger(version=state.phase.rollout.challenger))
    if state.split is not None:
        actions.append(Publish(split=state.split))
    if state.retraining is not None and state.retraining.stage == "submitted":
        actions.append(SubmitRetraining(event_id=state.retraining.event_id))
    if state.retrain.probing is not None and state.champion is not None:
        actions.append(probe_action(state, state.retrain.probing.id, state.retrain.probing.episode is not None))
    return tuple(actions)


def _split(
    state: EndpointState, challenger: int | None = None, weight: float = 0.0, shadow: bool = False
) -> TrafficSplit:
    """The next table: the state's champion, its warm versions, and this challenger."""
    assert state.champion is not None
    return TrafficSplit(
        number=1 if state.split is None else state.split.number + 1,
        champion=state.champion,
        challenger=challenger,
        weight=weight,
        shadow=shadow,
        warm=tuple(item.version for item in state.warm),
    )


def _published(state: EndpointState) -> tuple[Action, ...]:
    return () if state.split is None else (Publish(split=state.split),)


def _warmed(state: EndpointState, old: int, new: int, policy: Policy, now: float) -> tuple[Warm, ...]:
    """Warm versions after ``new`` took over from ``old``."""
    others = tuple(item for item in state.warm if item.version not in (old, new))
    return (*others, Warm(version=old, until=now + float(policy.keep_warm_s)))


def _unconfirmed(state: EndpointState, reason: str) -> Step:
    """End the wait for a confirmation without one."""
    if state.confirming is None:
        return state, ()
    body = {"version": state.champion, "previous": state.confirming.previous, "reason": f"not decided: {reason}"}
    return replace(state, confirming=None), (Record(kind="promotion_confirmed", body=body),)
