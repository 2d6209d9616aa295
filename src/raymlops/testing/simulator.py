"""A year of one endpoint in seconds: the real controller and policies, an owned clock, a world that can be told to drift.

Nothing of the loop is replaced: reports, job outcomes and canary figures come from the world, every decision from
:func:`raymlops.loop.controller.step`. What the simulator keeps is enough to check cooldown, budget and storm control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from raymlops.clock import ManualClock, seconds
from raymlops.loop import controller
from raymlops.loop.controller import Action, Observation, Record, SubmitProbe, SubmitRetraining
from raymlops.loop.ports import JobStatus, ProbeFailed
from raymlops.loop.state import EndpointState, Monitoring, Preparing, RollingOut
from raymlops.monitor.examine import Examination
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis
from raymlops.retrain import RetrainPolicy
from raymlops.search.probe import Probe
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.rollout import Canary

Ending = Literal["candidate", "refused", "failed"]
_WELL = Comparison(champion=VariantStats(requests=100_000), challenger=VariantStats(requests=10_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What happens to the endpoint, as functions of the simulated second.

    Attributes
    ----------
    harm : whether the model trained at the second argument is harmful at the first
    excess : by how much more the model trained at the second argument loses at the first than a fresh one would, relative;
        what a probe finds. Left out: a half while there is harm, else nothing
    probe_fails : whether the probe of this number gives no answer
    ending : what a retraining job comes to: number of the retraining and its end in; a candidate, a refusal or a crash out
    canary_fails : whether a candidate's rollout is rolled back
    diagnosis, burning, forecast : what triage, service levels and forecast say, see ``decide_retrain``
    labels_per_window : labelled rows that come with every window
    window_s, train_s, probe_s : time between two reports, and that a job and a probe take
    """

    harm: Callable[[float, float], bool] = lambda _at, _trained_at: False
    excess: Callable[[float, float], float] | None = None
    probe_fails: Callable[[int], bool] = lambda _number: False
    ending: Callable[[int, float], Ending] = lambda _turn, _at: "candidate"
    canary_fails: Callable[[int], bool] = lambda _version: False
    diagnosis: Callable[[float], Diagnosis | None] = lambda _at: None
    burning: Callable[[float], str] = lambda _at: ""
    forecast: Forecast | None = None
    labels_per_window: int = 1000
    window_s: float | str = "1h"
    train_s: float | str = "20m"
    probe_s: float | str = "1m"

    def probed(self, at: float, trained_at: float) -> Examination:
        """What a probe at ``at`` finds of the model trained at ``trained_at``, whose usual loss is 0.1."""
        harm = 0.5 if self.harm(at, trained_at) else 0.0
        gain = 0.1 * (harm if self.excess is None else self.excess(at, trained_at))
        found = Probe(
            gain=gain, standard_error=0.002, gains=gain + 0.004 > 0.005, rows=200, note=f"{gain:+.4f}", loss=0.1
        )
        return Examination(probe=found)


@dataclass(slots=True, kw_only=True)
class Story:
    """What happened.

    Attributes
    ----------
    starts : when retrainings started, and ``gaps`` between them
    probes : when probes started
    events : kind, time and body of every record, in order
    most_in_flight : jobs at once, at most
    down_ticks : turns in which no version, or another than the champion, had the traffic; must stay 0
    harmful_windows, windows : reports with measured harm, and all of them
    """

    starts: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    events: list[tuple[str, float, dict[str, Any]]] = field(default_factory=list)
    most_in_flight: int = 0
    down_ticks: int = 0
    harmful_windows: int = 0
    windows: int = 0
    state: EndpointState | None = None

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.starts, self.starts[1:], strict=False)]

    def count(self, kind: str) -> int:
        """Events of a kind."""
        return sum(event[0] == kind for event in self.events)

    def most_in(self, span_s: float) -> int:
        """Starts in any ``span_s`` seconds, at most (the end excluded)."""
        return max((sum(at <= other < at + span_s for other in self.starts) for at in self.starts), default=0)


class Simulator:
    """One endpoint under a world. ``person`` is called each turn in which one is asked for; true lets it go on."""

    def __init__(
        self,
        policy: RetrainPolicy,
        world: World,
        *,
        canary: Canary | None = None,
        tick_s: float | str = "10m",
        person: Callable[[float], bool] = lambda _at: False,
    ) -> None:
        self.policy, self.world, self.story = policy, world, Story()
        self._canary = canary or Canary(hold_s=600.0, max_wait_s="1d")
        self._tick_s, self._person = seconds(tick_s, "tick_s"), person
        self._window_s, self._train_s = seconds(world.window_s, "window_s"), seconds(world.train_s, "train_s")
        self._probe_s = seconds(world.probe_s, "probe_s")
        self._clock = ManualClock()
        self._trained: dict[int, float] = {1: 0.0}
        self._job: tuple[str, float] | None = None
        self._probe: tuple[SubmitProbe, float] | None = None
        self._window, self._next_window = 0, self._window_s
        self._labelled = 0
        self._standing: DriftReport | None = None
        self._state = EndpointState(name="simulated", phase=Preparing(since=0.0))
        self._obey(controller.adopt(self._state, 1, 0.0))

    def run(self, days: float) -> Story:
        """Let ``days`` pass and tell the story."""
        end = self._clock.now() + days * 86_400.0
        while self._clock.now() < end:
            self._clock.advance(self._tick_s)
            self._turn(self._clock.now())
        self.story.state = self._state
        return self.story

    def _turn(self, now: float) -> None:
        if now >= self._next_window:
            self._next_window += self._window_s
            self._report(now)
        if self._state.retrain.needs_person is not None and self._person(now):
            self._obey(controller.resume(self._state, now))
        job = self._finish_job(now)
        rolling = self._state.phase if isinstance(self._state.phase, RollingOut) else None
        if rolling is not None and self.world.canary_fails(rolling.rollout.challenger):
            self._obey(controller.abort(self._state, "the canary failed", now))
            rolling = None
        seen = Observation(
            now=now,
            comparison=None if rolling is None else _WELL,
            report=self._standing,
            labelled=self._labelled,
            job=job,
            diagnosis=self.world.diagnosis(now),
            burning=self.world.burning(now),
            forecast=self.world.forecast,
            examination=self._finish_probe(now),
        )
        self._obey(controller.step(self._state, self._canary, self.policy, seen))
        split = self._state.split
        if split is None or split.champion != self._state.champion:
            self.story.down_ticks += 1

    def _report(self, now: float) -> None:
        version = self._state.champion
        assert version is not None
        self._window += 1
        self._labelled += self.world.labels_per_window
        harm = self.world.harm(now, self._trained[version])
        self.story.windows += 1
        self.story.harmful_windows += harm
        self._standing = DriftReport(
            window=self._window,
            version=version,
            rows=1000,
            from_at=now - self._window_s,
            to_at=now,
            severity=4 if harm else 0,
            harm=harm,
            may_retrain=harm,
            loss=0.3 if harm else 0.1,
            reference_loss=0.1,
            loss_limit=0.12,
        )

    def _finish_probe(self, now: float) -> Examination | ProbeFailed | None:
        if self._probe is None or now < self._probe[1]:
            return None
        (asked, _), self._probe = self._probe, None
        if self.world.probe_fails(len(self.story.probes)):
            return ProbeFailed(reason="the world says so")
        return self.world.probed(now, self._trained[asked.version])

    def _finish_job(self, now: float) -> JobStatus | None:
        if self._job is None or self._state.retraining is None:
            return None
        event_id, ends = self._job
        if now < ends:
            return "running"
        self._job = None
        ending = self.world.ending(self._state.turns, now)
        if ending == "failed":
            return "failed"
        if ending == "refused":
            self._obey(controller.refused(self._state, event_id, "gate: not better", now))
        elif isinstance(self._state.phase, Monitoring):
            version = max(self._trained) + 1
            self._trained[version] = now - self._train_s
            self._obey(controller.begin_rollout(self._state, self._canary, version, event_id, now))
        return None

    def _obey(self, result: tuple[EndpointState, tuple[Action, ...]]) -> None:
        before, (self._state, actions) = self._state, result
        now = self._clock.now()
        if self._state.champion != before.champion:
            self._standing, self._labelled = None, 0
        for action in actions:
            match action:
                case Record(kind=kind, body=body):
                    self.story.events.append((kind, now, body))
                case SubmitRetraining(event_id=event_id):
                    self.story.starts.append(now)
                    self.story.most_in_flight = max(self.story.most_in_flight, 1 + (self._job is not None))
                    self._job = (event_id, now + self._train_s)
                    self._standing, self._labelled = None, 0
                case SubmitProbe():
                    self.story.probes.append(now)
                    self._probe = (action, now + self._probe_s)
                case _:
                    continue
