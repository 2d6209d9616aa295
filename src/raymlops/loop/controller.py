"""The loop's decisions: one state and one observation in, one state and actions out.

Nothing here acts or reads a clock. The steward carries the actions out in order, so the whole loop also runs in a
unit test. Every action that changes what is served follows a :class:`Record` with its evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from raymlops.errors import RolloutError
from raymlops.loop.ports import JobStatus
from raymlops.loop.state import EndpointState, Monitoring, Retired, Retraining, RollingOut, Stage, Stopped
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.monitor import DriftReport
from raymlops.monitor.triage import Diagnosis
from raymlops.retrain import AskPerson, RetrainPolicy, Wait, decide_retrain
from raymlops.retrain_state import Trigger
from raymlops.search.probe import Probe
from raymlops.serving.analysis import Comparison
from raymlops.serving.rollout import Advance, Canary, Hold, Promote, Rollback, Rollout, decide
from raymlops.serving.traffic import TrafficSplit

RETIRE_AFTER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Append an event."""

    kind: str
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Give every gateway this traffic table."""

    split: TrafficSplit


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployChallenger:
    """Serve a version in isolation; later actions wait until it answers."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropChallenger:
    """Take an isolated version down."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAlias:
    """Point a registry alias at a version, or at nothing."""

    alias: str
    version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRetraining:
    """Start a retraining job for an event."""

    event_id: str


Action: TypeAlias = Record | Publish | DeployChallenger | DropChallenger | SetAlias | SubmitRetraining
Step: TypeAlias = tuple[EndpointState, tuple[Action, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the steward saw since the last step. ``labelled`` counts labelled rows since the champion's training.

    ``diagnosis``, ``burning``, ``forecast`` and ``probe`` are those of :func:`raymlops.retrain.decide_retrain`.
    """

    now: float
    comparison: Comparison | None = None
    report: DriftReport | None = None
    labelled: int = 0
    job: JobStatus | None = None
    job_log: str = ""
    diagnosis: Diagnosis | None = None
    burning: str = ""
    forecast: Forecast | None = None
    probe: Probe | None = None


def adopt(state: EndpointState, version: int, now: float) -> Step:
    """The first version of an endpoint: nothing to compare it with, so it serves at once."""
    split = _split(state, champion=version)
    retrain = state.retrain if state.retrain.trained_at is not None else state.retrain.trained(now)
    after = replace(state, phase=Monitoring(since=now), champion=version, split=split, retrain=retrain)
    return after, (
        Record(kind="deployed", body={"version": version}),
        SetAlias(alias="champion", version=version),
        Publish(split=split),
    )


def begin_rollout(state: EndpointState, canary: Canary, version: int, event_id: str, now: float) -> Step:
    """A version that passed the gate starts as a challenger.

    Raises
    ------
    RolloutError : another rollout is under way, or the endpoint is stopped
    """
    if state.champion is None:
        return adopt(_finished(state, event_id, "promoted", now), version, now)
    if isinstance(state.phase, RollingOut):
        busy = state.phase.rollout.challenger
        raise RolloutError(
            f"{state.name} is rolling out version {busy}: version {version} must wait. Promote or abort that rollout first."
        )
    if isinstance(state.phase, Stopped):
        raise RolloutError(f"{state.name} is stopped: run its pipeline again to start it.")
    rollout = Rollout(champion=state.champion, challenger=version, step=0, entered_at=now, event_id=event_id)
    split = _split(state, champion=state.champion, challenger=version, weight=canary.weights[0])
    after = replace(state, phase=RollingOut(rollout=rollout), split=split)
    body = {"version": version, "champion": state.champion, "weight": split.weight, "event_id": event_id}
    return after, (
        Record(kind="rollout_started", body=body),
        SetAlias(alias="challenger", version=version),
        DeployChallenger(version=version),
        Publish(split=split),
    )


def step(state: EndpointState, canary: Canary, policy: RetrainPolicy, seen: Observation) -> Step:
    """One turn: look after the rollout, the retraining in flight, and the question whether to retrain."""
    actions: list[Action] = []
    due = tuple(item for item in state.retired if item.drop_at <= seen.now)
    if due:
        state = replace(state, retired=tuple(item for item in state.retired if item not in due))
        actions += [DropChallenger(version=item.version) for item in due]
    for part in (_watch_rollout, _watch_job, _consider_retraining):
        state, more = part(state, canary, policy, seen)
        actions += more
    return state, tuple(actions)


def _watch_rollout(state: EndpointState, canary: Canary, _policy: RetrainPolicy, seen: Observation) -> Step:
    if not isinstance(state.phase, RollingOut) or state.phase.paused or seen.comparison is None:
        return state, ()
    rollout = state.phase.rollout
    decision = decide(canary, rollout, seen.comparison, seen.now)
    if seen.burning and isinstance(decision, (Advance, Promote)):
        # No change while the error budget burns; a rollback is what may put the fire out.
        return state, ()
    match decision:
        case Hold():
            return state, ()
        case Advance(step=index, weight=weight, reason=reason):
            split = _split(state, champion=rollout.champion, challenger=rollout.challenger, weight=weight)
            moved = replace(rollout, step=index, entered_at=seen.now)
            after = replace(state, phase=RollingOut(rollout=moved), split=split)
            body = {"version": rollout.challenger, "weight": weight, "reason": reason}
            return after, (Record(kind="rollout_advanced", body=body), Publish(split=split))
        case Promote(reason=reason):
            return promote(state, reason, seen.now)
        case Rollback(reason=reason):
            return abort(state, reason, seen.now)


def _watch_job(state: EndpointState, _canary: Canary, _policy: RetrainPolicy, seen: Observation) -> Step:
    job = state.retraining
    if job is None or seen.job in (None, "running", "unknown") or isinstance(state.phase, RollingOut):
        return state, ()
    # A job that ended without handing over a version or a refusal has failed, whatever its exit code says.
    body = {"event_id": job.event_id, "job": seen.job, "log": seen.job_log[-2000:]}
    return _finished(state, job.event_id, "failed", seen.now), (Record(kind="retrain_failed", body=body),)


def _consider_retraining(state: EndpointState, _canary: Canary, policy: RetrainPolicy, seen: Observation) -> Step:
    # A report of another version than the champion is news of the past.
    report = seen.report if seen.report is None or seen.report.version in (None, state.champion) else None
    state = replace(state, retrain=state.retrain.seen(report))
    if not isinstance(state.phase, Monitoring) or state.retraining is not None:
        return state, ()
    decision = decide_retrain(
        policy,
        state.retrain,
        report,
        seen.labelled,
        seen.now,
        diagnosis=seen.diagnosis,
        burning=seen.burning,
        forecast=seen.forecast,
        probe=seen.probe,
    )
    if isinstance(decision, Wait):
        return state, ()
    evidence = dict(decision.evidence)
    if isinstance(decision, AskPerson):
        after = replace(state, retrain=state.retrain.asked(decision.reason))
        return after, (Record(kind="needs_person", body={"reason": decision.reason, "evidence": evidence}),)
    return start_retraining(state, f"{decision.trigger}: {decision.reason}", evidence, seen.now, decision.trigger)


def start_retraining(
    state: EndpointState, reason: str, evidence: dict[str, Any], now: float, trigger: Trigger = "person"
) -> Step:
    """Ask for a retraining job. One that a person asks for is not held back, and answers a call for a person.

    Raises
    ------
    RolloutError : one is in flight, a rollout is under way, or nothing serves yet
    """
    if state.retraining is not None:
        raise RolloutError(f"{state.name} is already retraining ({state.retraining.event_id}): wait for it to end.")
    if not isinstance(state.phase, Monitoring):
        raise RolloutError(
            f"{state.name} is {_phase_word(state)}: a retraining starts only while a champion is monitored."
        )
    event_id = f"{state.name}-retrain-{state.turns + 1}-{int(now)}"
    job = Retraining(event_id=event_id, reason=reason, started_at=now)
    memory = state.retrain.cleared(now) if trigger == "person" else state.retrain
    after = replace(state, retraining=job, turns=state.turns + 1, retrain=memory.started(now, trigger))
    body = {"event_id": event_id, "reason": reason, "evidence": evidence}
    return after, (Record(kind="retrain_started", body=body), SubmitRetraining(event_id=event_id))


def at_stage(state: EndpointState, event_id: str, stage: Stage) -> EndpointState:
    """Note how far the retraining in flight is; an old job's word changes nothing."""
    if state.retraining is None or state.retraining.event_id != event_id:
        return state
    return replace(state, retraining=replace(state.retraining, stage=stage))


def refused(state: EndpointState, event_id: str, reason: str, now: float) -> Step:
    """A retraining whose candidate did not pass: the champion stays."""
    body = {"event_id": event_id, "reason": reason}
    return _finished(state, event_id, "refused", now), (Record(kind="candidate_refused", body=body),)


def promote(state: EndpointState, reason: str, now: float) -> Step:
    """Make the challenger the champion; the old champion stays loaded for a rollback."""
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {_phase_word(state)}: there is no challenger to promote.")
    rollout = state.phase.rollout
    split = _split(state, champion=rollout.challenger)
    after = replace(
        _finished(state, rollout.event_id, "promoted", now),
        phase=Monitoring(since=now),
        champion=rollout.challenger,
        previous=rollout.champion,
        split=split,
        retired=(*state.retired, Retired(version=rollout.challenger, drop_at=now + RETIRE_AFTER_S)),
    )
    body = {"version": rollout.challenger, "previous": rollout.champion, "reason": reason, "event_id": rollout.event_id}
    return after, (
        Record(kind="promoted", body=body),
        SetAlias(alias="champion", version=rollout.challenger),
        SetAlias(alias="challenger", version=None),
        Publish(split=split),
    )


def abort(state: EndpointState, reason: str, now: float) -> Step:
    """Take the challenger out of the traffic; the champion serves on."""
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {_phase_word(state)}: there is no rollout to abort.")
    rollout = state.phase.rollout
    split = _split(state, champion=rollout.champion)
    after = replace(
        _finished(state, rollout.event_id, "refused", now),
        phase=Monitoring(since=now),
        split=split,
        retired=(*state.retired, Retired(version=rollout.challenger, drop_at=now + RETIRE_AFTER_S)),
    )
    body = {"version": rollout.challenger, "champion": rollout.champion, "reason": reason, "event_id": rollout.event_id}
    return after, (
        Record(kind="rolled_back", body=body),
        Publish(split=split),
        SetAlias(alias="challenger", version=None),
    )


def rollback(state: EndpointState, reason: str, now: float) -> Step:
    """Out of a rollout: abort it. Otherwise: serve the champion before this one again.

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
    split = _split(state, champion=state.previous)
    after = replace(state, champion=state.previous, previous=state.champion, split=split, phase=Monitoring(since=now))
    body = {"version": state.champion, "champion": state.previous, "reason": reason}
    return after, (
        Record(kind="rolled_back", body=body),
        Publish(split=split),
        SetAlias(alias="champion", version=state.previous),
    )


def pause(state: EndpointState, paused: bool) -> Step:
    """Hold a rollout at its present weight, or let it go on."""
    if not isinstance(state.phase, RollingOut):
        raise RolloutError(f"{state.name} is {_phase_word(state)}: there is no rollout to pause.")
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
    return tuple(actions)


def _finished(
    state: EndpointState, event_id: str, outcome: Literal["promoted", "refused", "failed"], now: float
) -> EndpointState:
    """Close the retraining of an event; a version that a person's run brought has none, and only its age counts."""
    if state.retraining is None or state.retraining.event_id != event_id:
        return replace(state, retrain=state.retrain.trained(now)) if outcome == "promoted" else state
    return replace(state, retraining=None, retrain=state.retrain.finished(outcome, now))


def _split(state: EndpointState, champion: int, challenger: int | None = None, weight: float = 0.0) -> TrafficSplit:
    number = 1 if state.split is None else state.split.number + 1
    return TrafficSplit(number=number, champion=champion, challenger=challenger, weight=weight)


def _phase_word(state: EndpointState) -> str:
    words = {
        "Preparing": "being prepared",
        "RollingOut": "rolling out",
        "Monitoring": "monitoring",
        "Stopped": "stopped",
    }
    return words[type(state.phase).__name__]
