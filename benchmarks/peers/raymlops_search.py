"""raymlops on one table: ``raymlops_search.py table.npz task budget seed out.npz``, as ``automl.py`` for the peers.

Beside the prediction it writes the anytime curve: for each model that led the search, the second from which a search that had been stopped
there would have had it, its refit on all rows included, and what it says of ``x_test``. Those refits are made when the clock has stopped.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.search.ray_tune import refit, search
from raymlops.search.selection import Search, SearchResult, Trial
from raymlops.settings import Settings

VALIDATION = 0.15
POINTS = 8


def contract_of(x: np.ndarray, categorical: set[int], task: str) -> DataContract:
    columns = []
    for i in range(x.shape[1]):
        if i in categorical:
            values = tuple(str(int(value)) for value in np.unique(x[:, i][~np.isnan(x[:, i])]))
            columns.append(
                Column(name=f"c{i}", kind="category", nullable=True, minimum=None, maximum=None, categories=values)
            )
        else:
            columns.append(Column(name=f"c{i}", kind="number", nullable=True, minimum=None, maximum=None))
    return DataContract(columns=tuple(columns), label="y", task=task, classes=(0, 1) if task == "binary" else ())


def leaders(seen: list[tuple[float, Trial]], result: SearchResult) -> Iterator[tuple[float, Trial]]:
    """Trials on all rows that were the best so far, with the second they ended at; of many, those at times spread by ratio."""
    better, best, found = result.problem.objective.better, float("nan"), []
    for at, trial in seen:
        if trial.status == "done" and better(trial.score, best):
            best = trial.score
            found.append((at, trial))
    if not found:
        return
    grid = np.geomspace(found[0][0], found[-1][0] + 1e-9, POINTS)
    picked = {max(i for i, (at, _) in enumerate(found) if at <= second + 1e-9) for second in grid}
    yield from (found[i] for i in sorted(picked))


def main() -> None:
    source, task, budget, seed, out = sys.argv[1:]
    with np.load(source) as held:
        x, y, test = held["x"].astype(np.float32), held["y"], held["x_test"].astype(np.float32)
        categorical = set(held["categorical"].tolist())
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    order = np.random.default_rng(int(seed)).permutation(len(y))
    cut = int((1 - VALIDATION) * len(y))
    began = time.monotonic()
    arrays = Arrays(
        x_train=x[order[:cut]],
        y_train=y[order[:cut]],
        x_validation=x[order[cut:]],
        y_validation=y[order[cut:]],
        x_test=test[:1],
        y_test=y[:1],
        time_test=None,
    )
    spec = Search(trials=None, time_budget_s=float(budget), seed=int(seed), prefer="score", recency=False)
    seen: list[tuple[float, Trial]] = []
    with tempfile.TemporaryDirectory() as home:
        result = search(
            arrays,
            contract_of(x, categorical, task),
            spec,
            ordered=False,
            settings=Settings.read({"RAYMLOPS_HOME": home}),
            on_trial=lambda trial: seen.append((time.monotonic() - began, trial)),
        )
    seconds = time.monotonic() - began
    prediction = result.estimator.predict(test)
    np.savez(out, prediction=prediction, seconds=seconds)
    ray.shutdown()
    times, curve = [], []
    for at, trial in leaders(seen, result):
        started = time.monotonic()
        model = refit(replace(result, trial=trial), x[order], y[order])
        times.append(at + time.monotonic() - started)
        curve.append(model.predict(test))
    facts: dict[str, Any] = {
        "trials": len(result.leaderboard.trials),
        "full": sum(trial.status == "done" for trial in result.leaderboard.trials),
        "failed": sum(trial.status == "failed" for trial in result.leaderboard.trials),
        "ended": result.leaderboard.ended,
        "search_s": round(result.leaderboard.seconds, 1),
        "first_s": round(seen[0][0], 1) if seen else None,
        "family": result.trial.family,
        "params": dict(result.trial.params),
    }
    np.savez(
        out,
        prediction=prediction,
        seconds=seconds,
        curve_s=np.array([*times, seconds]),
        curve=np.array([*curve, prediction]),
        facts=json.dumps(facts),
    )


if __name__ == "__main__":
    main()
