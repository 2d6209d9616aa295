"""Held-out score at equal wall-clock budgets: raymlops, FLAML, AutoGluon, Optuna with joblib, scikit-learn's random halving.

    python benchmarks/search.py --data FOLDER [--quick] [--tables adult ...] [--tools raymlops flaml ...]

Budgets of 60 and 300 s on two cores, three seeds; each tool in its own process and, but for raymlops, its own environment. A fifth of every table is held
out by seed and seen by no tool. raymlops also runs at 120 and 200 s, which gives its time to FLAML's 300-second score. The ``higgs_like`` table is generated:
a million rows of 28 columns whose class hangs on invariant masses of pairs of them. Prints one JSON line. ``--quick``: 20 s, one seed, FLAML only,
three tables.
"""

from __future__ import annotations

import argparse
import json
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
import pandas as pd
import psutil
from venvs import environment, venv

HERE = Path(__file__).parent
TOOLS: dict[str, tuple[str, ...]] = {
    "flaml": ("flaml[automl]",),
    "autogluon": ("autogluon.tabular[lightgbm,xgboost,catboost,fastai]",),
    "optuna": ("optuna", "joblib", "xgboost", "pandas", "scikit-learn"),
    "halving": ("scikit-learn", "pandas"),
}
TABLES = {
    "adult": ("adult/adult_train.csv", "income", (), "binary"),
    "bank_marketing": ("bank_marketing/bank_full.csv", "y", ("row", "date_inferred"), "binary"),
    "california_housing": ("california_housing/housing.csv", "median_house_value", (), "regression"),
    "higgs_like": ("", "", (), "binary"),
}
HELD_OUT = 0.2
EQUAL = {"binary": 0.001, "regression": 0.005}  # of the AUC; of the RMSE, as a share


def table(name: str, data: Path, rows: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Numbers, codes of categories (NaN missing), labels, and which columns are categories."""
    path, label, drop, task = TABLES[name]
    if not path:
        return *higgs_like(rows), []
    frame = pd.read_csv(data / path).drop(columns=list(drop))
    y = frame.pop(label)
    x = np.empty(frame.shape)
    categorical = []
    for i, column in enumerate(frame):
        if pd.api.types.is_numeric_dtype(frame[column]):
            x[:, i] = frame[column]
        else:
            codes = frame[column].astype("category").cat.codes.to_numpy(dtype=float)
            x[:, i] = np.where(codes < 0, np.nan, codes)
            categorical.append(i)
    values = y.to_numpy(dtype=float) if task == "regression" else (y == sorted(y.unique())[-1]).to_numpy(dtype=float)
    return x, values, categorical


def higgs_like(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Seven particles of four columns; a signal has pairs whose invariant mass lies near that of a resonance."""
    rng = np.random.default_rng(7)
    pt = rng.gamma(2.0, 0.5, (rows, 7))
    eta, phi = rng.normal(0, 1, (rows, 7)), rng.uniform(-np.pi, np.pi, (rows, 7))
    tag = rng.integers(0, 3, (rows, 7)).astype(float)
    logit = np.zeros(rows)
    for a, b, mass in ((0, 1, 1.0), (2, 3, 1.5), (4, 5, 2.0)):
        m2 = 2 * pt[:, a] * pt[:, b] * (np.cosh(eta[:, a] - eta[:, b]) - np.cos(phi[:, a] - phi[:, b]))
        logit += 1.2 * np.exp(-((np.sqrt(np.maximum(m2, 0)) - mass) ** 2)) + 0.2 * (tag[:, a] == tag[:, b])
    logit = 2.0 * (logit - logit.mean()) + 0.3 * (pt[:, 6] - 1)
    y = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(float)
    return np.stack([pt, eta, phi, tag], axis=2).reshape(rows, 28).astype(np.float32), y


def by_raymlops(source: str, task: str, budget: str, seed: str, out: str) -> None:
    """Runs in a process of its own: this file with ``--one``."""
    import logging

    import ray

    from raymlops.data.schema import Column, DataContract
    from raymlops.data.snapshot import Arrays
    from raymlops.search.ray_tune import search
    from raymlops.search.selection import Search
    from raymlops.settings import Settings

    with np.load(source) as held:
        x, y, test = held["x"].astype(np.float32), held["y"], held["x_test"].astype(np.float32)
        categorical = set(held["categorical"].tolist())
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    order = np.random.default_rng(int(seed)).permutation(len(y))
    cut = int(0.85 * len(y))
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
    columns = tuple(
        Column(
            name=f"c{i}",
            kind="category" if i in categorical else "number",
            nullable=True,
            minimum=None,
            maximum=None,
            **(
                {"categories": tuple(str(int(v)) for v in np.unique(x[:, i][~np.isnan(x[:, i])]))}
                if i in categorical
                else {}
            ),
        )
        for i in range(x.shape[1])
    )
    contract = DataContract(columns=columns, label="y", task=task, classes=(0, 1) if task == "binary" else ())
    spec = Search(trials=None, time_budget_s=float(budget), seed=int(seed), prefer="score", recency=False)
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.read({"RAYMLOPS_HOME": home})
        result = search(arrays, contract, spec, ordered=False, settings=settings)
    seconds = time.monotonic() - began
    board = result.leaderboard
    print(
        json.dumps(
            {
                "trials": len(board.trials),
                "ended": board.ended,
                "family": result.trial.family,
                "params": dict(result.trial.params),
            }
        ),
        file=sys.stderr,
    )
    np.savez(out, prediction=result.estimator.predict(test), seconds=seconds)


def score(task: Any, y: np.ndarray, prediction: np.ndarray) -> float:
    from raymlops.search.objective import Objective

    return Objective.of("roc_auc" if task == "binary" else "rmse", task).score(y, prediction)


def measured(command: list[str], env: dict[str, str], limit_s: float) -> float:
    """Run a command; the peak of its process tree's memory in MB (shared pages are counted once).

    Raises
    ------
    RuntimeError : it failed or took longer than ``limit_s``
    """
    peak, process = (
        0.0,
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True),
    )
    words: list[str] = []
    reader = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    reader.start()
    ends = time.monotonic() + limit_s
    while process.poll() is None:
        peak = max(peak, sum(_memory(process.pid)))
        if time.monotonic() > ends:
            process.kill()
            raise RuntimeError(f"took longer than {limit_s:.0f} s")
        time.sleep(1.0)
    reader.join()
    if process.returncode:
        raise RuntimeError(" | ".join(words[-3:]).strip()[-300:])
    print("".join(word for word in words if word.startswith("{")), end="", file=sys.stderr)
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
        return [sys.executable, str(Path(__file__).resolve()), "--one"], {**os.environ, "OMP_NUM_THREADS": "1"}
    python = venv(folder, tool, TOOLS[tool])
    # These use the cores as they like: only the thread limits that venvs.py sets for single-thread runs are lifted.
    env = {key: value for key, value in environment().items() if not key.endswith("_NUM_THREADS")}
    return None if python is None else ([str(python), str(HERE / "peers" / "automl.py"), tool], env)


def one_run(
    tool: str,
    start: tuple[list[str], dict[str, str]],
    source: Path,
    y_test: np.ndarray,
    task: str,
    budget: float,
    seed: int,
) -> dict[str, Any]:
    out = source.with_name("out.npz")
    out.unlink(missing_ok=True)
    try:
        peak = measured([*start[0], str(source), task, str(budget), str(seed), str(out)], start[1], 4 * budget + 300)
    except RuntimeError as error:
        return {"error": str(error)}
    with np.load(out) as held:
        made = {"score": round(score(task, y_test, held["prediction"]), 5), "seconds": round(float(held["seconds"]), 1)}
    return {**made, "peak_mb": round(peak)}


def at_least(task: str, ours: float, theirs: float) -> bool:
    """Equal within the tolerance, or better."""
    return ours >= theirs - EQUAL["binary"] if task == "binary" else ours <= theirs * (1 + EQUAL["regression"])


def run(args: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    starts = {tool: found for tool in args.tools if (found := command_for(tool, args.venvs)) is not None}
    scores: dict[str, Any] = {}
    for name in args.tables:
        task = TABLES[name][3]
        x, y, categorical = table(name, args.data, args.rows)
        for seed in range(args.seeds):
            held = np.random.default_rng(1000 + seed).random(len(y)) < HELD_OUT
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "table.npz"
                np.savez(source, x=x[~held], y=y[~held], x_test=x[held], categorical=np.array(categorical, dtype=int))
                for tool, start in starts.items():
                    more = args.extra if tool == "raymlops" else []
                    for budget in sorted({*args.budgets, *more}):
                        made = one_run(tool, start, source, y[held], task, budget, seed)
                        scores.setdefault(tool, {}).setdefault(name, {}).setdefault(f"{budget:g}", []).append(made)
                        tell(f"{name} seed {seed} {tool} {budget:g} s: {made}")
    return summary(scores, args)


def summary(scores: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Medians over seeds against FLAML's."""
    least, times = {}, []
    for name in args.tables:
        task = TABLES[name][3]
        ours, theirs = (_medians(scores.get(tool, {}).get(name, {})) for tool in ("raymlops", "flaml"))
        least[name] = bool(theirs) and all(b in ours and at_least(task, ours[b], theirs[b]) for b in theirs)
        goal = theirs.get(f"{max(args.budgets):g}")
        reached = [float(b) for b, value in ours.items() if goal is not None and at_least(task, value, goal)]
        if reached:
            times.append(min(reached))
    return {
        "tables": list(args.tables),
        "tables_at_least_flaml": sum(least.values()),
        "at_least_flaml": least,
        "median_time_to_flaml_s": statistics.median(times) if len(times) == len(args.tables) else None,
        "scores": scores,
    }


def _medians(by_budget: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    good = {budget: [run["score"] for run in runs if "score" in run] for budget, runs in by_budget.items()}
    return {budget: statistics.median(values) for budget, values in good.items() if values}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        by_raymlops(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with adult/, bank_marketing/, california_housing/"
    )
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "raymlops-peers")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--tools", nargs="+", default=["raymlops", *TOOLS], choices=["raymlops", *TOOLS])
    parser.add_argument("--budgets", nargs="+", type=float, default=[60.0, 300.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the generated table")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.extra = [budget for budget in (120.0, 200.0) if budget < max(args.budgets)]
    if args.quick:
        args.tools, args.budgets, args.seeds, args.extra = ["raymlops", "flaml"], [20.0], 1, []
        args.tables = [name for name in args.tables if name != "higgs_like"]
    print(json.dumps(run(args, lambda line: print(line, file=sys.stderr, flush=True))))


if __name__ == "__main__":
    main()
