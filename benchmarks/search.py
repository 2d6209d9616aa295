"""Held-out score at equal wall-clock budgets: raymlops, FLAML, AutoGluon, Optuna with joblib, scikit-learn's random halving.

    python benchmarks/search.py --data FOLDER --results FILE [--quick] [--tables adult ...] [--tools raymlops flaml ...]

Budgets of 60 and 300 s on two cores, three seeds; each tool in its own process and, but for raymlops, its own environment. A fifth of every table is held
out by seed and seen by no tool. The ``higgs_like`` table is generated: a million rows of 28 columns whose class hangs on invariant masses of pairs of them.

Each run is one line of the file ``--results``: what is there is not run again, so the grid can be worked off in pieces; errors are. The JSON line printed at
the end is over all that the file holds of the tables, budgets and seeds asked for. raymlops' runs hold the held-out score of every model that led,
with the second it would have been ready at (``curve``): that gives the time to FLAML's score at the largest budget. ``--quick``: 20 s, one seed, FLAML only,
three tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from search_tables import TABLES, table, task_of
from venvs import environment, venv

HERE = Path(__file__).parent
TOOLS: dict[str, tuple[str, ...]] = {
    "flaml": ("flaml[automl]",),
    "autogluon": ("autogluon.tabular[lightgbm,xgboost,catboost]",),
    "optuna": ("optuna", "joblib", "xgboost", "pandas", "scikit-learn"),
    "halving": ("scikit-learn", "pandas"),
}
HELD_OUT = 0.2
EQUAL = {"binary": 0.001, "regression": 0.005}  # of the AUC; of the RMSE, as a share
Run = dict[str, Any]


def score(task: Any, y: np.ndarray, prediction: np.ndarray) -> float:
    from raymlops.search.objective import Objective

    return round(Objective.of("roc_auc" if task == "binary" else "rmse", task).score(y, prediction), 5)


def measured(command: list[str], env: dict[str, str], limit_s: float, out: Path) -> float:
    """Run a command; the peak of its process tree's memory in MB (shared pages are counted once) until it wrote ``out``.

    Raises
    ------
    RuntimeError : it failed or took longer than ``limit_s``
    """
    peak = 0.0
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    words: list[str] = []
    reader = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    reader.start()
    ends = time.monotonic() + limit_s
    while process.poll() is None:
        if not out.exists():
            peak = max(peak, sum(_memory(process.pid)))
        if time.monotonic() > ends:
            process.kill()
            raise RuntimeError(f"took longer than {limit_s:.0f} s")
        time.sleep(1.0)
    reader.join()
    if process.returncode:
        raise RuntimeError(" | ".join(words[-3:]).strip()[-300:])
    return peak


def _memory(pid: int) -> Iterator[float]:
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return
    for one in family:
        try:
            yield one.memory_full_info().pss / 2**20
        except psutil.Error:
            continue


def command_for(tool: str, folder: Path) -> tuple[list[str], dict[str, str]] | None:
    if tool == "raymlops":
        return [sys.executable, str(HERE / "peers" / "raymlops_search.py")], {**os.environ, "OMP_NUM_THREADS": "1"}
    python = venv(folder, tool, TOOLS[tool])
    # These use the cores as they like: only the thread limits that venvs.py sets for single-thread runs are lifted.
    env = {key: value for key, value in environment().items() if not key.endswith("_NUM_THREADS")}
    return None if python is None else ([str(python), str(HERE / "peers" / "automl.py"), tool], env)


def one_run(
    start: tuple[list[str], dict[str, str]], source: Path, y_test: np.ndarray, task: str, budget: float, seed: int
) -> Run:
    out = source.with_name("out.npz")
    out.unlink(missing_ok=True)
    try:
        command = [*start[0], str(source), task, str(budget), str(seed), str(out)]
        peak = measured(command, start[1], 4 * budget + 300, out)
    except RuntimeError as error:
        return {"error": str(error)}
    with np.load(out) as held:
        made: Run = {"score": score(task, y_test, held["prediction"]), "seconds": round(float(held["seconds"]), 1)}
        if "curve" in held:
            points = zip(held["curve_s"], held["curve"], strict=True)
            made["curve"] = [[round(float(at), 1), score(task, y_test, said)] for at, said in points]
        if "facts" in held:
            made["facts"] = json.loads(str(held["facts"]))
    return {**made, "peak_mb": round(peak)}


def key_of(run: Run) -> tuple[Any, ...]:
    return run["tool"], run["table"], run["rows"], run["budget"], run["seed"]


def known(results: Path | None) -> list[Run]:
    """The runs of a results file that gave a score; the last one where there are two."""
    if results is None or not results.exists():
        return []
    runs = [json.loads(line) for line in results.read_text().splitlines() if line.strip()]
    return list({key_of(run): run for run in runs if "score" in run}.values())


def work_off(args: argparse.Namespace, tell: Callable[[str], None]) -> list[Run]:
    """Run what of the grid is not in the results file yet; each run is appended to it as it ends."""
    runs, starts = known(args.results), {}
    done = {key_of(run) for run in runs}
    for name in args.tables:
        wanted = [
            {"tool": tool, "table": name, "budget": budget, "seed": seed}
            for seed in args.seeds
            for budget in sorted(args.budgets)
            for tool in args.tools
        ]
        rows = args.rows if not TABLES[name][0] else 0
        wanted = [{**run, "rows": rows} for run in wanted if key_of({**run, "rows": rows}) not in done]
        if not wanted:
            continue
        task, (x, y, categorical) = task_of(name), table(name, args.data, args.rows)
        for run in wanted:
            tool, seed = run["tool"], run["seed"]
            if tool not in starts:
                starts[tool] = command_for(tool, args.venvs)
            if (start := starts[tool]) is None:
                continue
            held = np.random.default_rng(1000 + seed).random(len(y)) < HELD_OUT
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "table.npz"
                np.savez(source, x=x[~held], y=y[~held], x_test=x[held], categorical=np.array(categorical, dtype=int))
                made = {**run, **one_run(start, source, y[held], task, run["budget"], seed)}
            tell(json.dumps(made))
            runs.append(made)
            if args.results is not None:
                with args.results.open("a") as file:
                    file.write(json.dumps(made) + "\n")
    return runs


def at_least(task: str, ours: float, theirs: float) -> bool:
    """Equal within the tolerance, or better."""
    return ours >= theirs - EQUAL["binary"] if task == "binary" else ours <= theirs * (1 + EQUAL["regression"])


def time_to(task: str, run: Run, goal: float) -> float:
    """The first second at which this run's model was at least as good as ``goal``; infinite when it never was."""
    return min((at for at, value in run["curve"] if at_least(task, value, goal)), default=math.inf)


def summary(runs: list[Run], args: argparse.Namespace) -> dict[str, Any]:
    """Medians over seeds against FLAML's, and the time to its score at the largest budget over tables and seeds."""
    chosen = [
        run
        for run in runs
        if run["table"] in args.tables
        and run["budget"] in args.budgets
        and run["seed"] in args.seeds
        and "score" in run
    ]
    scores: dict[str, Any] = {}
    for run in chosen:
        by_budget = scores.setdefault(run["tool"], {}).setdefault(run["table"], {}).setdefault(f"{run['budget']:g}", {})
        by_budget[str(run["seed"])] = {key: run[key] for key in ("score", "seconds", "peak_mb")}
    least, tables = {}, list(args.tables)
    for name in tables:
        ours, theirs = (_medians(scores.get(tool, {}).get(name, {})) for tool in ("raymlops", "flaml"))
        shared = {budget: at_least(task_of(name), ours[budget], theirs[budget]) for budget in theirs if budget in ours}
        least[name] = {"median": {"raymlops": ours, "flaml": theirs}, "at_least_flaml": shared}
    times = _times(chosen, max(args.budgets))
    middle = statistics.median(times.values()) if times else math.inf
    return {
        "tables": tables,
        "tables_at_least_flaml": sum(
            bool(found["at_least_flaml"]) and all(found["at_least_flaml"].values()) for found in least.values()
        ),
        "by_table": least,
        "median_time_to_flaml_s": middle if math.isfinite(middle) else None,
        "time_to_flaml_s": {name: at if math.isfinite(at) else None for name, at in times.items()},
        "runs": len(chosen),
        "scores": scores,
    }


def _times(runs: list[Run], budget: float) -> dict[str, float]:
    """Seconds to FLAML's score at ``budget``, by table and seed, where both have run with it."""
    at = {(run["tool"], run["table"], run["seed"]): run for run in runs if run["budget"] == budget}
    return {
        f"{name} {seed}": time_to(task_of(name), at["raymlops", name, seed], theirs["score"])
        for (tool, name, seed), theirs in at.items()
        if tool == "flaml" and ("raymlops", name, seed) in at
    }


def _medians(by_budget: dict[str, dict[str, Run]]) -> dict[str, float]:
    return {budget: statistics.median(run["score"] for run in by.values()) for budget, by in by_budget.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with adult/, bank_marketing/, california_housing/"
    )
    parser.add_argument("--results", type=Path, help="file of runs, one JSON line each; those in it are not run again")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "raymlops-peers")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--tools", nargs="+", default=["raymlops", *TOOLS], choices=["raymlops", *TOOLS])
    parser.add_argument("--budgets", nargs="+", type=float, default=[60.0, 300.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the generated table")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.tools, args.budgets, args.seeds = ["raymlops", "flaml"], [20.0], [0]
        args.tables = [name for name in args.tables if name != "higgs_like"]
    runs = work_off(args, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(summary(runs, args)))


if __name__ == "__main__":
    main()
