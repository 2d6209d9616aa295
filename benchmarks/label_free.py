"""Estimated against measured performance on ACS employment (Massachusetts, 2016-2018): raymlops against NannyML's CBPE.

    python benchmarks/label_free.py --data FOLDER [--cache FOLDER] [--quick]

``FOLDER/acs_employment_ma/acs_employment_ma.parquet`` holds a deployed model's predictions. 25,000 reference rows of 2015, chunks
of 10,000 rows in file order; the mean absolute error of each metric is compared, over chunks and three draws of the reference. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from venvs import environment, venv

from raymlops.monitor.estimate import PerformanceEstimator

NAMES = ("roc_auc", "accuracy", "f1")
DRAWS = 3
NOT_FEATURES = ("employed", "prediction", "predicted_probability", "year", "period", "id")
PEER = """
import sys, json, pandas as pd, nannyml as nml
ref, live = pd.read_csv(sys.argv[1]), pd.read_csv(sys.argv[2])
cbpe = nml.CBPE(y_pred_proba="predicted_probability", y_pred="prediction", y_true="employed",
    problem_type="classification_binary", metrics=["roc_auc", "accuracy", "f1"], chunk_size=10_000).fit(ref)
out = cbpe.estimate(live.drop(columns="employed")).filter(period="analysis").to_df()
print(json.dumps({name: out[(name, "value")].tolist() for name in ("roc_auc", "accuracy", "f1")}))
"""


def peer(python: Path, frame: pd.DataFrame, reference: np.ndarray, live: np.ndarray) -> dict[str, list[float]]:
    """NannyML's estimates of each chunk; nothing, with a message, when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "reference.csv", Path(folder) / "live.csv"]
        for path, rows in zip(paths, (reference, live), strict=True):
            frame.iloc[rows][["predicted_probability", "prediction", "employed"]].to_csv(path, index=False)
        command = [str(python), "-c", PEER, *map(str, paths)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        print(f"nannyml failed: {done.stderr[-400:]}", file=sys.stderr)
        return {}
    estimates: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return estimates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with acs_employment_ma")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "raymlops-peers", help="peers' venvs")
    parser.add_argument("--quick", action="store_true", help="eight chunks instead of all")
    options = parser.parse_args()
    frame = pd.read_parquet(options.data / "acs_employment_ma" / "acs_employment_ma.parquet")
    features = [name for name in frame.columns if name not in NOT_FEATURES]
    matrix = frame[features].apply(lambda c: c if c.dtype.kind in "fiub" else c.astype("category").cat.codes)
    x, s = matrix.to_numpy(dtype=np.float32), frame["predicted_probability"].to_numpy(dtype=float)
    y = frame["employed"].to_numpy(dtype=float)
    past = np.flatnonzero((frame["year"] == 2015).to_numpy())
    live = np.flatnonzero((frame["year"] > 2015).to_numpy())
    count = 8 if options.quick else len(live) // 10_000
    live = live[: count * 10_000]
    threshold = float(s[frame["prediction"] == 1].min())
    found: dict[str, dict[str, list[float]]] = {
        kind: {n: [] for n in NAMES} for kind in ("pape", "cbpe", "none", "real", "nannyml")
    }
    python = venv(options.cache, "nannyml", ("nannyml==0.13.1", "statsmodels", "pandas==2.3.3", "numpy==1.26.4"))
    covered, spent = 0, 0.0
    for seed in range(DRAWS):
        reference = np.sort(np.random.default_rng(seed).choice(past, 25_000, replace=False))
        estimator = PerformanceEstimator(x[reference], s[reference], y[reference], threshold=threshold)
        for rows in live.reshape(count, 10_000):
            began = time.process_time()
            answer = estimator.estimate(x[rows], s[rows])
            spent += time.process_time() - began
            chosen = s[rows] >= threshold
            real = {
                "roc_auc": roc_auc_score(y[rows], s[rows]),
                "accuracy": accuracy_score(y[rows], chosen),
                "f1": f1_score(y[rows], chosen),
            }
            for name in NAMES:
                metric = answer.metrics[name]
                covered += metric.low <= real[name] <= metric.high
                values = {"pape": metric.value, "cbpe": metric.check, "none": metric.reference, "real": real[name]}
                for kind, value in values.items():
                    found[kind][name].append(float(value))
        if python is not None:
            for name, estimates in peer(python, frame, reference, live).items():
                found["nannyml"][name] += estimates
    error = {
        kind: {name: round(float(np.mean(np.abs(np.subtract(values[name], found["real"][name])))), 5) for name in NAMES}
        for kind, values in found.items()
        if kind != "real" and len(values["f1"]) == len(found["real"]["f1"])
    }
    for kind, values in error.items():
        print(f"{kind:10s} {values}")
    ratios = {
        f"mae_ratio_cbpe_{name}": round(error["pape"][name] / error["nannyml"][name], 3)
        for name in NAMES
        if "nannyml" in error
    }
    print(
        json.dumps(
            {
                "benchmark": "label_free",
                **ratios,
                "chunks": count,
                "reference_draws": DRAWS,
                "interval_coverage": round(covered / (3 * count * DRAWS), 3),
                "cpu_s_per_chunk": round(spent / (count * DRAWS), 2),
                "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
                "versions": {name: version(name) for name in ("raymlops", "numpy", "scikit-learn")},
                "peers": {"mean_absolute_error": error},
            }
        )
    )


if __name__ == "__main__":
    main()
