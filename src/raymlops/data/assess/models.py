"""Quick models: a sample of the rows as a matrix, small boosted trees on one thread, and a skill from 0 (chance) to 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raymlops.data.assess.facts import FLOAT32_MAX, Facts, Floats, Table
from raymlops.data.schema import Task

Matrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]

TEST_SHARE = 0.25
_ROUNDS, _DEPTH = 40, 5
_BOOTSTRAPS = 200
_CLIP = 0.005


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sample:
    """Rows for the quick models.

    Attributes
    ----------
    x : float32 ``(n, n_features)``: numbers as they are, texts as the rank of their frequency, NaN when missing
    y : float64 ``(n,)``; of a regression without its most extreme 1 % (they are moved to its ends)
    rows : the rows' numbers in the table, in time order when there is a time, else shuffled; the last quarter is for tests
    """

    x: Matrix
    y: Floats
    rows: Rows
    names: tuple[str, ...]
    task: Task
    classes: int
    seed: int

    @property
    def cut(self) -> int:
        """Rows before this one train."""
        return len(self.y) - max(1, round(TEST_SHARE * len(self.y)))


def sample_of(table: Table, budget: int | None = None) -> Sample:
    """A sample of at most ``budget`` rows."""
    rng = np.random.default_rng(table.spec.seed)
    budget = budget or table.spec.budget_rows
    chosen = rng.permutation(table.rows)[:budget]
    if table.times is not None:
        chosen = table.order[np.sort(chosen)]
    y = table.y[chosen]
    if table.task == "regression":
        y = np.clip(y, *np.quantile(y, (_CLIP, 1.0 - _CLIP)))
    x = np.empty((len(chosen), len(table.names)), dtype=np.float32)
    for index, column in enumerate(table.inputs):
        x[:, index] = as_numbers(column, chosen)
    return Sample(
        x=x,
        y=y,
        rows=chosen,
        names=table.names,
        task=table.task,
        classes=max(2, len(table.classes)),
        seed=table.spec.seed,
    )


def as_numbers(column: Facts, rows: Rows) -> Matrix:
    """Some rows of a column as float32 ``(n,)``, NaN where there is no usable value."""
    if column.codes is not None:
        rank = np.empty(len(column.categories) + 1, dtype=np.float32)
        rank[np.argsort(-column.counts, kind="stable")] = np.arange(len(column.categories))
        rank[-1] = np.nan
        return rank[column.codes[rows]]
    if column.values is None:
        return np.full(len(rows), np.nan, dtype=np.float32)
    values = column.values[rows]
    with np.errstate(invalid="ignore"):
        usable = np.abs(values) <= FLOAT32_MAX
    return np.where(usable, values, np.nan).astype(np.float32)


def fit(x: Matrix, y: Floats, sample: Sample, seed: int, rounds: int = _ROUNDS) -> Any:
    """A small boosted model (an XGBoost booster) on one thread."""
    import xgboost

    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}
    params: dict[str, Any] = {
        "objective": objective[sample.task],
        "tree_method": "hist",
        "max_depth": _DEPTH,
        "eta": 0.15,
        "max_bin": 64,
        "min_child_weight": 5 if sample.task == "regression" else 1,
        "nthread": 1,
        "seed": seed,
        "verbosity": 0,
    }
    if sample.task == "multiclass":
        params["num_class"] = sample.classes
        rounds = max(10, rounds // 2)
    return xgboost.train(params, xgboost.QuantileDMatrix(x, y, max_bin=64, nthread=1), num_boost_round=rounds)


def predict(booster: Any, x: Matrix) -> Floats:
    """Probabilities ``(n,)`` or ``(n, n_classes)``, or values ``(n,)``."""
    return np.asarray(booster.inplace_predict(x), dtype=np.float64)


def skill(y: Floats, prediction: Floats, task: Task) -> float:
    """From 0, no better than chance, to 1, perfect: twice the AUC less one (classes: mean of one against the rest), or R².

    NaN when it is not defined: a label that does not vary.
    """
    if task == "regression":
        spread = float(np.var(y))
        return 1.0 - float(np.mean((y - prediction) ** 2)) / spread if spread > 0 else float("nan")
    if prediction.ndim == 2:
        found = [_gini(y == k, prediction[:, k]) for k in range(prediction.shape[1])]
        known = [value for value in found if value == value]
        return float(np.mean(known)) if known else float("nan")
    return _gini(y == 1, prediction)


def _gini(positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    from scipy.stats import rankdata

    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return float("nan")
    return float(2.0 * rankdata(scores)[positive].sum() - ones * (ones + 1.0)) / (ones * zeros) - 1.0


def interval(y: Floats, prediction: Floats, sample: Sample, *, blocks: bool) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the skill on these rows; of blocks of neighbours when rows have an order."""
    rng = np.random.default_rng(sample.seed)
    length = max(1, len(y) // 50) if blocks else 1
    starts = np.arange(0, len(y) - length + 1)
    found = []
    for _ in range(_BOOTSTRAPS):
        first = rng.choice(starts, size=-(-len(y) // length))
        rows = (first[:, None] + np.arange(length)).ravel()[: len(y)]
        found.append(skill(y[rows], prediction[rows], sample.task))
    known = np.array([value for value in found if value == value])
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def shown(value: float, task: Task) -> str:
    """A skill in the words of the field: AUC for classes, R² for a regression."""
    return f"R² {value:.3f}" if task == "regression" else f"AUC {0.5 + value / 2:.3f}"
