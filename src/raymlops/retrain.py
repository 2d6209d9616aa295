"""When to train again: reports, age, labels and budget in; Retrain or Wait out. Pure; somebody else carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from raymlops.clock import seconds
from raymlops.errors import ConfigError

if TYPE_CHECKING:
    from raymlops.monitor.monitor import DriftReport

Outcome = Literal["running", "promoted", "refused", "failed"]
Trigger = Literal["harm", "drift", "age"]
_DAY_S = 86400.0
_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainPolicy:
    """What may start a retraining, and how often at most.

    Attributes
    ----------
    on_harm : measured loss above what is accepted (severity 4)
    on_drift : the score moved in two windows running while there are no labels to measure the loss (severity 3)
    every : age at which the champion is trained again whatever was seen; ``None`` never
    every_labels : new labelled rows after which the champion is trained again whatever was seen; ``None`` never
    cooldown : least time between two starts; durations are seconds or strings such as ``"1h"``
    max_per_day : starts in any 24 hours
    min_labels : new labelled rows that must be there, since the champion's first row or the last attempt
    search : ``"champion"`` keeps the champion's family and parameters and chooses only how much of the past to learn
        from; ``"full"`` searches anew, which a short validation block makes noisy
    window : rows to train on, for the loop: ``"recent"`` lets the loop choose the newest stretch, ``"all"``, or a count
    give_up_after : retrainings in a row without a promotion after which the policy waits a day

    Raises
    ------
    ConfigError : names the field, what was given and what would be accepted
    """

    on_drift: bool = True
    on_harm: bool = True
    every: float | str | None = None
    every_labels: int | None = None
    cooldown: float | str = "1h"
    max_per_day: int = 4
    min_labels: int = 500
    window: Literal["recent", "all"] | int = "recent"
    search: Literal["champion", "full"] = "champion"
    give_up_after: int = 3

    def __post_init__(self) -> None:
        for name in ("on_drift", "on_harm"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a yes or no: give True or False.")
        if self.every_labels is not None:
            _whole("every_labels", self.every_labels)
        for name in ("max_per_day", "min_labels", "give_up_after"):
            _whole(name, getattr(self, name))
        seconds(self.cooldown, "cooldown")
        if self.every is not None and seconds(self.every, "every") <= 0:
            raise ConfigError(f"every={self.every!r} would retrain without end: give more than 0 seconds, or None.")
        if self.search not in ("champion", "full"):
            raise ConfigError(f"search={self.search!r} is not known: give 'champion' or 'full'.")
        whole = isinstance(self.window, int) and not isinstance(self.window, bool) and self.window > 0
        if self.window not in ("recent", "all") and not whole:
            raise ConfigError(
                f"window={self.window!r} is not known: give 'recent', 'all' or a positive number of rows."
            )


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value!r} cannot be used: give a whole number of at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One retraining: when it started, and what came of it."""

    at: float
    outcome: Outcome = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainState:
    """What the policy must not forget.

    Attributes
    ----------
    history : the newest 64 retrainings, oldest first
    trained_at : when the champion was trained; age counts from here
    """

    history: tuple[Turn, ...] = ()
    trained_at: float | None = None

    def started(self, at: float) -> RetrainState:
        """A retraining began at ``at`` (wall seconds); it counts for cooldown and budget whatever comes of it."""
        return replace(self, history=(*self.history, Turn(at=at))[-_KEPT:])

    def finished(self, outcome: Literal["promoted", "refused", "failed"], at: float) -> RetrainState:
        """The running retraining ended; without a running one the state stays as it is."""
        if not self.running:
            return self
        history = (*self.history[:-1], replace(self.history[-1], outcome=outcome))
        return replace(self, history=history, trained_at=at if outcome == "promoted" else self.trained_at)

    def trained(self, at: float) -> RetrainState:
        """A first training, or one that a person asked for, gave the champion."""
        return replace(self, trained_at=at)

    @property
    def running(self) -> bool:
        return bool(self.history) and self.history[-1].outcome == "running"

    @property
    def fruitless(self) -> int:
        """Retrainings in a row, up to the newest, that promoted nothing."""
        count = 0
        for turn in reversed(self.history):
            if turn.outcome not in ("refused", "failed"):
                break
            count += 1
        return count

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "history": [asdict(turn) for turn in self.history]}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> RetrainState:
        return cls(history=tuple(Turn(**turn) for turn in body["history"]), trained_at=body["trained_at"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Train again, now."""

    trigger: Trigger
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Do not train. ``until`` is the wall time at which time alone would change that, ``None`` when it would not."""

    until: float | None
    reason: str


RetrainDecision: TypeAlias = Retrain | Wait


def decide_retrain(
    policy: RetrainPolicy, state: RetrainState, report: DriftReport | None, labelled_rows: int, now: float
) -> RetrainDecision:
    """Whether to start a retraining at ``now`` (wall seconds).

    Parameters
    ----------
    report : the newest one of the champion, or ``None``
    labelled_rows : labelled rows that came since the champion's first or since the last attempt
    """
    wanted = _wanted(policy, state, report, labelled_rows, now)
    if isinstance(wanted, Wait):
        return wanted
    if state.running:
        return Wait(until=None, reason="a retraining is under way")
    if labelled_rows < policy.min_labels:
        return Wait(until=None, reason=f"{labelled_rows} labelled rows, {policy.min_labels} needed")
    return _held_back(policy, state, now) or replace(
        wanted, evidence={**wanted.evidence, "labelled_rows": labelled_rows, "fruitless": state.fruitless}
    )


def _wanted(
    policy: RetrainPolicy, state: RetrainState, report: DriftReport | None, labelled_rows: int, now: float
) -> RetrainDecision:
    if report is not None and report.may_retrain:
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
    if policy.every_labels is not None and labelled_rows >= policy.every_labels:
        return Retrain(trigger="age", reason=f"{labelled_rows} new labelled rows, due at {policy.every_labels}")
    if policy.every is None or state.trained_at is None:
        return Wait(until=None, reason="nothing asks for it")
    age, due = now - state.trained_at, state.trained_at + seconds(policy.every, "every")
    if now < due:
        return Wait(until=due, reason="nothing asks for it before the champion is due")
    return Retrain(trigger="age", reason=f"the champion is {age:.0f} s old", evidence={"age_s": age})


def _held_back(policy: RetrainPolicy, state: RetrainState, now: float) -> Wait | None:
    """The latest of cooldown, daily budget and giving up, if any still holds."""
    if not state.history:
        return None
    starts = [turn.at for turn in state.history]
    latest = max(starts)
    holds = [(latest + seconds(policy.cooldown, "cooldown"), "cooldown")]
    # A start at exactly t frees its place at t + 24 h.
    today = sorted(at for at in starts if now < at + _DAY_S)
    if len(today) >= policy.max_per_day:
        holds.append(
            (today[-policy.max_per_day] + _DAY_S, f"{len(today)} retrainings in 24 hours, {policy.max_per_day} allowed")
        )
    if state.fruitless >= policy.give_up_after:
        holds.append(
            (latest + _DAY_S, f"the last {state.fruitless} retrainings promoted nothing; look at their gate reports")
        )
    until, reason = max(holds)
    return Wait(until=until, reason=reason) if now < until else None
