"""Does the retrain policy pay? Four real streams replayed through the real Watcher, policy and state, not over HTTP.

    OMP_NUM_THREADS=1 python benchmarks/retrain.py --data DIR [--quick] [--table NAME ...]

Every block of a stream is predicted by the champion of the time (that is its loss), then its labels come. Peers: never
retrain, every block, every fourth block, and a KS trigger (any column at 0.05 after Bonferroni), each on a sliding window
as long as the first training. The loop's own retrainings choose their window by back-test and must show a gain before
they are promoted. A block stands for a week. An alarm is followed by harm when the alarmed champion's loss over the next
four blocks is more than the tolerance above what it promised. The settings are one for all tables; they were chosen on
elec2 and bike_sharing, bank_marketing and acs_employment_ma were not looked at for that.
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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from raymlops.data.schema import DataContract, learn_contract
from raymlops.data.snapshot import Arrays
from raymlops.monitor.forecast import forecast
from raymlops.monitor.ledger import LossLedger
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.quality import row_losses
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import triage
from raymlops.registry.package import Reference
from raymlops.retrain import AskPerson, Retrain, RetrainPolicy, RetrainState, decide_retrain
from raymlops.search.candidates import hist_boosting
from raymlops.search.probe import probe
from raymlops.search.selection import Problem, Search, compare_windows, refit

WEEK_S = 7 * 86_400.0
FOLLOWING = 4
MONITOR = Monitor(window_rows=500, min_rows=100, max_age="1d", alpha=1e-2, tolerance=0.10, second_opinion="off")
POLICY = RetrainPolicy(min_labels=150, on_forecast=True, refit_cost="4d", window="all", give_up_after=10)
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
    """Mean loss over the blocks, and retrainings; for the loop also its alarms."""

    losses: list[float] = field(default_factory=list)
    retrainings: int = 0
    promoted: int = 0
    alarms: int = 0
    followed: int = 0
    triggers: dict[str, int] = field(default_factory=dict)
    asked: int = 0

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def losses_of(table: Table, model: Model, rows: slice) -> NDArray[np.float64]:
    return row_losses(table.contract.task, table.y[rows], model(table.x[rows]))


class Sliding:
    """Models fitted on the newest ``table.first`` rows before a row; each once, for all peers."""

    def __init__(self, table: Table) -> None:
        self._table, self._made = table, dict[int, Model]()
        self._problem = Problem.of(
            Search(candidates=[hist_boosting()]), table.contract, held_out(table, table.first, 500)
        )

    def at(self, end: int) -> Model:
        if end not in self._made:
            table, rows = self._table, slice(end - self._table.first, end)
            model = self._problem.build("hist_boosting", hist_boosting().start).fit(table.x[rows], table.y[rows])
            self._made[end] = model.predict
        return self._made[end]


def held_out(table: Table, end: int, rows: int) -> Arrays:
    """All rows before ``end``; the newest ``rows`` to test, as many before them to validate."""
    test, validation = end - rows, end - 2 * rows
    parts = [slice(0, validation), slice(validation, test), slice(test, end)]
    (a, b, c), (d, e, f) = ([side[part] for part in parts] for side in (table.x, table.y))
    return Arrays(x_train=a, x_validation=b, x_test=c, y_train=d, y_validation=e, y_test=f, time_test=None)


def peer(table: Table, models: Sliding, blocks: list[slice], asks: Callable[[int, slice, int], bool]) -> Score:
    """Retrain after each block for which ``asks(number, block, end of the champion's rows)``."""
    score, end = Score(), table.first
    for number, block in enumerate(blocks, start=1):
        score.losses.append(float(losses_of(table, models.at(end), block).mean()))
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


class Loop:
    """The policy over one table: what the steward does, without a cluster."""

    def __init__(self, table: Table) -> None:
        self.table, self.score = table, Score()
        self._state = RetrainState()
        self._ledger = LossLedger(WEEK_S)
        self._promised: dict[int, tuple[float, float]] = {}
        self._labelled = 0
        self._standing: DriftReport | None = None
        self._alarmed: list[tuple[Champion, int]] = []
        arrays = held_out(table, table.first, min(table.first // 8, 1500))
        search = Search(candidates=[hist_boosting()], recency=False)
        result = compare_windows(arrays, table.contract, search, ordered=table.ordered)
        self.champion = self._promote(1, arrays, result, table.first, 0.0)

    def run(self, blocks: list[slice]) -> Score:
        for number, block in enumerate(blocks, start=1):
            self._serve(number, block)
            if number < len(blocks):
                self._decide(number, block)
        for champion, number in self._alarmed:
            following = blocks[number : number + FOLLOWING]
            after = np.mean([losses_of(self.table, champion.model, block).mean() for block in following])
            promised = champion.watcher.baseline.mean * (1 + MONITOR.tolerance)
            self.score.followed += bool(after > promised)
        return self.score

    def _serve(self, number: int, block: slice) -> None:
        scores = self.champion.model(self.table.x[block])
        losses = row_losses(self.table.contract.task, self.table.y[block], scores)
        self.score.losses.append(float(losses.mean()))
        at = (number - 1 + np.arange(len(losses)) / len(losses)) * WEEK_S
        self._labelled += len(losses)
        self.champion.watcher.observe(self.table.x[block], scores, at)
        self.champion.watcher.add_outcomes(losses, at)
        self._ledger.add(self.champion.version, losses, at)

    def _decide(self, number: int, block: slice) -> None:
        now = number * WEEK_S
        for report in self.champion.watcher.step(now):
            self._standing = report
            self._state = self._state.seen(report)
            if report.may_retrain and (not self._alarmed or self._alarmed[-1][0] is not self.champion):
                self._alarmed.append((self.champion, number))
                self.score.alarms += 1
        lives = [
            life
            for version_, (promised, limit) in self._promised.items()
            if (life := self._ledger.life(version_, promised, limit)) is not None
        ]
        diagnosis = None if self._standing is None else triage(self._standing)
        decision = decide_retrain(
            POLICY,
            self._state,
            self._standing,
            self._labelled,
            now,
            diagnosis=diagnosis,
            forecast=forecast(lives, MONITOR.tolerance),
        )
        if isinstance(decision, AskPerson):
            self.score.asked += 1
            self._state = self._state.asked(decision.reason)
        if isinstance(decision, Retrain):
            self._retrain(decision, block.stop, now)

    def _retrain(self, decision: Retrain, end: int, now: float) -> None:
        self.score.retrainings += 1
        self.score.triggers[decision.trigger] = self.score.triggers.get(decision.trigger, 0) + 1
        holdout = int(np.clip((end - self.table.first) // 20, 250, 500))
        episode = self._state.episode
        # The stream's clock is its blocks, so the time at which the trouble began is a row.
        began = None if episode is None else self.table.first + int(episode.began_at / WEEK_S * self.table.block)
        self._state = self._state.started(now, decision.trigger)
        self._standing, self._labelled = None, 0
        arrays = held_out(self.table, end, holdout)
        # What the monitor watches is what the windows are compared by.
        metric = "mae" if self.table.contract.task == "regression" else "brier"
        search = Search(candidates=[hist_boosting()], metric=metric, recency=POLICY.window == "recent")
        result = compare_windows(arrays, self.table.contract, search, ordered=self.table.ordered, change_row=began)
        task = self.table.contract.task
        old, new = (
            row_losses(task, arrays.y_test, model(arrays.x_test))
            for model in (self.champion.model, result.estimator.predict)
        )
        if not probe(old, new).gains:
            self._state = self._state.finished("refused", now)
            return
        self.score.promoted += 1
        self.champion = self._promote(self.champion.version + 1, arrays, result, end, now)
        self._state = self._state.finished("promoted", now)

    def _promote(self, number: int, arrays: Arrays, result: Any, end: int, now: float) -> Champion:
        """As the loop does: the reference is the gated model's on held-out rows, what serves is fitted on all rows."""
        x = np.concatenate([arrays.x_validation, arrays.x_test])
        y = np.concatenate([arrays.y_validation, arrays.y_test])
        scores = result.estimator.predict(x)
        contract = self.table.contract
        reference = Reference(
            columns=contract.names,
            x=x,
            scores=scores,
            losses=row_losses(contract.task, y, scores),
            ordered=self.table.ordered,
        )
        watcher = Watcher(MONITOR, reference, contract, number)
        self._promised[number] = (watcher.baseline.mean, watcher.baseline.limit)
        model = refit(result, self.table.x[:end], self.table.y[:end]).predict
        if self._state.trained_at is None:
            self._state = self._state.trained(now)
        return Champion(version=number, model=model, watcher=watcher)


def measure(table: Table, quick: bool) -> dict[str, Any]:
    blocks = table.blocks[: len(table.blocks) * 2 // 3] if quick else table.blocks
    models = Sliding(table)
    began = time.perf_counter()
    scores = {
        "loop": Loop(table).run(blocks),
        "never": peer(table, models, blocks, lambda *_: False),
        "every": peer(table, models, blocks, lambda *_: True),
        "every_fourth": peer(table, models, blocks, lambda number, *_: number % 4 == 0),
        "ks": peer(table, models, blocks, lambda _number, block, end: ks_asks(table, block, end)),
    }
    loop = scores["loop"]
    row = {
        "blocks": len(blocks),
        "loss": {name: round(score.loss, 5) for name, score in scores.items()},
        "retrainings": {name: score.retrainings for name, score in scores.items()},
        "promoted": loop.promoted,
        "triggers": loop.triggers,
        "alarms": loop.alarms,
        "followed_by_harm": loop.followed,
        "asked_a_person": loop.asked,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(table.name, json.dumps(row), file=sys.stderr, flush=True)
    return row


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    names = ("elec2", "bank_marketing", "bike_sharing", "acs_employment_ma")
    arguments.add_argument("--data", type=Path, required=True, help="folder with one folder a table")
    arguments.add_argument("--table", nargs="+", choices=names, default=names)
    arguments.add_argument("--quick", action="store_true")
    given = arguments.parse_args()
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
