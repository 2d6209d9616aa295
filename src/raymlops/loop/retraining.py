"""The controller's decisions about training again: probes, the start of a retraining, and how it ended.

Pure, as :mod:`raymlops.loop.controller` is; whether to train is :func:`raymlops.retrain.decide_retrain`'s to say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from raymlops.errors import RolloutError
from raymlops.loop.actions import Record, Step, SubmitProbe, SubmitRetraining
from raymlops.loop.observation import Observation
from raymlops.loop.ports import ProbeFailed
from raymlops.loop.state import EndpointState, Monitoring, Retraining, RollingOut, Stage, phase_word
from raymlops.retrain import AskPerson, ProbeFirst, RetrainPolicy, Wait, decide_retrain
from raymlops.retrain_state import ALARMS, Trigger

SUBMIT_S = 60.0
"""So long a retraining that was decided on may have no job yet: the state is saved first, and the job submitted then."""


def watch_job(state: EndpointState, seen: Observation) -> Step:
    job = state.retraining
    if job is None or seen.job in (None, "running", "unknown") or isinstance(state.phase, RollingOut):
        return state, ()
    if seen.job == "missing" and seen.now - job.started_at < SUBMIT_S:
        return state, ()
    # A job that ended without handing over a version or a refusal has failed, whatever its exit code says.
    body = {"event_id": job.event_id, "job": seen.job, "log": seen.job_log[-2000:]}
    return finished(state, job.event_id, "failed", seen.now), (Record(kind="retrain_failed", body=body),)


def _take_probe(state: EndpointState, retrain: RetrainPolicy, seen: Observation) -> Step:
    """What a probe has shown is the policy's memory, and stands in the history."""
    probing, found = state.retrain.probing, seen.examination
    if probing is None or found is None:
        return state, ()
    body: dict[str, Any] = {"probe_id": probing.id, "rows": probing.rows}
    if isinstance(found, ProbeFailed):
        after = replace(state, retrain=state.retrain.probed(None, retrain.refit_cost, retrain.least_excess))
        return after, (Record(kind="probe_failed", body={**body, "reason": found.reason}),)
    after = replace(state, retrain=state.retrain.probed(found.probe, retrain.refit_cost, retrain.least_excess))
    verdict = "a refit may gain" if found.probe.gains else "a refit would gain nothing"
    body |= {"reason": f"{verdict}: {found.probe.note}", "lost_rows": after.retrain.pace.lost, **found.to_dict()}
    return after, (Record(kind="probed", body=body),)


def consider(state: EndpointState, retrain: RetrainPolicy, seen: Observation) -> Step:
    # A report of another version than the champion is news of the past.
    report = seen.report if seen.report is None or seen.report.version in (None, state.champion) else None
    state = replace(state, retrain=state.retrain.seen(report))
    state, records = _take_probe(state, retrain, seen)
    if not isinstance(state.phase, Monitoring) or state.retraining is not None:
        return state, records
    decision = decide_retrain(
        retrain,
        state.retrain,
        report,
        seen.labelled,
        seen.now,
        diagnosis=seen.diagnosis,
        burning=seen.burning,
        forecast=seen.forecast,
    )
    held = decision.held_by if isinstance(decision, Wait) else ""
    if held and held != state.retrain.held_by:
        records = (*records, Record(kind="retrain_held", body={"reason": decision.reason}))
    state = replace(state, retrain=replace(state.retrain, held_by=held))
    if isinstance(decision, Wait):
        return state, records
    if isinstance(decision, ProbeFirst):
        after, asked = _ask_probe(state, decision, seen.labelled)
        return after, (*records, *asked)
    evidence = dict(decision.evidence)
    if isinstance(decision, AskPerson):
        after = replace(state, retrain=state.retrain.asked(decision.reason))
        return after, (*records, Record(kind="needs_person", body={"reason": decision.reason, "evidence": evidence}))
    reason = f"{decision.trigger}: {decision.reason}"
    after, actions = start_retraining(state, reason, evidence, seen.now, decision.trigger)
    return after, (*records, *actions)


def _ask_probe(state: EndpointState, decision: ProbeFirst, labelled: int) -> Step:
    probe_id = f"{state.name}-probe-{state.retrain.probes + 1}"
    after = replace(state, retrain=state.retrain.probe_asked(probe_id, labelled))
    return after, (probe_action(after, probe_id, decision.trigger in ALARMS),)


def probe_action(state: EndpointState, probe_id: str, alarmed: bool) -> SubmitProbe:
    episode = state.retrain.episode
    assert state.champion is not None
    change_at = episode.began_at if alarmed and episode is not None else None
    return SubmitProbe(probe_id=probe_id, version=state.champion, change_at=change_at)


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
            f"{state.name} is {phase_word(state)}: a retraining starts only while a champion is monitored."
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
    return finished(state, event_id, "refused", now), (Record(kind="candidate_refused", body=body),)


def finished(
    state: EndpointState, event_id: str, outcome: Literal["promoted", "refused", "failed"], now: float
) -> EndpointState:
    """Close the retraining of an event; a version that a person's run brought has none, and only its age counts."""
    if state.retraining is None or state.retraining.event_id != event_id:
        return replace(state, retrain=state.retrain.trained(now)) if outcome == "promoted" else state
    return replace(state, retraining=None, retrain=state.retrain.finished(outcome, now))
