"""The search on Ray Tune: every Tune trial is one order of fits; actors are used again and share one copy of the rows."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import optuna
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from raymlops.errors import SearchFailed
from raymlops.search.ensemble import Library
from raymlops.search.journal import Journal, facts, finished
from raymlops.search.pace import LastFit, refit_cost
from raymlops.search.proposals import Proposals
from raymlops.search.ray_worker import Kept, OrderTrainable
from raymlops.search.schedule import Finished, Order, Schedule, Wait, ladder
from raymlops.search.selection import (
    Fit,
    Leaderboard,
    Outcome,
    Problem,
    Search,
    SearchResult,
    Trial,
    finish,
    recent_shares,
    refit,
    spreads,
)
from raymlops.search.spread import Spread, plan_spread
from raymlops.search.stopping import Patience
from raymlops.search.work import left_over

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.data.snapshot import Arrays
    from raymlops.settings import Settings

__all__ = ["refit", "search"]

_START_S = 300.0
_STILLBORN = 6
_GRACE_S = 2.0
_CLOSING_S = 1.5
_ENSEMBLE_SHARE = 0.15  # of a budget, for choosing, judging and fitting an ensemble after the search
_ORDERS = 1_000_000
_DIED = "the worker died"
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C must end the run; Tune's own handler would end the search and let the run go on.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "60",
    # A worker that does not stop by itself is not waited for: its fit is given up already.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
}


def search(
    arrays: Arrays,
    contract: DataContract,
    spec: Search,
    *,
    ordered: bool,
    settings: Settings,
    max_gap: float | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    journal: Journal | None = None,
) -> SearchResult:
    """Try ``spec.trials`` configurations, or as many as its time allows, and fit the best one for the gate.

    Trials climb a ladder of shares of the train rows by asynchronous successive halving
    (:class:`raymlops.search.schedule.Schedule`) over what :class:`raymlops.search.proposals.Proposals` gives.

    Parameters
    ----------
    ordered : rows are in time order, so the share of recent rows to learn from may be searched too
    max_gap : the gate's limit on over-fitting; trials beyond it are chosen last
    on_trial : called in this process with every trial as it ends, and again when it has climbed further
    journal : keeps what was finished, so that the same search goes on after a crash, and gives the last search's finds

    Raises
    ------
    ConfigError : a metric or candidates that do not fit the task, a search space that fails
    SearchFailed : no trial gave a model, no worker can start, or no CPU became free for the first one within 300 s
    """
    began = time.monotonic()
    problem = Problem.of(spec, contract, arrays)
    plan = _spread(spec, problem, arrays)
    problem = problem.spread(plan)
    lanes = max(1, min(spec.max_concurrent, int(ray.cluster_resources().get("CPU", 1))))
    threads = min(lanes, _own_cpus())
    folder, name = Path(settings.home) / "tune", f"search-{uuid.uuid4().hex[:12]}"
    with _quiet():
        schedule = _schedule(arrays, problem, spec, ordered, lanes, began, on_trial, journal)
        watch, library = _Watch(), Library(problem.objective, max_gap)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(OrderTrainable, arrays=arrays, problem=problem), _resources(problem)
            ),
            tune_config=tune.TuneConfig(
                metric="ended",
                mode="max",
                search_alg=_Orders(schedule, journal, watch, library),
                num_samples=_ORDERS,
                max_concurrent_trials=lanes,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=name, storage_path=str(folder), verbose=0, callbacks=[watch], stop=_Deadline(schedule)
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(folder / name, ignore_errors=True)
    leaderboard = Leaderboard(
        metric=problem.objective.metric,
        mode=problem.objective.mode,
        trials=schedule.board,
        max_gap=max_gap,
        prefer=spec.prefer,
        ended=watch.reason,
        seconds=time.monotonic() - began,
    )
    result = finish(
        problem,
        arrays,
        leaderboard,
        threads=threads,
        end=_End(schedule),
        fit=None if plan is None else _spread_fit(plan, settings),
    )
    if on_trial is not None and result.leaderboard is not leaderboard:
        on_trial(result.trial)
    if journal is not None:
        journal.close(result.leaderboard, schedule.points, result.trial)
    if not problem.ensemble:
        return result
    library.until, library.threads = None if spec.time_budget_s is None else began + float(spec.time_budget_s), threads
    return replace(result, library=library)


def _schedule(
    arrays: Arrays,
    problem: Problem,
    spec: Search,
    ordered: bool,
    lanes: int,
    began: float,
    on_trial: Callable[[Trial], None] | None,
    journal: Journal | None,
) -> Schedule:
    """The plan of the search, with all that an earlier process of it had finished."""
    rows, objective = len(arrays.y_train), problem.objective
    shares = ladder(rows, problem.most)
    recent = recent_shares(rows) if ordered and spec.recency else (1.0,)
    done = [] if journal is None else journal.open(facts(problem, spec.seed, arrays, shares, recent))
    proposals = Proposals(
        problem.families,
        recent,
        mode=objective.mode,
        seed=spec.seed,
        floor=problem.baseline,
        earlier=() if journal is None else journal.earlier(objective.metric, objective.mode),
        known=[item.proposal for item in done],
    )
    schedule = Schedule(
        proposer=proposals,
        shares=shares,
        mode=objective.mode,
        trials=spec.trials,
        lanes=lanes,
        began=began,
        deadline=None if spec.time_budget_s is None else began + _usable(float(spec.time_budget_s), problem.ensemble),
        reserve=refit_cost(1.0 + len(arrays.y_validation) / rows, min(lanes, _own_cpus())),
        trial_timeout_s=None if spec.trial_timeout_s is None else float(spec.trial_timeout_s),
        enough=Patience(objective.mode) if spec.stop_early else None,
        quickest=lambda proposal: float(getattr(problem.build(proposal.family, proposal.params), "quickest", 1.0)),
        on_trial=on_trial,
    )
    for item in done:
        schedule.replay(item.proposal, item.rung, item.outcome, item.reason)
    return schedule


def _own_cpus() -> int:
    """CPUs of the machine that the last fit is made on, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usable(budget_s: float, ensemble: int = 0) -> float:
    """A budget without the time in which Tune's workers go before the last fit begins, and without an ensemble's."""
    return budget_s * (1.0 - _ENSEMBLE_SHARE * bool(ensemble)) - min(_CLOSING_S, 0.05 * budget_s)


def _spread(spec: Search, problem: Problem, arrays: Arrays) -> Spread | None:
    """Whether the rows of the last fit are more than a worker of this cluster holds."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    held = [min(spec.max_concurrent, int(node["CPU"])) for node in nodes]
    return plan_spread(
        spec.distributed,
        rows=len(arrays.y_train) + len(arrays.y_validation) + len(arrays.y_test),
        columns=arrays.x_train.shape[1],
        classes=problem.n_classes,
        worker_bytes=min(
            (node.get("memory", math.inf) / lanes for node, lanes in zip(nodes, held, strict=True)), default=math.inf
        ),
        workers=sum(int(node["CPU"]) for node in nodes),
        able=any(spreads(family) for family in problem.families.values()),
    )


def _spread_fit(plan: Spread, settings: Settings) -> Fit:
    # Ray Train and Ray Data take a second to import, and few searches need them.
    from raymlops.search.ray_train import spread_fit

    return spread_fit(plan.workers, settings)


def _resources(problem: Problem) -> dict[str, float]:
    """One CPU a worker, and what the families ask for beyond it (``resources``), such as ``{"GPU": 0.5}``."""
    wanted: dict[str, float] = {"CPU": 1.0}
    for family in problem.families.values():
        for kind, amount in (getattr(family, "resources", None) or {}).items():
            wanted[kind] = max(wanted.get(kind, 0.0), float(amount))
    return wanted


class _Deadline(tune.Stopper):
    """Ends what still runs shortly after the time is used: boosting ends by itself, other families may not."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it for a restore that never comes; the schedule, and who watches it, stay in this process."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._schedule.overdue(time.monotonic() - _GRACE_S)


class _End:
    """What the schedule knows, at the time at which it is asked."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def pick(self, trials: Sequence[Trial]) -> Trial:
        by_number = {trial.number: trial for trial in trials}
        return by_number[self._schedule.pick(list(by_number), time.monotonic())]

    def last_fit(self, trial: Trial) -> LastFit:
        return self._schedule.last_fit(trial.number, time.monotonic())


class _Orders(Searcher):
    """Gives Tune one order after another, and the schedule what came of them."""

    def __init__(self, schedule: Schedule, journal: Journal | None, watch: _Watch, library: Library) -> None:
        super().__init__(metric="ended", mode="max")
        self._schedule, self._journal, self._watch, self._library = schedule, journal, watch, library
        self._out: dict[str, Order] = {}

    def __getstate__(self) -> dict[str, Any]:
        """As of the deadline: nothing of this process travels."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        given = self._schedule.order(time.monotonic())
        match given:
            case Order():
                self._out[trial_id] = given
                return {"order": Kept(given), "given_at": time.time()}
            case Wait():
                return None
            case Finished():
                self._watch.reason = given.reason
                return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        order = self._out.pop(trial_id, None)
        if order is None:
            return
        if result is None or "outcomes" not in result:
            # Tune gives the reason of a death only after it has told the searcher: the watch gets it next.
            self._watch.dead[trial_id] = lambda reason: self._died(trial_id, order, reason)
            return
        ended = {number: self._kept(number, outcome) for number, outcome in result["outcomes"].held.items()}
        if self._journal is not None and ended:
            self._journal.write(list(finished([job for job in order.jobs if job.proposal.number in ended], ended)))
        for job in order.jobs:
            outcome = ended.get(job.proposal.number)
            if isinstance(outcome, str):
                self._schedule.failure(job.proposal.number, outcome)
            elif outcome is not None:
                self._schedule.result(job.proposal.number, job.rung, outcome)
        self._schedule.again(left_over(order, ended))

    def _kept(self, number: int, outcome: Outcome | str) -> Outcome | str:
        """What a fit said of validation rows goes to the library; schedule and journal need the rest."""
        if isinstance(outcome, str) or outcome.said is None:
            return outcome
        self._library.add(number, outcome.score, outcome.gap, outcome.said)
        return replace(outcome, said=None)

    def _died(self, trial_id: str, order: Order, reason: str) -> None:
        if trial_id not in self._watch.started:
            # The worker was lost before it took the order up: not the fault of these fits.
            self._watch.stillborn.append(reason)
            self._schedule.again(order.jobs)
            return
        if self._journal is not None and len(order.jobs) == 1:
            self._journal.write(list(finished(order.jobs, {order.jobs[0].proposal.number: reason})))
        self._schedule.lost(order.jobs, reason)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as :meth:`save`."""


class _Watch(tune.Callback):
    """Hears of deaths with their reasons, and of a cluster on which nothing starts."""

    def __init__(self) -> None:
        self.reason = "the time budget is used"
        self.dead: dict[str, Callable[[str], None]] = {}
        self.started: set[str] = set()
        self.stillborn: list[str] = []
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; whoever watches (a terminal, a lock) stays in this process."""
        return {"reason": self.reason, "dead": {}, "started": set(), "stillborn": [], "_began": self._began}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.started.add(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if not self.started and len(self.stillborn) >= _STILLBORN:
            raise SearchFailed(
                f"No worker of the search can start ({self.stillborn[-1]}). Each needs the modules of the candidates' own functions "
                "(spaces, metrics, weights): see that the nodes have them, or define them in the pipeline's file."
            )
        if not self.started and time.monotonic() - self._began > _START_S:
            free = ray.available_resources().get("CPU", 0)
            raise SearchFailed(
                f"No trial could start within {_START_S:.0f} s: {free:g} of {ray.cluster_resources().get('CPU', 0):g} CPUs are "
                "free and a trial needs one. Wait for other jobs, or give the cluster more CPUs."
            )

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        told = self.dead.pop(trial.trial_id, None)
        if told is None:
            return
        told(f"{_DIED}: {_last_words(trial)}"[:500])


def _last_words(trial: TuneTrial) -> str:
    """Why a worker died, from the file that Tune writes beside the driver; its own reader looks in the trial's storage."""
    path = Path(trial.pickled_error_file or "")
    if not path.is_file():
        return "no reason was given"
    error = cloudpickle.loads(path.read_bytes())
    words = str(error).strip().splitlines() or ["no reason was given"]
    return f"{type(error).__name__}: {words[0]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Tune and Optuna off the console while the search runs."""
    before = {name: os.environ.get(name) for name in _QUIET}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels, verbosity = [logger.level for logger in loggers], optuna.logging.get_verbosity()
    os.environ.update(_QUIET)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
