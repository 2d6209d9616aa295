"""The tables of the search benchmarks: three real ones from a folder, and one generated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

TABLES = {
    "adult": ("adult/adult_train.csv", "income", (), "binary"),
    "bank_marketing": ("bank_marketing/bank_full.csv", "y", ("row", "date_inferred"), "binary"),
    "california_housing": ("california_housing/housing.csv", "median_house_value", (), "regression"),
    "higgs_like": ("", "", (), "binary"),
}


def task_of(name: str) -> str:
    return TABLES[name][3]


def table(name: str, data: Path, rows: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Numbers, codes of categories (NaN missing), labels, and which columns are categories; ``rows`` of a generated table."""
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
