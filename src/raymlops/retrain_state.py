"""What the retrain policy must not forget: retrainings so far, the drift episode at hand, whether a person is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from raymlops.monitor.pace import Pace, renewed

if TYPE_CHECKING:
    from raymlops.monitor.report import DriftReport
    from raymlops.search.probe import Probe

Outcome = Literal["running", "promoted", "refused", "failed"]
Trigger = Literal["harm", "drift", "cost", "age", "schedule", "forecast", "person"]
ALARMS = frozenset({"harm", "drift"})
"""Triggers that say something is wrong; the others only say that it is time."""

KEPT = 256
CALM_WINDOWS = 2
"""Windows in a row within the limits that end an episode; with one, a loss around its limit would be many episodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One retraining: when it started and why, in which drift episode, and what came of it."""

    at: float
    outcome: Outcome = "running"
    trigger: Trigger = "harm"
    episode: str | None = None

    @property
    def fruitless(self) -> bool:
        """It failed, or was refused although something was wrong: the champion being good enough explains neither."""
        return self.outcome == "failed" or (self.outcome == "refused" and self.trigger in (*ALARMS, "person"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A stretch of trouble of one version, from its first alarm until it is over, another version serves, or a retraining has
    answered it and the trouble goes on: a later window that alarms then begins the next episode. So each has one retraining.

    Attributes
    ----------
    id : version, and window of the first alarm
    began_at : wall time at which the change began, as the alarm estimates it; else from which the alarming window's rows
        were served
    window : the newest window that was counted
    calm : windows in a row, up to that one, within the limits
    answered : its retraining has begun; it stays so when that one promotes nothing
    after : the episode before, when that one's retraining promoted nothing and the trouble went on
    """

    id: str
    version: int | None
    began_at: float
    window: int
    calm: int = 0
    answered: bool = False
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """A probe under way; ``rows`` is the champion's age in labelled rows when it was asked for."""

    id: str
    rows: int
    episode: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainState:
    """What the policy must not forget.

    Attributes
    ----------
    history : the newest 256 retrainings, oldest first
    trained_at : when the champion was trained; age counts from here
    episode : the drift episode at hand, if any
    needs_person : why a person is asked, ``None`` while the policy acts by itself
    cleared_at : when a person last took note; retrainings before do not count as fruitless any more
    pace : what cheap refits have shown of the champion
    probing : the probe under way and the champion's age in labelled rows when it was asked for
    probes : asked for so far; names the next one
    held_by : what holds a wanted retraining back just now, ``""`` while nothing does
    """

    history: tuple[Turn, ...] = ()
    trained_at: float | None = None
    episode: Episode | None = None
    needs_person: str | None = None
    cleared_at: float | None = None
    pace: Pace = field(default_factory=Pace)
    probing: Probing | None = None
    probes: int = 0
    held_by: str = ""

    def probe_asked(self, id: str, rows: int) -> RetrainState:
        """A probe of the champion at age ``rows`` was asked for."""
        episode = None if self.episode is None else self.episode.id
        return replace(self, probing=Probing(id=id, rows=rows, episode=episode), probes=self.probes + 1)

    def probed(self, found: Probe | None, refit_cost: float | None, least_excess: float = 0.0) -> RetrainState:
        """The probe under way ended, ``None`` when it failed; without one under way the state stays as it is."""
        if self.probing is None:
            return self
        probing = self.probing
        pace = self.pace.probed(found, probing.rows, refit_cost, least=least_excess, episode=probing.episode)
        return replace(self, probing=None, pace=pace)

    def started(self, at: float, trigger: Trigger = "harm") -> RetrainState:
        """A retraining began at ``at`` (wall seconds); it counts for cooldown and budget whatever comes of it."""
        episode = self.episode
        # What a person or the calendar asks for may come while an episode that was answered is not over: it is not its second.
        turn = Turn(at=at, trigger=trigger, episode=None if episode is None or episode.answered else episode.id)
        return replace(
            self,
            history=(*self.history, turn)[-KEPT:],
            episode=None if episode is None else replace(episode, answered=True),
            # Labels are counted anew from here, so a probe that is still under way tells of another age.
            pace=renewed(self.pace, False),
            probing=None,
        )

    def finished(self, outcome: Literal["promoted", "refused", "failed"], at: float) -> RetrainState:
        """The running retraining ended; without a running one the state stays as it is."""
        if not self.running:
            return self
        after = replace(self, history=(*self.history[:-1], replace(self.history[-1], outcome=outcome)))
        return after.trained(at) if outcome == "promoted" else after

    def trained(self, at: float) -> RetrainState:
        """A new champion serves: its age counts from here, and the old one's troubles are over."""
        pace = renewed(self.pace, True)
        return replace(self, trained_at=at, episode=None, needs_person=None, pace=pace, probing=None)

    def went_back(self) -> RetrainState:
        """An earlier champion serves again: what probes and reports said was of the one after it."""
        return replace(self, episode=None, pace=renewed(self.pace, False), probing=None, held_by="")

    def asked(self, reason: str) -> RetrainState:
        """A person is asked; nothing starts by itself until :meth:`cleared`."""
        return replace(self, needs_person=reason)

    def cleared(self, at: float) -> RetrainState:
        """A person took note: fruitless retrainings and probes are counted anew."""
        return replace(self, needs_person=None, cleared_at=at, pace=replace(self.pace, barren=0))

    def seen(self, report: DriftReport | None) -> RetrainState:
        """Begin, carry on or end the episode by a report; the same report twice changes nothing."""
        if report is None:
            return self
        episode = self.episode if self.episode is not None and self.episode.version == report.version else None
        if episode is None:
            if not report.may_retrain:
                return self if self.episode is None else replace(self, episode=None)
            return replace(self, episode=self._begun(report))
        if report.severity >= 3:
            if not episode.answered:
                return replace(self, episode=replace(episode, window=max(report.window, episode.window), calm=0))
            if report.may_retrain and report.window > episode.window and not self.running:
                return replace(self, episode=self._begun(report, after=episode))
            return replace(self, episode=replace(episode, calm=0))
        if report.kind != "window" or report.window <= episode.window:
            return self
        calm = episode.calm + 1
        ended = calm >= CALM_WINDOWS
        return replace(self, episode=None if ended else replace(episode, window=report.window, calm=calm))

    def _begun(self, report: DriftReport, after: Episode | None = None) -> Episode:
        """The episode that this alarm begins; trouble that goes on began when it began."""
        began = report.from_at if report.change_at is None else report.change_at
        id = f"v{report.version}-w{report.window}"
        if any(turn.episode == id for turn in self.history):
            id = f"{id}-{report.to_at:.0f}"  # a version that serves again counts its windows anew
        return Episode(
            id=id,
            version=report.version,
            began_at=began if after is None else min(began, after.began_at),
            window=report.window,
            after=None if after is None else after.id,
        )

    @property
    def running(self) -> bool:
        return bool(self.history) and self.history[-1].outcome == "running"

    @property
    def fruitless(self) -> int:
        """Retrainings in a row, up to the newest, that were asked for by trouble and promoted nothing.

        A refusal of what only the calendar asked for is passed over: it neither counts nor ends the row.
        """
        count = 0
        for turn in reversed(self.history):
            if turn.outcome == "promoted" or (self.cleared_at is not None and turn.at < self.cleared_at):
                break
            count += turn.fruitless
        return count

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "history": [asdict(turn) for turn in self.history], "pace": self.pace.to_dict()}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> RetrainState:
        """From :meth:`to_dict`; what an earlier release did not keep takes its default."""
        episode, probing = body.get("episode"), body.get("probing")
        return cls(
            **{
                **body,
                "history": tuple(Turn(**turn) for turn in body["history"]),
                "episode": None if episode is None else Episode(**episode),
                "pace": Pace.from_dict(body.get("pace") or {}),
                "probing": None if probing is None else Probing(**probing),
            }
        )
