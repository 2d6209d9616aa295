"""Which fit comes next: promotions, packs, time, lost workers; and a whole search without a cluster."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.errors import ConfigError
from raymlops.lake import Lake
from raymlops.search import candidates
from raymlops.search.journal import Journal, facts, finished
from raymlops.search.leaderboard import Leaderboard, Trial
from raymlops.search.pace import Pace
from raymlops.search.proposals import Earlier, Proposals
from raymlops.search.schedule import Finished, Job, Order, Proposal, Schedule, Wait, ladder
from raymlops.search.selection import Outcome, Problem, Search
from raymlops.search.work import Worker, left_over


class Numbers:
    """Proposes 0, 1, 2, ...; remembers what it is told."""

    def __init__(self) -> None:
        self.asked = 0
        self.told: list[tuple[int, float, int]] = []
        self.failed: list[int] = []

    def ask(self) -> Proposal:
        self.asked += 1
        return Proposal(number=self.asked - 1, family="f", params={}, point={"x": self.asked - 1})

    def tell(self, proposal: Proposal, score: float, *, rung: int, full: bool, fit_s: float) -> None:
        self.told.append((proposal.number, score, rung))

    def fail(self, proposal: Proposal) -> None:
        self.failed.append(proposal.number)


def outcome(score: float, *, full: bool = False, fit_s: float = 1.0) -> Outcome:
    return Outcome(full=full, score=score, train_score=score, gap=0.0, fit_s=fit_s, learned={})


def schedule(**changed: Any) -> Schedule:
    given: dict[str, Any] = {"proposer": Numbers(), "shares": (1 / 9, 1 / 3, 1.0), "mode": "max", "trials": 9}
    return Schedule(**{**given, **changed})


def ordered(given: Order | Wait | Finished) -> Order:
    assert isinstance(given, Order), given
    return given


def test_the_ladder_has_no_rung_of_too_few_rows() -> None:
    assert ladder(1000) == (1.0,)
    assert ladder(18_000) == pytest.approx((1 / 9, 1 / 3, 1.0))
    assert ladder(1_000_000)[0] == pytest.approx(1 / 81)


def test_the_best_third_of_a_rung_moves_up_and_no_trial_runs_twice_on_one_rung() -> None:
    plan = schedule(proposer=Numbers())
    ran: list[tuple[int, int]] = []
    while isinstance(given := plan.order(0.0), Order):
        for job in given.jobs:
            ran.append((job.proposal.number, job.rung))
            # The third configuration is the best, and the further from it the worse.
            score = -abs(job.proposal.number - 2.0)
            plan.result(job.proposal.number, job.rung, outcome(score, full=job.share == 1.0))
    assert given == Finished(reason="all 9 trials ended")
    assert len(ran) == len(set(ran))
    assert [number for number, rung in ran if rung == 0] == list(range(9))
    assert (2, 2) in ran
    assert sum(rung == 1 for _, rung in ran) <= 5
    assert plan.ended[2].curve == ((1 / 9, 0.0), (1 / 3, 0.0), (1.0, 0.0))
    assert plan.ended[2].fit_s == 3.0


def test_the_lowest_loss_moves_up() -> None:
    plan = schedule(mode="min", trials=3)
    for score in (0.5, 0.1, 0.3):
        job = ordered(plan.order(0.0)).jobs[0]
        plan.result(job.proposal.number, job.rung, outcome(score))
    assert [(job.proposal.number, job.rung) for job in ordered(plan.order(0.0)).jobs] == [(1, 1)]


def test_fits_known_to_be_short_come_in_packs_and_the_rest_is_shared_by_all_workers() -> None:
    plan = schedule(shares=(1.0,), trials=100, lanes=2)
    assert len(ordered(plan.order(0.0)).jobs) == 1
    plan.result(0, 0, outcome(1.0, full=True, fit_s=0.125))
    assert len(ordered(plan.order(0.0)).jobs) == 4
    sizes = []
    while isinstance(given := plan.order(0.0), Order):
        sizes.append(len(given.jobs))
    assert sizes[-1] == 1
    assert isinstance(given, Wait)


def test_a_long_fit_comes_alone() -> None:
    plan = schedule(shares=(1.0,), trials=100)
    ordered(plan.order(0.0))
    plan.result(0, 0, outcome(1.0, full=True, fit_s=3.0))
    assert len(ordered(plan.order(0.0)).jobs) == 1


def test_when_a_worker_dies_with_a_pack_each_fit_runs_alone_until_the_culprit_is_known() -> None:
    plan = schedule(shares=(1.0,), trials=100)
    ordered(plan.order(0.0))
    plan.result(0, 0, outcome(1.0, full=True, fit_s=0.2))
    pack = ordered(plan.order(0.0)).jobs
    assert len(pack) == 3
    plan.lost(pack, "the worker died")
    assert 1 not in plan.ended
    alone = ordered(plan.order(0.0)).jobs
    assert alone == pack[:1]
    plan.lost(alone, "the worker died")
    assert plan.ended[1].status == "failed"
    assert plan.ended[1].error == "the worker died"
    assert [ordered(plan.order(0.0)).jobs[0].proposal.number for _ in range(2)] == [2, 3]


def test_time_ends_the_search_and_what_runs_may_use_what_is_left() -> None:
    plan = schedule(shares=(1.0,), trials=None, deadline=10.0)
    job = ordered(plan.order(2.0)).jobs[0]
    assert job.until_s == 8.0
    plan.result(0, 0, outcome(1.0, full=True))
    assert isinstance(plan.order(9.0), Order)
    assert isinstance(plan.order(10.0), Wait)
    plan.result(1, 0, outcome(1.0, full=True))
    assert plan.order(10.0) == Finished(reason="the time budget is used")


def test_a_fit_leaves_time_for_the_last_one_and_only_the_first_may_run_on() -> None:
    plan = schedule(shares=(1.0,), trials=None, deadline=16.0, reserve=0.6, lanes=2)
    first, second = (ordered(plan.order(0.0)).jobs[0] for _ in range(2))
    # Ten seconds of fitting are followed by six for the fit on all rows.
    assert first.until_s == second.until_s == pytest.approx(10.0)
    assert first.stop_s is None
    assert second.stop_s == 17.0
    plan.result(0, 0, outcome(1.0, full=True, fit_s=5.0))
    third = ordered(plan.order(6.0)).jobs[0]
    # Of the ten seconds left the leader's last fit needs three, but this one may come to lead.
    assert third.until_s == pytest.approx(10.0 / 1.6)
    assert isinstance(plan.order(13.5), Wait)


def test_what_a_lost_worker_left_is_not_taken_up_when_the_time_is_used() -> None:
    plan = schedule(shares=(1.0,), trials=None, deadline=10.0)
    ordered(plan.order(0.0))
    plan.result(0, 0, outcome(1.0, full=True))
    job = ordered(plan.order(8.0)).jobs[0]
    plan.again([job])
    assert ordered(plan.order(9.0)).jobs[0].until_s == pytest.approx(1.0)
    plan.again([job])
    assert plan.order(10.0) == Finished(reason="the time budget is used")


def test_past_its_time_a_search_without_a_trial_waits_for_the_first_and_orders_no_other() -> None:
    plan = schedule(shares=(1.0,), trials=None, deadline=10.0, lanes=2)
    first, second = (ordered(plan.order(0.0)).jobs[0] for _ in range(2))
    plan.again([second])
    assert plan.order(11.0) == Wait()
    plan.again([first])
    # Nothing runs any more: the next one may run on.
    assert ordered(plan.order(12.0)).jobs[0].stop_s is None


def test_rows_that_no_fit_can_take_in_the_time_left_are_thinned_for_the_last_one() -> None:
    plan = schedule(trials=None, deadline=100.0, reserve=0.5)
    for score in (0.5, 0.9):
        number = ordered(plan.order(0.0)).jobs[0].proposal.number
        plan.result(number, 0, outcome(score, fit_s=9.0))
    # On all rows it takes 9 x 9^1.1 = 101 s, more than there is: no hurried climb, but the best of three moves up as ever.
    assert ordered(plan.order(10.0)).jobs[0].proposal.number == 2
    plan.result(2, 0, outcome(0.1, fit_s=9.0))
    job = ordered(plan.order(10.0)).jobs[0]
    assert (job.proposal.number, job.rung) == (1, 1)
    assert plan.last_fit(1, 40.0).pace(1.0) == (1.0, 1.0)
    late = plan.last_fit(1, 80.0)
    assert late.pace(1.0) == (1.0, pytest.approx((18 / 50.4) ** (1 / 1.1), rel=0.01))
    assert late.pace(2.0) == (2.0, pytest.approx((36 / 50.4) ** (1 / 1.1), rel=0.01))
    assert late.pace(5.0) == (pytest.approx(50.4 / 18, rel=0.01), 1.0)
    assert late.until_s == pytest.approx(18.0)
    assert plan.last_fit(1, 99.99).pace(1.0)[1] == pytest.approx(1 / 9)


def test_the_last_fit_is_of_what_promises_most_in_the_time_left_not_of_what_scores_best_on_a_sample() -> None:
    class Two(Numbers):
        def ask(self) -> Proposal:
            return replace(super().ask(), family=("slow", "quick")[self.asked % 2])

    plan = schedule(proposer=Two(), trials=None, deadline=100.0, reserve=1.0)
    for family, fit_s, scores in (("quick", 1.0, (0.80, 0.84)), ("slow", 40.0, (0.80, 0.85))):
        job = ordered(plan.order(0.0)).jobs[0]
        assert job.proposal.family == family
        for rung, score in enumerate(scores):
            plan.result(job.proposal.number, rung, outcome(score, fit_s=fit_s * 3**rung))
    # Half of the time is enough for the quick one on all rows, expected at 0.84 + 0.7 x 0.04; for the slow one of no more than it saw.
    assert plan.pick([0, 1], 50.0) == 0
    assert plan.pick([0, 1], -900.0) == 1


def test_a_model_that_grows_with_its_rows_and_can_hurry_promises_more() -> None:
    pace = Pace(1.0)
    for number, growing in enumerate((False, True)):
        for share, score in ((1 / 9, 0.66), (1 / 3, 0.69)):
            pace.told(number, "f", share, 1.0, score, growing=growing, quickest=2.0 if growing else 1.0)
    fixed, grows = (pace.promise(number, 100.0) for number in range(2))
    assert (fixed, grows) == (pytest.approx(0.69 + 0.7 * 0.03), pytest.approx(0.69 + 0.9 * 0.03))
    # Three times the rows take a little more than three times as long: in half of that, only the one that can hurry sees them all.
    assert pace.promise(1, 0.5 * 3**1.1) == pytest.approx(grows)
    assert pace.promise(0, 0.5 * 3**1.1) < fixed


def test_a_window_of_the_past_is_planned_with_its_own_rows_not_with_all() -> None:
    pace = Pace(1.0)
    pace.told(0, "f", 1 / 9, 1.0, 0.70, reach=0.25)
    pace.told(1, "f", 1 / 9, 1.0, 0.70)
    assert pace.last_s(0, "f") == pytest.approx(2.25**1.1)
    assert pace.last_s(1, "f") == pytest.approx(9**1.1)
    # A third of all rows is more than the window holds: the trial is complete there.
    pace.told(0, "f", 1 / 3, 2.0, 0.73, full=True, reach=0.25)
    assert pace.last_s(0, "f") == pytest.approx(2.0)
    late = pace.last_fit(0, "f", {}, 1.0, 1 / 9)
    assert late.pace(1.0) == (1.0, pytest.approx(0.25 * 0.5 ** (1 / late.growth)))
    assert late.pace(2.0) == (2.0, 0.25)
    assert late.more == pytest.approx(4.0)
    assert pace.last_fit(0, "f", {}, 0.001, 1 / 9).pace(1.0)[1] == pytest.approx(1 / 9)


def test_a_family_without_a_climb_is_expected_to_gain_what_others_gained() -> None:
    pace = Pace(1.0)
    for share, score in ((1 / 9, 0.70), (1 / 3, 0.74)):
        pace.told(0, "climbed", share, 1.0, score)
    pace.told(1, "young", 1 / 3, 1.0, 0.73, growing=True)
    assert pace.unclimbed(1)
    assert not pace.unclimbed(0)
    assert pace.promise(1, 100.0) == pytest.approx(0.73 + 0.9 * 0.04)


def test_within_a_budget_the_family_that_grows_climbs_once_whatever_the_others_score() -> None:
    class Two(Numbers):
        def ask(self) -> Proposal:
            return replace(super().ask(), family=("grows", "fixed")[self.asked % 2])

    plan = schedule(proposer=Two(), trials=None, deadline=1000.0, reserve=1.0)
    for score, learned in ((0.8, {}), (0.7, {"rounds": 30})):
        job = ordered(plan.order(0.0)).jobs[0]
        assert job.rung == 0
        plan.result(job.proposal.number, 0, replace(outcome(score), learned=learned))
    job = ordered(plan.order(0.0)).jobs[0]
    assert (job.proposal.family, job.rung) == ("grows", 1)
    later = ordered(plan.order(0.0)).jobs[0]
    assert later.rung == 0  # once: from here on by score


def test_how_much_longer_more_rows_take_is_learnt_from_what_climbed() -> None:
    plan = schedule(trials=None, deadline=1000.0, reserve=1.0)
    for number, score in enumerate((0.9, 0.5, 0.1)):
        ordered(plan.order(0.0))
        plan.result(number, 0, outcome(score, fit_s=2.0))
    assert plan.last_fit(0, 990.0).over == pytest.approx(2.0 * 9**1.1 / 9)
    assert ordered(plan.order(0.0)).jobs[0].rung == 1
    plan.result(0, 1, outcome(0.95, fit_s=2.0 * 3**1.5))
    # Others of the family are expected to grow as fast.
    assert plan.last_fit(0, 990.0).over == pytest.approx(2.0 * 9**1.5 / 9)
    assert plan.last_fit(1, 990.0).over == pytest.approx(2.0 * 9**1.5 / 9)


def test_a_search_that_has_no_trial_yet_goes_on_past_its_time() -> None:
    plan = schedule(trials=None, deadline=1.0)
    ordered(plan.order(0.0))
    assert not plan.overdue(5.0)
    plan.failure(0, "ValueError: no")
    assert not plan.overdue(5.0)
    ordered(plan.order(0.5))
    plan.result(1, 0, outcome(0.5))
    assert plan.overdue(5.0)


def test_a_failure_leaves_the_next_one_the_right_to_run_on() -> None:
    plan = schedule(trials=None, deadline=1.0)
    ordered(plan.order(0.0))
    plan.failure(0, "ValueError: no")
    assert ordered(plan.order(0.5)).jobs[0].stop_s is None


def test_before_time_runs_out_the_best_so_far_is_fitted_on_all_rows() -> None:
    plan = schedule(shares=(1 / 9, 1 / 3, 1.0), trials=None, deadline=100.0)
    for score in (0.1, 0.9):
        job = ordered(plan.order(1.0)).jobs[0]
        plan.result(job.proposal.number, 0, outcome(score, fit_s=1.5))
    job = ordered(plan.order(60.0)).jobs[0]
    assert (job.proposal.number, job.share) == (1, 1.0)


def test_a_fit_on_all_rows_that_takes_long_is_left_to_the_last_one_with_its_time_set_aside() -> None:
    plan = schedule(shares=(1 / 9, 1 / 3, 1.0), trials=None, deadline=100.0, reserve=0.6)
    for score in (0.1, 0.9):
        job = ordered(plan.order(1.0)).jobs[0]
        plan.result(job.proposal.number, 0, outcome(score, fit_s=4.0))
    # 45 s by one worker, and for the last fit 0.6 of that: 27 s.
    assert ordered(plan.order(50.0)).jobs[0].rung == 0
    assert plan.order(74.0) == Wait()


def test_a_window_of_the_past_that_is_complete_on_a_low_rung_stands_on_the_top_one() -> None:
    plan = schedule(trials=1)
    ordered(plan.order(0.0))
    plan.result(0, 0, outcome(0.7, full=True))
    assert plan.ended[0].status == "done"
    assert plan.order(0.0) == Finished(reason="all 1 trials ended")


def test_what_was_found_enough_ends_the_search_with_its_sentence() -> None:
    plan = schedule(enough=lambda trials: "more time is not expected to help" if len(trials) == 2 else None)
    for _ in range(2):
        job = ordered(plan.order(0.0)).jobs[0]
        plan.result(job.proposal.number, job.rung, outcome(0.5))
    # One trial is still fitted on all rows.
    job = ordered(plan.order(0.0)).jobs[0]
    assert job.share == 1.0
    plan.result(job.proposal.number, job.rung, outcome(0.5, full=True))
    assert plan.order(0.0) == Finished(reason="more time is not expected to help")


# --- a whole search, worker and journal, without a cluster -------------------------------------------


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9000, 3)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=9000) * 0.3 > 0).astype(float)
    cut = {"train": slice(0, 7000), "validation": slice(7000, 8000), "test": slice(8000, 9000)}
    split = {f"{axis}_{name}": data[rows] for name, rows in cut.items() for axis, data in (("x", x), ("y", y))}
    return Arrays(**split, time_test=None)


CONTRACT = DataContract(
    columns=tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in "abc"),
    label="y",
    task="binary",
    classes=(0, 1),
)


def searched(arrays: Arrays, journal: Journal, trials: int, most_orders: int = 1000) -> Schedule:
    problem = Problem.of(Search(candidates=[candidates.linear(), candidates.xgboost()]), CONTRACT, arrays)
    done = journal.open({"seed": 0})
    proposals = Proposals(
        problem.families,
        (1.0,),
        mode="max",
        seed=0,
        floor=0.5,
        earlier=journal.earlier("roc_auc", "max"),
        known=[item.proposal for item in done],
    )
    plan = schedule(proposer=proposals, shares=ladder(7000), trials=trials)
    for item in done:
        plan.replay(item.proposal, item.rung, item.outcome, item.reason)
    worker = Worker(problem, arrays)
    while most_orders and isinstance(given := plan.order(time.monotonic()), Order):
        most_orders -= 1
        ended = worker.work(given)
        journal.write(list(finished(given.jobs, ended)))
        for job in given.jobs:
            found = ended[job.proposal.number]
            assert isinstance(found, Outcome), found
            plan.result(job.proposal.number, job.rung, found)
        assert left_over(given, ended) == ()
    return plan


def test_a_search_that_broke_off_goes_on_from_its_journal_and_the_next_starts_from_what_it_found(
    arrays: Arrays, tmp_path: Any
) -> None:
    lake = Lake(str(tmp_path))
    first = searched(arrays, Journal(lake, "churn", "rows", "e1"), 6, most_orders=3)
    assert 3 <= len(first.ended) < 6
    second = searched(arrays, Journal(lake, "churn", "rows", "e2"), 6)
    assert all(second.ended[number].params == trial.params for number, trial in first.ended.items())
    assert sorted(second.ended) == list(range(6))
    assert [second.ended[number].family for number in (0, 1)] == ["linear", "xgboost"]
    again = Journal(lake, "churn", "rows", "e2")
    board = Leaderboard(metric="roc_auc", mode="max", trials=second.board)
    again.open({"seed": 0})
    again.close(board, second.points, board.best)
    # Closed by e2: another event begins anew, with the promoted configuration first.
    third = searched(arrays, Journal(lake, "churn", "rows", "e3"), 2)
    assert dict(third.points[0]) == dict(second.points[board.best.number])


def test_a_search_for_another_metric_starts_without_what_the_last_one_found(tmp_path: Any) -> None:
    lake = Lake(str(tmp_path))
    journal = Journal(lake, "churn", "rows", "e1")
    journal.open({})
    trial = Trial(number=0, family="linear", params={}, score=0.8)
    journal.close(Leaderboard(metric="roc_auc", mode="max", trials=(trial,)), {0: {"family": "linear"}}, trial)
    (kept,) = journal.earlier("roc_auc", "max")
    assert kept == Earlier(point={"family": "linear"}, score=0.8, full=True)
    assert journal.earlier("log_loss", "min") == []
    assert journal.earlier("roc_auc", "min") == []
    lake.write("searches/churn/last.json", b'[{"point": {}, "score": 0.8, "full": true}]')
    assert journal.earlier("roc_auc", "max") == []


def test_an_edit_of_what_scores_depend_on_makes_another_search(arrays: Arrays) -> None:
    def told(**wishes: Any) -> dict[str, Any]:
        wishes = {"candidates": [candidates.hist_boosting()], **wishes}
        return facts(Problem.of(Search(**wishes), CONTRACT, arrays), 0, arrays, (1.0,), (1.0,))

    edits: tuple[dict[str, Any], ...] = (
        {"weights": "balanced"},
        {"weights": lambda x, y: y + 1.0},
        {"weights": lambda x, y: y + 2.0},
        {"monotone": {"a": 1}},
        {"metric": lambda y, p: float(p.mean())},
        {"metric": lambda y, p: float(p.mean() + 1)},
        {"candidates": [candidates.hist_boosting({"max_iter": 7})]},
    )
    keys = {json.dumps(told(**edit), sort_keys=True) for edit in ({}, *edits)}
    assert len(keys) == 8
    assert json.dumps(told(), sort_keys=True) in keys


def hanging() -> Any:
    """A family whose fits never end."""

    class Hangs:
        name, tasks, start = "hangs", ("binary",), {}

        def space(self, trial: Any) -> dict[str, Any]:
            return {}

        def build(self, *_given: Any) -> Any:
            import threading

            threading.Event().wait()

    return Hangs()


def test_a_fit_that_does_not_end_is_given_up_and_the_rest_of_its_order_is_left_over(arrays: Arrays) -> None:
    problem = Problem.of(Search(candidates=[hanging(), candidates.linear()]), CONTRACT, arrays)
    plan = schedule(trial_timeout_s=0.2)
    jobs = [
        plan._job(Proposal(number=i, family=name, params={}, point={}), 0, 0.0)
        for i, name in enumerate(("hangs", "linear"))
    ]
    worker = Worker(problem, arrays)
    ended = worker.work(Order(jobs=tuple(jobs)))
    assert ended == {0: "no result within 0.2 s (trial_timeout_s)"}
    assert worker.stuck
    assert left_over(Order(jobs=tuple(jobs)), ended) == (jobs[1],)


def test_a_worker_that_started_late_has_what_is_left_of_the_time_and_no_more(arrays: Arrays) -> None:
    had: list[float] = []

    class Told:
        until_s: float | None = None

        def fit(self, *_rows: Any) -> Told:
            had.append(self.until_s or 0.0)
            return self

        def predict(self, x: Any) -> Any:
            return x[:, 0]

    class Family:
        name, tasks, start = "told", ("binary",), {}

        def space(self, trial: Any) -> dict[str, Any]:
            return {}

        def build(self, *_given: Any) -> Told:
            return Told()

    problem = Problem.of(Search(candidates=[Family()]), CONTRACT, arrays)
    given = [Proposal(number=i, family="told", params={}, point={}) for i in range(2)]
    jobs = tuple(Job(proposal=item, rung=0, share=1.0, limit_s=60.0, until_s=30.0) for item in given)
    assert set(Worker(problem, arrays).work(Order(jobs=jobs), late_s=20.0)) == {0, 1}
    assert all(9.0 < until <= 10.0 for until in had)
    had.clear()
    # Its time was used before it came up: the first fit is made with a tenth of it, the second is left out.
    assert set(Worker(problem, arrays).work(Order(jobs=jobs), late_s=100.0)) == {0}
    assert had == [3.0]


def test_a_fit_that_runs_when_the_time_is_used_is_stopped_without_a_result(arrays: Arrays) -> None:
    problem = Problem.of(Search(candidates=[hanging(), candidates.linear()]), CONTRACT, arrays)
    names = enumerate(("linear", "hangs"))
    given = [Proposal(number=i, family=name, params={}, point={}) for i, name in names]
    jobs = tuple(Job(proposal=item, rung=0, share=1.0, limit_s=60.0, until_s=5.0, stop_s=0.5) for item in given)
    worker = Worker(problem, arrays)
    ended = worker.work(Order(jobs=jobs))
    assert set(ended) == {0}
    assert worker.stuck
    assert left_over(Order(jobs=jobs), ended) == (jobs[1],)


def test_rows_and_binned_matrices_are_made_once_and_shared(arrays: Arrays) -> None:
    from raymlops.search.rows import RowCache

    cache = RowCache(arrays, 0)
    whole = cache.get(1.0, 1.0)
    assert np.shares_memory(whole.x, arrays.x_train)
    assert cache.get(1.0, 1 / 3) is cache.get(1.0, 1 / 3)
    made: list[int] = []
    for _ in range(2):
        whole.once(("train", 256), lambda: made.append(1))
    assert made == [1]


# --- proposals ----------------------------------------------------------------------------------------


def test_a_parameter_that_is_an_object_is_refused_before_the_search() -> None:
    from sklearn.ensemble import BaggingClassifier
    from sklearn.tree import DecisionTreeClassifier

    held = {"estimator": DecisionTreeClassifier()}
    sentence = r"'estimator' is an object \(DecisionTreeClassifier\).*put the object inside make="
    with pytest.raises(ConfigError, match=sentence):
        candidates.sklearn(BaggingClassifier, name="bagging", start=held)
    drawn = candidates.sklearn(BaggingClassifier, lambda trial: held, name="bagging")
    with pytest.raises(ConfigError, match=sentence):
        Proposals({"bagging": drawn}, (1.0,), mode="max", seed=0, floor=0.5)
    plain = candidates.sklearn(BaggingClassifier, name="bagging", start={"n": np.int64(3), "sizes": (2, None, "a")})
    assert Proposals({"bagging": plain}, (1.0,), mode="max", seed=0, floor=0.5)


def test_a_champion_whose_ranges_no_longer_fit_is_not_proposed() -> None:
    families = {"linear": candidates.linear()}
    fitting = Earlier(point={"family": "linear", "linear.C": 0.3}, score=0.8, full=True)
    beyond = Earlier(point={"family": "linear", "linear.C": 1e9}, score=0.9, full=True)
    gone = Earlier(point={"family": "forest"}, score=0.9, full=True)
    made = Proposals(families, (1.0,), mode="max", seed=0, floor=0.5, earlier=[beyond, gone, fitting])
    assert made.ask().params == {"C": 0.3}
    assert made.ask().params == {"C": 1.0}


def test_proposals_learn_and_close_in_on_the_best() -> None:
    families = {"linear": candidates.linear()}
    made = Proposals(families, (1.0,), mode="max", seed=0, floor=-9.0)
    scores = []
    for _ in range(40):
        proposal = made.ask()
        score = -((np.log10(proposal.params["C"]) + 2.0) ** 2)  # best at C = 0.01
        scores.append(score)
        made.tell(proposal, score, rung=0, full=True, fit_s=1.0)
    assert np.mean(scores[-10:]) > np.mean(scores[:10])
    assert max(scores) > -0.01


def test_time_goes_to_families_that_are_near_the_best_and_quick() -> None:
    families = {family.name: family for family in candidates.defaults()}
    made = Proposals(families, (1.0,), mode="max", seed=0, floor=0.5)
    scores = {"xgboost": (0.90, 1.0), "linear": (0.70, 0.1), "random_forest": (0.89, 9.0), "hist_boosting": (0.90, 1.0)}
    drawn = []
    for _ in range(84):
        proposal = made.ask()
        drawn.append(proposal.family)
        score, fit_s = scores[proposal.family]
        made.tell(proposal, score, rung=0, full=False, fit_s=fit_s)
    # Each family's start, then 40 draws by promise beside as many steps around the best.
    assert drawn[:4] == list(families)
    counts = {name: drawn[4::2].count(name) for name in families}
    assert counts["xgboost"] + counts["hist_boosting"] > 25
    assert 0 < counts["random_forest"] < counts["xgboost"]
    assert counts["linear"] < 5
