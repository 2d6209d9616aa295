"""Does the retrain policy pay? Four real streams replayed through the real Watcher, Insight and policy, not over HTTP.

    OMP_NUM_THREADS=1 python benchmarks/retrain.py --data DIR [--quick] [--table NAME ...]

Every block of a stream is predicted by the champion of the time (that is its loss), then its labels come; a block stands for
a week. The loop's policy is ``RetrainPolicy()`` as it ships: alarms and the cost of a refit ask, a probe answers, the window is
chosen by back-test, and a candidate that is surely worse on the newest rows is refused. Peers: never retrain, every block,
every fourth block, and a KS trigger (any column at 0.05 after Bonferroni), each on a sliding window as long as the first
training; and ``every_fourth_all``, which learns from all rows, to tell what the timing gains from what the window gains.

A retraining alarm is harm for which the policy starts a retraining, its probe heard; ``raised`` counts what the detector raised
before any probe. An alarm is followed by harm when the loss of the model that alarmed, over the next four blocks, is above 1.1
times its hold-out loss. Alarms are those of the loop, and the first one of models that were trained at six places of the stream
and then left alone, by the same policy without its pace. ``probes`` are the cheap refits of the loop, which are no retrainings.
What was tuned: ``refit_cost``, the rows a probe compares on, and how far apart probes are, on elec2 and bike_sharing, whole; how
soon a new version is first probed, on bank_marketing (a half to a third of its predecessor's age); acs_employment_ma was never looked at.
``--quick`` replays every table's first two thirds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from raymlops.data.schema import DataContract, learn_contract
from raymlops.data.snapshot import Arrays
from raymlops.monitor.examine import examine
from raymlops.monitor.insight import Insight
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.quality import row_losses
from raymlops.monitor.report import DriftReport
from raymlops.registry.package import Reference
from raymlops.retrain import AskPerson, ProbeFirst, Retrain, RetrainPolicy, RetrainState, decide_retrain
from raymlops.search.candidates import hist_boosting
from raymlops.search.probe import held_out_predictions, probe
from raymlops.search.selection import Problem, Search, SearchResult, refit
from raymlops.search.windows import choose_window

WEEK_S = 7 * 86_400.0
FOLLOWING = 4
LEFT_ALONE = 6
_ALARMS = ("harm", "drift")
MONITOR = Monitor(window_rows=500, min_rows=100, max_age="7d", second_opinion="off")
POLICY = RetrainPolicy()
Model = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One stream, encoded: ``first`` rows to begin with, then blocks of ``block`` rows."""

    name: str
    contract: DataContract
    x: NDArray[np.float32]
    y: NDArray[np.float64]
    first: int
    block: int
    ordered: bool = True

    @property
    def blocks(self) -> list[slice]:
        return [slice(at, at + self.block) for at in range(self.first, len(self.y) - self.block + 1, self.block)]


def load(name: str, folder: Path) -> Table:
    """A table by name, in time order."""
    first, block, label, drop = {
        "elec2": (9_000, 336, "class", ("timestamp",)),
        "bank_marketing": (15_000, 500, "y", ("row", "date_inferred", "duration")),
        "bike_sharing": (8_645, 168, "cnt", ("instant", "dteday", "casual", "registered")),
        "acs_employment_ma": (
            20_000,
            5_000,
            "employed",
            ("year", "period", "id", "prediction", "predicted_probability"),
        ),
    }[name]
    path = next(p for p in sorted((folder / name).iterdir()) if p.suffix in (".csv", ".parquet"))
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if name == "acs_employment_ma":
        # Only the year is known: rows are shuffled within it, and the first year is thinned to what is trained on.
        frame = frame.sample(frac=1.0, random_state=0).sort_values("year", kind="stable")
        began = frame["year"] == frame["year"].min()
        frame = pd.concat([frame[began].iloc[:first], frame[~began]], ignore_index=True)
    frame = frame.drop(columns=list(drop))
    contract = learn_contract(frame.iloc[:first], label)
    x, y = contract.encode(frame[list(contract.names)]), contract.encode_label(frame[label])
    return Table(name=name, contract=contract, x=x, y=y, first=first, block=block, ordered=name != "acs_employment_ma")


@dataclass(slots=True, kw_only=True)
class Score:
    """Losses of the blocks, and retrainings; for the loop also its probes, and whether its alarms were right."""

    losses: list[float] = field(default_factory=list)
    retrainings: int = 0
    promoted: int = 0
    probes: int = 0
    right: list[bool] = field(default_factory=list)
    raised: list[bool] = field(default_factory=list)
    triggers: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def losses_of(table: Table, model: Model, rows: slice) -> NDArray[np.float64]:
    return row_losses(table.contract.task, table.y[rows], model(table.x[rows]))


class Fits:
    """Models of one configuration by the rows they learnt from; each fitted once, whoever asks."""

    def __init__(self, table: Table) -> None:
        self._table, self._made = table, dict[tuple[int, int], Model]()
        self._problem = Problem.of(
            Search(candidates=[hist_boosting()]), table.contract, held_out(table, table.first, 500)
        )

    def of(self, start: int, end: int) -> Model:
        """Fitted on rows ``start`` to ``end``."""
        if (start, end) not in self._made:
            self._made[start, end] = self.fit(self._table.x[start:end], self._table.y[start:end])
        return self._made[start, end]

    def fit(self, x: NDArray[np.float32], y: NDArray[np.float64]) -> Model:
        return self._problem.build("hist_boosting", hist_boosting().start).fit(x, y).predict


def held_out(table: Table, end: int, rows: int) -> Arrays:
    """All rows before ``end``; the newest ``rows`` to test, as many before them to validate."""
    test, validation = end - rows, end - 2 * rows
    parts = [slice(0, validation), slice(validation, test), slice(test, end)]
    (a, b, c), (d, e, f) = ([side[part] for part in parts] for side in (table.x, table.y))
    return Arrays(x_train=a, x_validation=b, x_test=c, y_train=d, y_validation=e, y_test=f, time_test=None)


def peer(
    table: Table, fits: Fits, blocks: list[slice], asks: Callable[[int, slice, int], bool], *, sliding: bool = True
) -> Score:
    """Retrain after each block for which ``asks(number, block, end of the champion's rows)``."""
    score, end = Score(), table.first
    for number, block in enumerate(blocks, start=1):
        model = fits.of(end - table.first if sliding else 0, end)
        score.losses.append(float(losses_of(table, model, block).mean()))
        if number < len(blocks) and asks(number, block, end):
            end, score.retrainings = block.stop, score.retrainings + 1
    return score


def ks_asks(table: Table, block: slice, end: int) -> bool:
    """Any column's two-sample KS at 0.05, Bonferroni: the default of common drift libraries."""
    limit = 0.05 / table.x.shape[1]
    sides = (table.x[max(end - table.first, 0) : end], table.x[block])
    for now, then in zip(sides[1].T, sides[0].T, strict=True):
        a, b = now[np.isfinite(now)], then[np.isfinite(then)]
        if len(a) and len(b) and ks_2samp(a, b, method="asymp").pvalue < limit:
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    version: int
    model: Model
    watcher: Watcher
    reference: Reference
    start: int


def champion_of(
    table: Table, number: int, arrays: Arrays, promised: NDArray[np.float64], model: Model, start: int = 0
) -> Champion:
    """What serves, watched against what ``promised`` said of the held-out rows."""
    x = np.concatenate([arrays.x_validation, arrays.x_test])
    y = np.concatenate([arrays.y_validation, arrays.y_test])
    reference = Reference(
        columns=table.contract.names,
        x=x,
        scores=promised,
        losses=row_losses(table.contract.task, y, promised),
        ordered=table.ordered,
    )
    watcher = Watcher(MONITOR, reference, table.contract, number)
    return Champion(version=number, model=model, watcher=watcher, reference=reference, start=start)


def serve(table: Table, champion: Champion, number: int, block: slice) -> tuple[NDArray[np.float64], ...]:
    """A block's losses, and when its rows were served; the champion's watcher has seen both."""
    scores = champion.model(table.x[block])
    losses = row_losses(table.contract.task, table.y[block], scores)
    at = (number - 1 + np.arange(len(losses)) / len(losses)) * WEEK_S
    champion.watcher.observe(table.x[block], scores, at)
    champion.watcher.add_outcomes(losses, at)
    return losses, at


def harmful(table: Table, champion: Champion, following: list[slice]) -> bool | None:
    """Whether an alarm was right; ``None`` at the end of the stream."""
    if not following:
        return None
    after = np.mean([losses_of(table, champion.model, block).mean() for block in following])
    return bool(after > 1.1 * champion.watcher.baseline.mean)


class Loop:
    """The policy over one table: what the steward does, without a cluster."""

    def __init__(self, table: Table, fits: Fits, end: int | None = None, policy: RetrainPolicy = POLICY) -> None:
        self.table, self.score, self.policy = table, Score(), policy
        self._fits, self._state = fits, RetrainState()
        self._insight = Insight(MONITOR)
        self._labelled = 0
        self._standing: DriftReport | None = None
        self._alarmed: list[tuple[Champion, int]] = []
        self._raised: list[tuple[Champion, int]] = []
        end = table.first if end is None else end
        arrays = held_out(table, end, min(table.first // 8, 1500))
        began = (end - table.first) / table.block * WEEK_S
        self.champion = self._promote(1, arrays, self._windows(arrays, None), end, began)

    def run(self, blocks: list[slice]) -> Score:
        for number, block in enumerate(blocks, start=1):
            self.serve(number, block)
            if number < len(blocks):
                self._decide(number, block)
        self.score.right, self.score.raised = self.verdicts(blocks)
        return self.score

    def serve(self, number: int, block: slice) -> None:
        losses, at = serve(self.table, self.champion, number, block)
        self.score.losses.append(float(losses.mean()))
        self._labelled += len(losses)
        self._insight.ledger.add(self.champion.version, losses, at)

    def verdicts(self, blocks: list[slice]) -> tuple[list[bool], list[bool]]:
        """Whether retraining alarms, and whatever the detector raised, were followed by harm; without those at the end."""
        found = (
            [harmful(self.table, champion, blocks[number : number + FOLLOWING]) for champion, number in alarms]
            for alarms in (self._alarmed, self._raised)
        )
        right, raised = ([verdict for verdict in verdicts if verdict is not None] for verdicts in found)
        return right, raised

    def _decide(self, number: int, block: slice) -> None:
        now = number * WEEK_S
        for told in self.champion.watcher.step(now):
            self._standing = report = self._insight.look(told, self.champion.watcher.newest)
            self._state = self._state.seen(report)
            if report.may_retrain and (not self._raised or self._raised[-1][0] is not self.champion):
                self._raised.append((self.champion, number))
        while True:
            decision = decide_retrain(
                self.policy,
                self._state,
                self._standing,
                self._labelled,
                now,
                diagnosis=self._insight.diagnosis,
                forecast=self._insight.forecast,
            )
            if not isinstance(decision, ProbeFirst):
                break
            self._probe(block.stop)
        if isinstance(decision, AskPerson):
            self.score.asked += 1
            self._state = self._state.asked(decision.reason)
        if isinstance(decision, Retrain):
            if decision.trigger in _ALARMS:
                self._alarmed.append((self.champion, number))
            self._retrain(decision, block.stop, now)

    def _changed_row(self) -> int | None:
        """The stream's clock is its blocks, so the time at which the trouble began is a row."""
        episode = self._state.episode
        return None if episode is None else self.table.first + int(episode.began_at / WEEK_S * self.table.block)

    def _probe(self, end: int) -> None:
        self.score.probes += 1
        changed = self._changed_row()
        self._state = self._state.probe_asked(f"probe-{self.score.probes}", self._labelled)
        found = examine(
            self.table.x[self.champion.start : end],
            self.table.y[self.champion.start : end],
            task=self.table.contract.task,
            champion=self.champion.model,
            refit=self._fits.fit,
            labelled=self._labelled,
            since_change=None if changed is None else end - changed,
            reference=self.champion.reference if changed is not None else None,
        )
        self._insight.examined(found, self._standing, self.champion.watcher.newest)
        self._state = self._state.probed(found.probe, self.policy.refit_cost, self.policy.least_excess)

    def _windows(self, arrays: Arrays, changed: int | None) -> SearchResult:
        # What the monitor watches is what the windows are compared by.
        metric = "mae" if self.table.contract.task == "regression" else "brier"
        search = Search(candidates=[hist_boosting()], metric=metric, recency=self.policy.window == "recent")
        return choose_window(arrays, self.table.contract, search, ordered=self.table.ordered, change_row=changed)

    def _retrain(self, decision: Retrain, end: int, now: float) -> None:
        self.score.retrainings += 1
        self.score.triggers[decision.trigger] = self.score.triggers.get(decision.trigger, 0) + 1
        holdout = int(np.clip((end - self.table.first) // 20, 250, 500))
        changed = self._changed_row()
        self._state = self._state.started(now, decision.trigger)
        self._standing, self._labelled = None, 0
        arrays = held_out(self.table, end, holdout)
        result = self._windows(arrays, changed)
        task = self.table.contract.task
        old, new = (
            row_losses(task, arrays.y_test, model(arrays.x_test))
            for model in (self.champion.model, result.estimator.predict)
        )
        if not probe(old, new).gains:
            self._state = self._state.finished("refused", now)
            return
        self.score.promoted += 1
        self._state = self._state.finished("promoted", now)
        self.champion = self._promote(self.champion.version + 1, arrays, result, end, now)

    def _promote(self, number: int, arrays: Arrays, result: SearchResult, end: int, now: float) -> Champion:
        """As the loop does: the reference is of held-out rows, what serves is fitted on all rows."""
        model = refit(result, self.table.x[:end], self.table.y[:end]).predict
        start = end - round(end * float(result.trial.params.get("recent", 1.0)))
        made = champion_of(self.table, number, arrays, held_out_predictions(result, arrays), model, start)
        self._insight.follow(number, made.reference, self.table.contract, model, made.watcher.baseline)
        if self._state.trained_at is None:
            self._state = self._state.trained(now)
        return made


class LeftAlone(Loop):
    """A model that is never replaced: the first retraining alarm of the same policy, without its pace, ends the watch."""

    def __init__(self, table: Table, fits: Fits, first: int) -> None:
        super().__init__(table, fits, table.blocks[first].start, replace(POLICY, refit_cost=None))
        self._first = first

    def alarm(self, blocks: list[slice]) -> int | None:
        """The block after which it alarmed, counted from 1; ``None`` when it never did."""
        for number, block in enumerate(blocks[self._first :], start=self._first + 1):
            self.serve(number, block)
            if number < len(blocks):
                self._decide(number, block)
            if self._alarmed:
                return self._alarmed[0][1]
        return None

    def _retrain(self, decision: Retrain, end: int, now: float) -> None:
        self._state = self._state.started(now, decision.trigger)


def left_alone(table: Table, fits: Fits, blocks: list[slice]) -> tuple[Score, int]:
    """Models trained at places of the stream and never again: whether their first alarms were right, and how many did not
    alarm."""
    score, silent = Score(), 0
    for first in range(0, len(blocks), max(len(blocks) // LEFT_ALONE, 1)):
        alone = LeftAlone(table, fits, first)
        silent += alone.alarm(blocks) is None
        right, raised = alone.verdicts(blocks)
        score.right += right
        score.raised += raised
    return score, silent


def measure(table: Table, quick: bool) -> dict[str, Any]:
    blocks = table.blocks[: len(table.blocks) * 2 // 3] if quick else table.blocks
    fits = Fits(table)
    began = time.perf_counter()
    loop = Loop(table, fits).run(blocks)
    alone, silent = left_alone(table, fits, blocks)
    right, raised = loop.right + alone.right, loop.raised + alone.raised
    scores = {
        "loop": loop,
        "never": peer(table, fits, blocks, lambda *_: False),
        "every": peer(table, fits, blocks, lambda *_: True),
        "every_fourth": peer(table, fits, blocks, lambda number, *_: number % 4 == 0),
        "ks": peer(table, fits, blocks, lambda _number, block, end: ks_asks(table, block, end)),
        "every_fourth_all": peer(table, fits, blocks, lambda number, *_: number % 4 == 0, sliding=False),
    }
    row = {
        "blocks": len(blocks),
        "loss": {name: round(score.loss, 5) for name, score in scores.items()},
        "retrainings": {name: score.retrainings for name, score in scores.items()},
        "promoted": loop.promoted,
        "probes": loop.probes,
        "triggers": loop.triggers,
        "alarms": len(right),
        "followed_by_harm": sum(right),
        "raised": len(raised),
        "raised_followed_by_harm": sum(raised),
        "left_alone_without_alarm": silent,
        "asked_a_person": loop.asked,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(table.name, json.dumps(row), file=sys.stderr, flush=True)
    return row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    names = ("elec2", "bank_marketing", "bike_sharing", "acs_employment_ma")
    arguments.add_argument(
        "--data", type=Path, default=os.environ.get("RAYMLOPS_DATA"), help="folder with one folder a table"
    )
    arguments.add_argument("--table", nargs="+", choices=names, default=names)
    arguments.add_argument("--quick", action="store_true")
    given = arguments.parse_args()
    if given.data is None:
        arguments.error("--data DIR (or RAYMLOPS_DATA) is missing: the folder that holds one folder a table.")
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit(
            "Set OMP_NUM_THREADS=1: boosted trees on many threads and few rows measure the machine, not the policy."
        )
    tables = {name: measure(load(name, given.data), given.quick) for name in given.table}
    changing = [row for name, row in tables.items() if name != "acs_employment_ma"]
    alarms, followed = (sum(row[key] for row in changing) for key in ("alarms", "followed_by_harm"))
    calm = tables.get("acs_employment_ma")
    machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    print(
        json.dumps(
            {
                "benchmark": "retrain",
                "quick": given.quick,
                "acs_retrain_alarms": None if calm is None else calm["alarms"],
                "p_harm_given_alarm": followed / alarms if alarms else None,
                "alarms": alarms,
                "tables": tables,
                "machine": machine,
                "versions": {name: version(name) for name in ("raymlops", "scikit-learn", "numpy", "scipy")},
            }
        )
    )


if __name__ == "__main__":
    main()
