"""Overhead of a trial beyond its fit: 200 small trials by raymlops, by ``tune.Tuner`` written plainly, by Optuna alone.

All fit the same ridge regression on 2,000 rows. Overhead is the lanes' wall time less all fits, over the trials; starting workers is
counted too. Run it as ``python benchmarks/trials.py [--trials 200] [--lanes 2]``; it prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from raymlops.data.schema import Column, DataContract
from raymlops.data.snapshot import Arrays
from raymlops.search import candidates
from raymlops.search.ray_tune import search
from raymlops.search.selection import Problem, Search, run_trial
from raymlops.settings import Settings

ROWS, COLUMNS = 2000, 10


def table() -> tuple[Arrays, DataContract]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS + 1000, COLUMNS)).astype(np.float32)
    y = x[:, 0] * 2 + np.abs(x[:, 1]) + rng.normal(size=len(x))
    parts = {"train": slice(0, ROWS), "validation": slice(ROWS, ROWS + 500), "test": slice(ROWS + 500, None)}
    split = {f"{axis}_{name}": data[rows] for name, rows in parts.items() for axis, data in (("x", x), ("y", y))}
    names = [f"x{i}" for i in range(COLUMNS)]
    columns = tuple(Column(name=name, kind="number", nullable=False, minimum=-9.0, maximum=9.0) for name in names)
    return Arrays(**split, time_test=None), DataContract(columns=columns, label="y", task="regression", classes=())


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"C": trial.suggest_float("C", 1e-3, 100.0, log=True)}


def overhead_ms(wall_s: float, fits: list[float], lanes: int) -> float:
    return round((wall_s * lanes - sum(fits)) / len(fits) * 1e3, 1)


def by_raymlops(trials: int, lanes: int, home: str) -> float:
    arrays, contract = table()
    spec = Search(
        candidates=[candidates.linear(space)], trials=trials, max_concurrent=lanes, stop_early=False, recency=False
    )
    settings = Settings.read({"RAYMLOPS_HOME": home})
    began = time.perf_counter()
    result = search(arrays, contract, spec, ordered=False, settings=settings)
    wall = time.perf_counter() - began
    return overhead_ms(wall, [trial.fit_s for trial in result.leaderboard.trials], lanes)


def by_tune(trials: int, lanes: int, home: str) -> float:
    arrays, contract = table()
    problem = Problem.of(Search(candidates=[candidates.linear(space)]), contract, arrays)

    class Plain(tune.Trainable):
        def setup(self, config: dict[str, Any], **given: Any) -> None:
            self.given = given

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            outcome = run_trial(self.given["problem"], self.given["arrays"], "linear", self.config)
            return {"score": outcome.score, "fit_s": outcome.fit_s, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    began = time.perf_counter()
    found = tune.Tuner(
        tune.with_parameters(Plain, arrays=arrays, problem=problem),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min",
            search_alg=OptunaSearch(space=space, metric="score", mode="min"),
            scheduler=ASHAScheduler(max_t=1),
            num_samples=trials,
            max_concurrent_trials=lanes,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=home, verbose=0),
    ).fit()
    wall = time.perf_counter() - began
    return overhead_ms(wall, [result.metrics["fit_s"] for result in found], lanes)


def by_optuna(trials: int) -> float:
    arrays, contract = table()
    problem = Problem.of(Search(candidates=[candidates.linear(space)]), contract, arrays)
    fits: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        outcome = run_trial(problem, arrays, "linear", space(trial))
        fits.append(outcome.fit_s)
        return outcome.score

    began = time.perf_counter()
    optuna.create_study(direction="minimize").optimize(objective, n_trials=trials)
    return overhead_ms(time.perf_counter() - began, fits, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--lanes", type=int, default=2)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ.update({"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"})
    ray.init(
        address="local",
        num_cpus=max(4, args.lanes),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory() as home:
        # Once each beforehand: nobody pays for files that were not in memory yet.
        by_raymlops(2, args.lanes, home)
        by_tune(2, args.lanes, home)
        figures = {
            "trials": args.trials,
            "lanes": args.lanes,
            "overhead_ms": by_raymlops(args.trials, args.lanes, home),
            "overhead_ms_optuna": by_optuna(args.trials),
            "overhead_ms_tune": by_tune(args.trials, args.lanes, home),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
