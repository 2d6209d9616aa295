"""Which fit comes next: asynchronous successive halving over shares of the rows, in packs, within time. Pure.

Nothing here knows Ray or reads a clock: workers ask for an :data:`Order`, tell what came of it, and pass ``now`` in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raymlops.search.pace import REDUCTION, LastFit, Pace
from raymlops.search.selection import Mode, Outcome, Trial

MIN_SHARE_ROWS = 2000
_RUNGS = 5
_PACK_S = 0.5
_PACK_MOST = 16
_LIMIT_TIMES, _LIMIT_LEAST_S, _LIMIT_UNKNOWN_S = 20.0, 60.0, 600.0
_GRACE_S = 1.0
# At most so much of the budget is set aside for the last fit, and of that fit so much is fitting; the rest is judging.
_MOST_RESERVED, _FITTING, _LEAST_S = 0.5, 0.9, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A configuration to try; ``point`` is what the sampler drew, ``params`` what the family made of it."""

    number: int
    family: str
    params: Mapping[str, Any]
    point: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit: a proposal on a share of the rows.

    Attributes
    ----------
    limit_s : the worker gives the fit up after this time
    until_s : boosting ends this long after the order was given, and keeps what it has; ``None`` without a time budget
    stop_s : a fit that still runs this long after the order was given is stopped and has no result; ``None``: never
    """

    proposal: Proposal
    rung: int
    share: float
    limit_s: float
    until_s: float | None = None
    stop_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Fits for one worker, one after another: small ones come in packs, so that the way there and back is paid once."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing can start until a running order ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The search is over; ``reason`` says why, for a person."""

    reason: str


class Proposer(Protocol):
    """Where configurations come from, and who learns from what they scored."""

    def ask(self) -> Proposal: ...

    def tell(self, proposal: Proposal, score: float, *, rung: int, full: bool, fit_s: float) -> None: ...

    def fail(self, proposal: Proposal) -> None: ...


def ladder(rows: int, most: float = 1.0, least: int = MIN_SHARE_ROWS) -> tuple[float, ...]:
    """Shares of ``rows`` to climb, each three times the one before up to ``most``, none of fewer than ``least`` rows.

    At most five: what a hundredth of the rows tells of all of them is little.

    >>> ladder(7_000)
    (0.3333333333333333, 1.0)
    """
    shares = [most]
    while shares[0] / REDUCTION * rows >= least and len(shares) < _RUNGS:
        shares.insert(0, shares[0] / REDUCTION)
    return tuple(shares)


@dataclass(slots=True, kw_only=True)
class Schedule:
    """Asynchronous successive halving (Li et al. 2020, algorithm 2: promotion, not stopping).

    A configuration starts at the lowest share of the rows; whenever a worker is free, one in the best third of its rung
    moves up, or else a new one starts. Fits that are expected to be short are packed.

    Attributes
    ----------
    shares : the ladder, ascending to 1, or to the share that one worker holds
    trials : configurations to try; ``None`` without a limit
    lanes : workers, so that the last fits are spread over all of them
    deadline : on the caller's clock; ``None`` without a limit
    reserve : share of a full fit's time to leave for what comes after the search, see :func:`raymlops.search.pace.refit_cost`
    enough : asked before a new configuration starts; a sentence ends the search
    quickest : times faster that a configuration could learn, see :meth:`raymlops.search.pace.LastFit.pace`
    """

    proposer: Proposer
    shares: tuple[float, ...]
    mode: Mode
    trials: int | None
    lanes: int = 1
    deadline: float | None = None
    began: float = 0.0
    reserve: float = 0.0
    trial_timeout_s: float | None = None
    enough: Callable[[Sequence[Trial]], str | None] | None = None
    quickest: Callable[[Proposal], float] = lambda _proposal: 1.0
    on_trial: Callable[[Trial], None] | None = None
    ended: dict[int, Trial] = field(default_factory=dict)
    stopped: str = ""
    _proposals: dict[int, Proposal] = field(default_factory=dict)
    _rungs: list[dict[int, float]] = field(default_factory=list)
    _promoted: list[set[int]] = field(default_factory=list)
    _running: dict[int, Job] = field(default_factory=dict)
    _again: deque[Job] = field(default_factory=deque)
    _pace: Pace = field(init=False)
    _led: Proposal | None = None

    def __post_init__(self) -> None:
        self._pace = Pace(self.reserve)
        self._rungs = [{} for _ in self.shares]
        self._promoted = [set() for _ in self.shares]

    @property
    def board(self) -> tuple[Trial, ...]:
        """Trials in the order in which they last ended."""
        return tuple(self.ended.values())

    @property
    def points(self) -> dict[int, Mapping[str, Any]]:
        """What the sampler drew, by number of trial."""
        return {number: proposal.point for number, proposal in self._proposals.items()}

    @property
    def _found(self) -> bool:
        """One trial at least gave a model."""
        return any(trial.status != "failed" for trial in self.ended.values())

    # --- what a worker asks ---------------------------------------------------------------------------------

    def order(self, now: float) -> Order | Wait | Finished:
        """What a free worker is to do."""
        if self._left(now) <= 0 and self._running:
            return Wait()
        if self._left(now) <= 0 and self.ended:
            return Finished(reason=self.stopped or "the time budget is used")
        if self._again:
            held = self._again.popleft()
            job = self._job(held.proposal, held.rung, now)
            self._running[job.proposal.number] = job
            return Order(jobs=(job,))
        jobs: list[Job] = []
        expected = 0.0
        while len(jobs) < self._room():
            job_or_none = self._next(now, hurry=not jobs)
            if job_or_none is None:
                break
            jobs.append(job_or_none)
            self._running[job_or_none.proposal.number] = job_or_none
            took = self._expect(job_or_none)
            expected += _PACK_S if took is None else took
            if expected >= _PACK_S:
                break
        if jobs:
            return Order(jobs=tuple(jobs))
        if self._running:
            return Wait()
        return Finished(reason=self.stopped or self._reason())

    def result(self, number: int, rung: int, outcome: Outcome) -> Trial:
        """One fit ended with a score."""
        proposal = self._proposals[number]
        self._running.pop(number, None)
        signed = outcome.score if self.mode == "max" else -outcome.score
        self._pace.told(
            number,
            proposal.family,
            self.shares[rung],
            outcome.fit_s,
            signed,
            full=outcome.full,
            growing="rounds" in outcome.learned,
            quickest=self.quickest(proposal),
            reach=float(proposal.params.get("recent", 1.0)),
        )
        # A short window of the past may be complete on a low rung: it need not be fitted again to stand on the top one.
        top = len(self.shares) - 1 if outcome.full else rung
        for at in range(rung, top + 1):
            self._rungs[at][number] = signed
            if at < top:
                self._promoted[at].add(number)
        self.proposer.tell(proposal, outcome.score, rung=top, full=outcome.full, fit_s=outcome.fit_s)
        before = self.ended.get(number)
        return self._end(
            Trial(
                number=number,
                family=proposal.family,
                params={**proposal.params, **outcome.learned},
                score=outcome.score,
                train_score=outcome.train_score,
                gap=outcome.gap,
                fit_s=outcome.fit_s + (before.fit_s if before else 0.0),
                status="done" if outcome.full else "stopped",
                curve=(*(before.curve if before else ()), (self.shares[rung], outcome.score)),
                groups=outcome.groups,
                wrongs=outcome.wrongs,
                cost=outcome.cost,
            )
        )

    def failure(self, number: int, reason: str) -> Trial:
        """One fit gave no model; the trial is over, and keeps the curve it had."""
        proposal = self._proposals[number]
        self._running.pop(number, None)
        self.proposer.fail(proposal)
        for rung in self._rungs:
            rung.pop(number, None)
        curve = self.ended[number].curve if number in self.ended else ()
        return self._end(
            Trial(
                number=number,
                family=proposal.family,
                params=dict(proposal.params),
                status="failed",
                error=reason,
                curve=curve,
            )
        )

    def lost(self, jobs: Sequence[Job], reason: str) -> None:
        """A worker died with these jobs on it: the culprit is known when there was only one, else each runs alone."""
        if len(jobs) == 1:
            self.failure(jobs[0].proposal.number, reason)
        else:
            self.again(jobs)

    def again(self, jobs: Sequence[Job]) -> None:
        """Jobs that were ordered and not run: each comes again, in an order of its own."""
        for job in jobs:
            self._running.pop(job.proposal.number, None)
            self._again.append(job)

    def replay(self, proposal: Proposal, rung: int, outcome: Outcome | None, reason: str = "") -> None:
        """What an earlier process of this search finished: known as if it had ended here, and not run again."""
        self._proposals[proposal.number] = proposal
        if outcome is None:
            self.failure(proposal.number, reason)
            return
        for below in range(rung):
            self._promoted[below].add(proposal.number)
        self.result(proposal.number, rung, outcome)

    # --- what comes next ----------------------------------------------------------------------------------

    def _next(self, now: float, *, hurry: bool) -> Job | None:
        promoted = self._promotion(now)
        if promoted is not None:
            return promoted
        if self._may_ask(now):
            proposal = self.proposer.ask()
            self._proposals[proposal.number] = proposal
            return self._job(proposal, 0, now)
        return self._last_climb(now) if hurry and not self._running else None

    def _promotion(self, now: float) -> Job | None:
        """The best that may move up, from the highest rung down."""
        if self._must_finish(now) and (last := self._last_climb(now)) is not None:
            return last
        first = self._first_climb(now)
        if first is not None:
            return first
        for rung in range(len(self.shares) - 2, -1, -1):
            scores = self._rungs[rung]
            best = sorted(scores, key=lambda number: -scores[number])[: len(scores) // REDUCTION]
            for number in best:
                if number not in self._promoted[rung] and number not in self._running:
                    job = self._job(self._proposals[number], rung + 1, now)
                    if self._fits_in(job, now):
                        self._promoted[rung].add(number)
                        return job
        return None

    def _first_climb(self, now: float) -> Job | None:
        """Within a time budget the best of a family that grows with its rows moves up once, whatever the others have scored on
        few rows: until then nothing is known of what it gains, and the last fit would go to whichever family climbed first."""
        if self.deadline is None or len(self.shares) == 1:
            return None
        climbing = {job.proposal.family for job in self._running.values() if job.rung}
        for number in sorted(self._rungs[0], key=lambda number: -self._rungs[0][number]):
            known = number in self._promoted[0] or number in self._running
            if not known and self._proposals[number].family not in climbing and self._pace.unclimbed(number):
                self._promoted[0].add(number)
                return self._job(self._proposals[number], 1, now)  # boosting ends by the clock, so it need not fit in
        return None

    def _last_climb(self, now: float) -> Job | None:
        """When nothing has seen all the rows: the best goes to the top at once, or as far as time allows."""
        top = len(self.shares) - 1
        if self._rungs[-1] or any(job.rung == top for job in self._running.values()):
            return None
        best = self._leader(idle=True)
        if best is None:
            return None
        rung = max(at for at, scores in enumerate(self._rungs) if best.number in scores)
        for goal in range(top, rung, -1):
            job = self._job(best, goal, now)
            if self._fits_in(job, now):
                for below in range(rung, goal):
                    self._promoted[below].add(best.number)
                return job
        return None

    def _must_finish(self, now: float) -> bool:
        """There is only just time left for one fit on all rows, and there has been none."""
        if self.deadline is None or self._rungs[-1]:
            return False
        leader = self._leader()
        if leader is None:
            return False
        needed, left, budget = (
            self._pace.expect(leader.number, leader.family, 1.0) or 0.0,
            self._left(now),
            self.deadline - self.began,
        )
        # A fit that takes long is left to the last one, which has all threads.
        return needed <= 0.2 * budget and left <= max(1.5 * needed, 0.4 * budget)

    def _leader(self, *, idle: bool = False) -> Proposal | None:
        """The one that promises most of a last fit in half of the budget; among those that do not run when ``idle``."""
        if not idle and self._led is not None:
            return self._led
        numbers = [
            number
            for number, trial in self.ended.items()
            if trial.status != "failed" and not (idle and number in self._running)
        ]
        if not numbers:
            return None
        seconds = math.inf if self.deadline is None else _MOST_RESERVED * (self.deadline - self.began)
        best = self._proposals[max(numbers, key=lambda number: self._pace.promise(number, seconds))]
        if not idle:
            self._led = best
        return best

    def pick(self, numbers: Sequence[int], now: float) -> int:
        """Of trials that have not seen all rows, the one that promises most of a fit in the time left."""
        left = math.inf if self.deadline is None else max(_LEAST_S, self.deadline - now)
        return max(numbers, key=lambda number: self._pace.promise(number, left))

    def _may_ask(self, now: float) -> bool:
        if self.trials is not None and len(self._proposals) >= self.trials:
            return False
        if self.enough is not None and not self.stopped:
            self.stopped = self.enough(self.board) or ""
        return not self.stopped

    def _job(self, proposal: Proposal, rung: int, now: float) -> Job:
        expected = self._pace.expect(proposal.number, proposal.family, self.shares[rung])
        limit = self.trial_timeout_s
        if limit is None:
            limit = _LIMIT_UNKNOWN_S if expected is None else max(_LIMIT_LEAST_S, _LIMIT_TIMES * expected)
        if self.deadline is None:
            return Job(proposal=proposal, rung=rung, share=self.shares[rung], limit_s=limit)
        # A fit that leads must itself be fitted again in the time: of what is left it may use so much.
        left = max(0.0, self.deadline - now)
        until = max(0.1, min(self._left(now), left / (1.0 + self.reserve)))
        # The first of a search may run on past its time, since a search without one trial is of no use.
        stop = max(0.0, self._left(now)) + _GRACE_S if self._found or self._running else None
        return Job(proposal=proposal, rung=rung, share=self.shares[rung], limit_s=limit, until_s=until, stop_s=stop)

    def _expect(self, job: Job) -> float | None:
        return self._pace.expect(job.proposal.number, job.proposal.family, job.share)

    def _fits_in(self, job: Job, now: float) -> bool:
        expected = self._expect(job)
        return self.deadline is None or expected is None or expected <= self._left(now)

    def _left(self, now: float) -> float:
        """Seconds for fits: what comes after the search has its share set aside."""
        if self.deadline is None:
            return math.inf
        leader = self._leader()
        after = 0.0
        if leader is not None:
            after = self._pace.last_s(leader.number, leader.family)
        return self.deadline - now - min(after, _MOST_RESERVED * (self.deadline - self.began))

    def last_fit(self, number: int, now: float) -> LastFit:
        """How a trial's configuration can be fitted by the deadline."""
        proposal = self._proposals[number]
        if self.deadline is None:
            return LastFit(params=proposal.params, more=self._pace.more(number), reach=self._pace.reach(number))
        left = _FITTING * max(_LEAST_S, self.deadline - now)
        return self._pace.last_fit(number, proposal.family, proposal.params, left, self.shares[0])

    def overdue(self, now: float) -> bool:
        """The time for trials is used; never before a first one has ended, since a search without one would be of no use."""
        return self.deadline is not None and self._found and self._left(now) <= 0

    def _room(self) -> int:
        """At most so many fits in one order: the rest of the search is spread over all workers."""
        if self.trials is None:
            return _PACK_MOST
        rest = self.trials - len(self._proposals)
        return max(1, min(_PACK_MOST, math.ceil(rest / (2 * self.lanes))))

    def _reason(self) -> str:
        if self.trials is None or len(self.ended) < self.trials:
            return "the time budget is used"
        return f"all {self.trials} trials ended"

    def _end(self, trial: Trial) -> Trial:
        self._led = None
        # Again at the end of the board: it is in the order in which trials last ended.
        self.ended.pop(trial.number, None)
        self.ended[trial.number] = trial
        if self.on_trial is not None:
            self.on_trial(trial)
        return trial
