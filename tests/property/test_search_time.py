"""A search within a time budget ends in it, however late its workers start and however long its fits take."""

from __future__ import annotations

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.search.pace import refit_cost
from raymlops.search.schedule import Finished, Job, Order, Proposal, Schedule, Wait, ladder
from raymlops.search.selection import Outcome

BUDGET = 60.0
GRACE = 1.0


class Mixed:
    """Proposes boosting first, then it and a family whose fits do not end by themselves."""

    def __init__(self, stubborn: list[bool]) -> None:
        self._stubborn, self._asked = stubborn, 0

    def ask(self) -> Proposal:
        number, self._asked = self._asked, self._asked + 1
        wild = number > 0 and self._stubborn[number % len(self._stubborn)]
        return Proposal(number=number, family="stubborn" if wild else "boosting", params={}, point={})

    def tell(self, proposal: Proposal, score: float, *, rung: int, full: bool, fit_s: float) -> None: ...

    def fail(self, proposal: Proposal) -> None: ...


def took(job: Job, spent: float, full_s: float, growth: float) -> tuple[float, bool]:
    """Seconds of a fit as a worker runs it, and whether it has a result."""
    natural = full_s * job.share**growth
    assert job.until_s is not None
    if job.proposal.family == "boosting":
        return min(natural, max(0.1 * job.until_s, job.until_s - spent)), True
    stop = natural if job.stop_s is None else max(0.1 * job.stop_s, job.stop_s - spent)
    return min(natural, stop), natural <= stop


@settings(max_examples=25, deadline=None)
@given(
    starts=st.lists(st.floats(0.0, 0.5 * BUDGET), min_size=2, max_size=2),
    full_s=st.floats(0.01, 500.0),
    growth=st.floats(0.8, 2.0),
    scores=st.lists(st.floats(0.5, 1.0), min_size=3, max_size=20),
    stubborn=st.lists(st.booleans(), min_size=1, max_size=5),
    rows=st.sampled_from([1000, 20_000, 1_000_000]),
)
def test_fits_and_the_last_one_end_within_the_budget(
    starts: list[float], full_s: float, growth: float, scores: list[float], stubborn: list[bool], rows: int
) -> None:
    plan = Schedule(
        proposer=Mixed(stubborn),
        shares=ladder(rows),
        mode="max",
        trials=None,
        lanes=2,
        deadline=BUDGET,
        reserve=refit_cost(1.2, 2),
    )
    # Orders are given at once; a worker takes up its first one when it has started.
    busy: list[tuple[float, int, Order, float]] = []
    now, serial, orders = 0.0, 0, 0
    free = list(starts)
    idle: list[float] = []
    while orders < 100:
        while free:
            start = free.pop()
            order = plan.order(now)
            if not isinstance(order, Order):
                idle.append(start)
                assert isinstance(order, Wait | Finished)
                continue
            orders += 1
            begin, at = max(now, start), max(now, start) - now
            for job in order.jobs:
                at += took(job, at, full_s, growth)[0]
            heapq.heappush(busy, (now + at, serial, order, begin))
            serial += 1
        if not busy:
            break
        given_at = now
        now, _, order, begin = heapq.heappop(busy)
        spent = begin - given_at
        for job in order.jobs:
            seconds, ended = took(job, max(0.0, spent), full_s, growth)
            if ended:
                score = scores[job.proposal.number % len(scores)] * (1.0 - 0.1 * (1.0 - job.share))
                outcome = Outcome(
                    full=job.share == 1.0,
                    score=score,
                    train_score=score,
                    gap=0.0,
                    fit_s=max(seconds, 1e-3),
                    learned={},
                )
                plan.result(job.proposal.number, job.rung, outcome)
            else:
                plan.again([job])
        free, idle = [now, *idle], []
    assert plan.ended
    if orders == 100:
        # Fits so short that the clock hardly moves: nothing can be late.
        return
    assert now <= BUDGET + GRACE
    last = plan.last_fit(plan.pick(list(plan.ended), now), now)
    assert last.until_s is not None
    assert now + last.until_s <= max(BUDGET, now + 0.1)
