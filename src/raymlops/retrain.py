"""When to train again: reports, age, labels, schedule, forecast and budget in; a decision out. Pure; others carry it out.

Two things start a retraining by themselves. Harm: measured once, or estimated in two windows running; data that merely
moved never does. And cost: a champion that ages slowly never alarms, and is replaced when what it has lost against a fresh
model has reached what a retraining costs (``monitor/pace.py``). Both first ask for a probe, a cheap refit compared with the
champion on the newest labels; where that shows no gain nothing is trained. An episode of drift has one retraining; trouble
that goes on after one that promoted nothing is a new episode, which begins with a later alarm and needs a probe of its own.
What the calendar asks for (age, labels, schedule, forecast) is trained whatever a probe would say, but a candidate that is
refused then says only that the champion is still good, so it neither backs off nor calls a person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from raymlops.clock import seconds
from raymlops.errors import ConfigError
from raymlops.retrain_state import ALARMS, KEPT, Episode, RetrainState, Trigger, Turn
from raymlops.schedule import Cron

if TYPE_CHECKING:
    from raymlops.monitor.forecast import Forecast
    from raymlops.monitor.report import DriftReport
    from raymlops.monitor.triage import Diagnosis

__all__ = [
    "AskPerson",
    "Episode",
    "ProbeFirst",
    "Retrain",
    "RetrainDecision",
    "RetrainPolicy",
    "RetrainState",
    "Turn",
    "Wait",
    "decide_retrain",
]

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainPolicy:
    """What may start a retraining, and how often at most.

    Attributes
    ----------
    on_harm : measured loss above what is accepted (severity 4)
    on_drift : the score moved in two windows running while there are no labels to measure the loss (severity 3)
    on_forecast : the age at which earlier versions went bad has come (see ``monitor/forecast.py``)
    refit_cost : what a retraining costs, in labelled rows' worth of the usual loss: with 30, and a champion that loses 10 %
        more than a fresh model would, it pays after 300 rows. ``None`` weighs no cost, so only alarms and the calendar ask
    least_excess : a champion that loses less than this more than a fresh model would is kept, however many rows that is lost
        over: the cost asks for nothing then
    probe : ask for a cheap refit before an alarm or the cost starts a retraining. Without it alarms start at once, and the
        cost never
    every : age at which the champion is trained again whatever was seen; ``None`` never
    every_labels : new labelled rows after which the champion is trained again whatever was seen; ``None`` never
    schedule : five-field cron expression (UTC) at which the champion is trained again; ``None`` never
    cooldown : least time between two starts; durations are seconds or strings such as ``"1h"``
    backoff, max_cooldown : each fruitless retraining in a row multiplies the cooldown by ``backoff``, up to
        ``max_cooldown`` (or ``cooldown``, if that is longer); 1 keeps it as it is
    max_per_day : starts in any 24 hours
    min_labels : new labelled rows that must be there, since the champion's first row or the last attempt
    search : ``"champion"`` keeps the champion's family and parameters and chooses only how much of the past to learn
        from; ``"full"`` searches anew, which a short validation block makes noisy
    window : rows to train on, for the loop: ``"recent"`` lets the loop choose the newest stretch by back-test (all, a
        sliding share, or since the change), ``"all"``, or a count
    give_up_after : fruitless retrainings in a row after which the policy asks for a person and starts none by itself

    Raises
    ------
    ConfigError : names the field, what was given and what would be accepted
    """

    on_drift: bool = True
    on_harm: bool = True
    on_forecast: bool = False
    refit_cost: float | None = 30.0
    least_excess: float = 0.02
    probe: bool = True
    every: float | str | None = None
    every_labels: int | None = None
    schedule: str | None = None
    cooldown: float | str = "1h"
    backoff: float = 2.0
    max_cooldown: float | str = "1d"
    max_per_day: int = 4
    min_labels: int = 500
    window: Literal["recent", "all"] | int = "recent"
    search: Literal["champion", "full"] = "champion"
    give_up_after: int = 3

    def __post_init__(self) -> None:
        for name in ("on_drift", "on_harm", "on_forecast", "probe"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a yes or no: give True or False.")
        if self.every_labels is not None:
            _whole("every_labels", self.every_labels)
        for name in ("max_per_day", "min_labels", "give_up_after"):
            _whole(name, getattr(self, name))
        if self.max_per_day > KEPT:
            raise ConfigError(f"max_per_day={self.max_per_day!r} is more than are remembered: give at most {KEPT}.")
        for name in ("cooldown", "max_cooldown"):
            seconds(getattr(self, name), name)
        if not _number(self.backoff) or not 1.0 <= self.backoff <= 100.0:
            raise ConfigError(f"backoff={self.backoff!r} cannot be used: give a factor from 1 to 100.")
        if self.every is not None and seconds(self.every, "every") <= 0:
            raise ConfigError(f"every={self.every!r} would retrain without end: give more than 0 seconds, or None.")
        if self.refit_cost is not None and (not _number(self.refit_cost) or not 0 < self.refit_cost < math.inf):
            raise ConfigError(
                f"refit_cost={self.refit_cost!r} cannot be weighed: give a number of rows above 0, or None for no cost."
            )
        if not _number(self.least_excess) or not 0 <= self.least_excess < math.inf:
            raise ConfigError(
                f"least_excess={self.least_excess!r} cannot be used: give a share of the loss, 0 or more."
            )
        if self.schedule is not None:
            Cron.parse(self.schedule)
        if self.search not in ("champion", "full"):
            raise ConfigError(f"search={self.search!r} is not known: give 'champion' or 'full'.")
        whole = isinstance(self.window, int) and not isinstance(self.window, bool) and self.window > 0
        if self.window not in ("recent", "all") and not whole:
            raise ConfigError(
                f"window={self.window!r} is not known: give 'recent', 'all' or a positive number of rows."
            )

    def pause_s(self, fruitless: int) -> float:
        """Least seconds between two starts after ``fruitless`` retrainings in a row that promoted nothing."""
        base = seconds(self.cooldown, "cooldown")
        # 64 doublings are past any cap, and a float overflows at about a thousand.
        return min(base * self.backoff ** min(fruitless, 64), max(base, seconds(self.max_cooldown, "max_cooldown")))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value!r} cannot be used: give a whole number of at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Train again, now."""

    trigger: Trigger
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFirst:
    """Fit a cheap model on older labels and compare it with the champion on the newest ones; then decide."""

    trigger: Trigger
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Do not train.

    Attributes
    ----------
    until : wall time at which time alone would change that, ``None`` when it would not
    held_by : of something that asks for a retraining and is held back on purpose, what holds it; else ``""``
    """

    until: float | None
    reason: str
    held_by: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPerson:
    """Retraining does not help: tell a person, and start none until one says so. The champion serves on."""

    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


RetrainDecision: TypeAlias = Retrain | ProbeFirst | Wait | AskPerson


def decide_retrain(
    policy: RetrainPolicy,
    state: RetrainState,
    report: DriftReport | None,
    labelled_rows: int,
    now: float,
    *,
    diagnosis: Diagnosis | None = None,
    burning: str = "",
    forecast: Forecast | None = None,
) -> RetrainDecision:
    """Whether to start a retraining at ``now`` (wall seconds).

    Parameters
    ----------
    state : of the policy; it knows what probes have shown and whether one is under way
    report : the newest one of the champion, or ``None``
    labelled_rows : labelled rows that came since the champion's first or since the last attempt
    diagnosis : what triage makes of that report; broken data and a serving fault are a veto, since a model that learns
        from them learns the fault
    burning : why the service's error budget is burning too fast, or ``""``; it holds every automatic start back
    forecast : when earlier versions went bad (used with ``on_forecast``)
    """
    wanted = _wanted(policy, state, report, labelled_rows, forecast, now)
    if isinstance(wanted, Wait):
        return wanted
    if state.running:
        return Wait(until=None, reason="a retraining is under way")
    if state.needs_person is not None:
        return Wait(until=None, reason=f"waits for a person: {state.needs_person}")
    if diagnosis is not None and diagnosis.veto:
        kind = diagnosis.kind
        return Wait(until=None, reason=f"{kind.replace('_', ' ')}: {diagnosis.note}", held_by=kind)
    if burning:
        return Wait(until=None, reason=f"the error budget is burning: {burning}", held_by="error_budget")
    evidence = wanted.evidence if isinstance(wanted, Retrain) else {}
    said = {**evidence, "wanted": f"{wanted.trigger}: {wanted.reason}"}
    if wanted.trigger in ALARMS and state.episode is not None and state.episode.answered:
        reason = (
            f"drift episode {state.episode.id} has had its retraining: only a later window that alarms asks for another"
        )
        return Wait(until=None, reason=reason, held_by="episode")
    if wanted.trigger in ALARMS and state.fruitless >= policy.give_up_after:
        reason = f"the last {state.fruitless} retrainings promoted nothing; look at their gate reports"
        return AskPerson(reason=reason, evidence=said)
    if labelled_rows < policy.min_labels:
        return Wait(until=None, reason=f"{labelled_rows} labelled rows, {policy.min_labels} needed")
    held = _held_back(policy, state, now)
    if held is not None:
        return held
    if wanted.trigger in ALARMS and policy.probe:
        doubt = _probed(policy, state, wanted, labelled_rows, said)
        if doubt is not None:
            return doubt
    if isinstance(wanted, ProbeFirst):
        return Wait(until=None, reason="a probe is under way") if state.probing is not None else wanted
    facts: dict[str, Any] = {"labelled_rows": labelled_rows, "fruitless": state.fruitless}
    if state.episode is not None and not state.episode.answered:
        facts |= {"episode": state.episode.id, "after_episode": state.episode.after}
    if state.pace.newest is not None:
        facts["probe"] = state.pace.newest.to_dict()
    return replace(wanted, evidence={**wanted.evidence, **facts})


def _probed(
    policy: RetrainPolicy, state: RetrainState, wanted: Retrain | ProbeFirst, rows: int, said: dict[str, Any]
) -> ProbeFirst | Wait | AskPerson | None:
    """What an alarm must still wait for; ``None`` when a probe of its episode has shown a gain, or could not be made."""
    if state.probing is not None:
        return Wait(until=None, reason="a probe is under way")
    pace = state.pace
    if state.episode is None or pace.episode != state.episode.id:
        return ProbeFirst(trigger=wanted.trigger, reason=wanted.reason)
    if pace.newest is None or pace.newest.gains:
        return None
    if pace.barren >= policy.give_up_after:
        reason = (
            f"the loss is too high and {pace.barren} refits in a row would not lower it; look at the data or the model"
        )
        return AskPerson(reason=reason, evidence={**said, "probe": pace.newest.to_dict()})
    # Each further one has half as many rows again, so that a storm of alarms is not one of probes.
    if rows - pace.rows >= max(policy.min_labels, pace.rows // 2):
        return ProbeFirst(trigger=wanted.trigger, reason=wanted.reason)
    return Wait(until=None, reason=f"a probe refit shows no gain: {pace.newest.note}", held_by="no_gain")


def _wanted(
    policy: RetrainPolicy,
    state: RetrainState,
    report: DriftReport | None,
    labelled_rows: int,
    forecast: Forecast | None,
    now: float,
) -> Retrain | ProbeFirst | Wait:
    alarm = _alarm(policy, report)
    if alarm is not None:
        return alarm
    if policy.every_labels is not None and labelled_rows >= policy.every_labels:
        return Retrain(trigger="age", reason=f"{labelled_rows} new labelled rows, due at {policy.every_labels}")
    due = _calendar(policy, state, forecast, now)
    return due if isinstance(due, Retrain) else _cost(policy, state, labelled_rows) or due


def _cost(policy: RetrainPolicy, state: RetrainState, rows: int) -> Retrain | ProbeFirst | None:
    """What the cost asks for: a retraining, or the next probe; ``None`` while it is too early for either."""
    if policy.refit_cost is None or not policy.probe:
        return None
    pace = state.pace
    if pace.ready:
        reason = (
            f"left alone, the champion has lost {pace.lost:.0f} rows' worth more than a fresh model ({pace.excess:+.1%} a row "
            f"now), and a retraining costs {pace.cost:.0f}"
        )
        return Retrain(trigger="cost", reason=reason, evidence={"lost_rows": pace.lost, "excess": pace.excess})
    if rows >= max(pace.next_rows, policy.min_labels):
        return ProbeFirst(trigger="cost", reason=f"{rows} labelled rows since the champion's training")
    return None


def _alarm(policy: RetrainPolicy, report: DriftReport | None) -> Retrain | None:
    if report is None or not report.may_retrain:
        return None
    harm = report.severity >= 4
    facts: dict[str, Any] = {
        "window": report.window,
        "version": report.version,
        "severity": report.severity,
        "loss": report.loss,
        "reference_loss": report.reference_loss,
        "loss_limit": report.loss_limit,
        "columns": list(report.columns[:10]),
    }
    if harm and policy.on_harm:
        return Retrain(trigger="harm", reason=report.note, evidence=facts)
    if not harm and policy.on_drift:
        reason = f"the score moved in {report.confirmed} windows running, without labels. {report.note}"
        return Retrain(trigger="drift", reason=reason, evidence=facts)
    return None


def _calendar(policy: RetrainPolicy, state: RetrainState, forecast: Forecast | None, now: float) -> Retrain | Wait:
    """What is due by time alone. It counts from the champion's training or the last attempt, whichever is later."""
    if state.trained_at is None:
        return Wait(until=None, reason="nothing asks for it")
    since = max([state.trained_at, *(turn.at for turn in state.history[-1:])])
    age = now - state.trained_at
    due: list[tuple[float, Trigger, str]] = []
    if policy.every is not None:
        due.append((since + seconds(policy.every, "every"), "age", f"the champion is {age:.0f} s old"))
    if policy.schedule is not None:
        due.append((Cron.parse(policy.schedule).next_after(since), "schedule", f"its time by {policy.schedule!r}"))
    if policy.on_forecast and forecast is not None and forecast.due_s is not None:
        due.append((since + forecast.due_s, "forecast", forecast.note))
    if not due:
        return Wait(until=None, reason="nothing asks for it")
    at, trigger, reason = min(due)
    if now < at:
        return Wait(until=at, reason="nothing asks for it before the champion is due")
    return Retrain(trigger=trigger, reason=reason, evidence={"age_s": age})


def _held_back(policy: RetrainPolicy, state: RetrainState, now: float) -> Wait | None:
    """The latest of cooldown and daily budget, if any still holds."""
    if not state.history:
        return None
    starts = [turn.at for turn in state.history]
    reason = f"cooldown, longer after {state.fruitless} without a promotion" if state.fruitless else "cooldown"
    holds = [(max(starts) + policy.pause_s(state.fruitless), reason)]
    # A start at exactly t frees its place at t + 24 h.
    today = sorted(at for at in starts if now < at + _DAY_S)
    if len(today) >= policy.max_per_day:
        holds.append(
            (today[-policy.max_per_day] + _DAY_S, f"{len(today)} retrainings in 24 hours, {policy.max_per_day} allowed")
        )
    until, reason = max(holds)
    return Wait(until=until, reason=reason, held_by="pace") if now < until else None
