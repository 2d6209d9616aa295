"""The three ways to explain: TreeSHAP by XGBoost itself, exact for additive models, sampled for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from raymlops.data.schema import DataContract, Task
from raymlops.errors import DataError
from raymlops.explain.explanation import Explainer, Explanation, Floats, Units
from raymlops.search.ensemble_model import EnsembleEstimator, mean
from raymlops.search.estimators import Estimator, SklearnEstimator, XGBoostEstimator

Rows = NDArray[np.float32]
Margin = Callable[[Rows], Floats]

_MARGINS: dict[Task, Units] = {"binary": "log-odds", "multiclass": "score", "regression": "value"}
BACKGROUND, SAMPLED_BACKGROUND = 256, 50
_EVALUATIONS = 100_000
_BLOCK = 50_000
_ADDITIVE = 1e-5


def explainer_for(estimator: Estimator, contract: DataContract, reference: Rows) -> Explainer:
    """The best explainer that fits a fitted model.

    Parameters
    ----------
    reference : ``(n, d)`` encoded rows that stand for what is ordinary; contributions of a linear or sampled explanation
        are against them

    Raises
    ------
    DataError : no reference rows
    """
    if isinstance(estimator, XGBoostEstimator) and estimator.booster is not None:
        return TreeExplainer(estimator.booster, contract)
    if not len(reference):
        raise DataError("An explanation needs reference rows to compare with, and the package holds none.")
    if isinstance(estimator, EnsembleEstimator) and contract.task == "regression":
        parts = [explainer_for(member, contract, reference) for member in estimator.members]
        if len({type(part) for part in parts}) == 1 and not parts[0].costly:
            return WeightedExplainer(parts, estimator.weights)
    if isinstance(estimator, SklearnEstimator) and _linear_margin(estimator) is not None:
        made = AdditiveExplainer(estimator, contract, _spread(reference, BACKGROUND))
        if made.additive:
            return made
    return SampledExplainer(estimator, contract, _spread(reference, SAMPLED_BACKGROUND))


def _spread(reference: Rows, most: int) -> Rows:
    """Rows spread evenly over the reference, so over time where it is in order."""
    return reference[np.unique(np.linspace(0, len(reference) - 1, min(len(reference), most)).astype(int))]


class TreeExplainer:
    """Exact Shapley values of trees, by XGBoost's own ``pred_contribs``; in log-odds, scores or values."""

    most_rows, costly = 250, False

    def __init__(self, booster: xgb.Booster, contract: DataContract) -> None:
        self._booster, self._names = booster, contract.names
        self._units = _MARGINS[contract.task]

    def explain(self, x: Rows) -> Explanation:
        rows = xgb.DMatrix(
            x,
            nthread=1,
            feature_names=self._booster.feature_names,
            feature_types=self._booster.feature_types,
            enable_categorical=True,
        )
        found = np.asarray(self._booster.predict(rows, pred_contribs=True), dtype=np.float64)
        output = np.asarray(self._booster.predict(rows, output_margin=True), dtype=np.float64)
        return Explanation(
            columns=self._names,
            contributions=found[..., :-1],
            base=found[..., -1],
            output=output,
            units=self._units,
            method="tree_shap",
        )


def _linear_margin(estimator: SklearnEstimator) -> Margin | None:
    """The output of a scikit-learn pipeline that ends in a linear model, before its link; ``None`` for other models."""
    pipeline = estimator.pipeline
    last = pipeline.steps[-1][1] if hasattr(pipeline, "steps") else pipeline
    if not hasattr(last, "coef_"):
        return None
    if estimator.task == "regression":
        return lambda x: np.asarray(pipeline.predict(x), dtype=np.float64)
    if not hasattr(pipeline, "decision_function") or len(estimator.seen_classes()) < estimator.n_classes:
        return None
    return lambda x: np.asarray(pipeline.decision_function(x), dtype=np.float64)


class AdditiveExplainer:
    """Exact Shapley values of a model whose output is a sum of functions of one column each.

    A linear model after per-column preprocessing is one: the value of column j is ``g_j(x_j) - mean of g_j`` over the
    reference, which is ``coef * (z - mean z)`` summed over the columns ``z`` that preprocessing makes of it. ``g_j`` is read off by
    changing column j of one row alone, so any preprocessing will do, as long as :attr:`additive` holds.
    """

    costly = False

    def __init__(self, estimator: SklearnEstimator, contract: DataContract, background: Rows) -> None:
        margin = _linear_margin(estimator)
        if margin is None:
            raise DataError("The model is not linear.")
        self._margin, self._names, self._task = margin, contract.names, contract.task
        self._anchor = background[:1]
        with threadpool_limits(1):
            self._start = margin(self._anchor)[0]
            parts = self._parts(background)
            self._mean = parts.mean(axis=0)
            self.base = margin(background).mean(axis=0)
            gap = np.abs(self._start + parts.sum(axis=1) - margin(background)).max()
            size = np.abs(margin(background)).max()
        self.additive = bool(gap <= _ADDITIVE * max(1.0, size))
        self.most_rows = max(1, min(1000, _EVALUATIONS // max(1, len(self._names))))

    def _parts(self, x: Rows) -> Floats:
        """``(n, d)`` or ``(n, d, k)``: by how much each column of each row moves the output away from the anchor's."""
        n, d = x.shape
        out = []
        step = max(1, _BLOCK // max(1, d))
        for first in range(0, n, step):
            some = x[first : first + step]
            changed = np.repeat(self._anchor, len(some) * d, axis=0)
            columns = np.tile(np.arange(d), len(some))
            changed[np.arange(len(changed)), columns] = some.reshape(-1)
            moved = self._margin(changed) - self._start
            out.append(moved.reshape(len(some), d, *moved.shape[1:]))
        return np.concatenate(out)

    def explain(self, x: Rows) -> Explanation:
        with threadpool_limits(1):
            found = self._parts(x) - self._mean
            output = self._margin(x)
        contributions = np.moveaxis(found, 1, -1)
        return Explanation(
            columns=self._names,
            contributions=contributions,
            base=np.broadcast_to(self.base, output.shape).astype(np.float64),
            output=output,
            units=_MARGINS[self._task],
            method="linear",
        )


class WeightedExplainer:
    """Shapley values of a weighted mean of values, exact: the weighted sum of the members' own, since they are linear in the model.

    Only for values, and members that are explained in one way. Probabilities are no sum of the members' log-odds: the mean of
    those is explained by :class:`SampledExplainer`.
    """

    costly = False

    def __init__(self, members: Sequence[Explainer], weights: Sequence[float]) -> None:
        self._members, self._weights = members, weights
        self.most_rows = max(1, min(member.most_rows for member in members) // len(members))

    def explain(self, x: Rows) -> Explanation:
        found = [member.explain(x) for member in self._members]
        return replace(
            found[0],
            contributions=mean([part.contributions for part in found], self._weights),
            base=mean([part.base for part in found], self._weights),
            output=mean([part.output for part in found], self._weights),
        )


class SampledExplainer:
    """Shapley values of any model, estimated by permutations of the columns (Štrumbelj & Kononenko 2014, algorithm 2).

    Each reference row is used once with a random order of the columns and once with the reverse of it (antithetic pairs:
    Mitchell et al. 2022), so contributions and base add up to the output exactly; the spread over the reference rows gives
    the standard error. The same row is always explained the same way.
    """

    costly = True

    def __init__(self, estimator: Estimator, contract: DataContract, background: Rows, seed: int = 0) -> None:
        self._estimator, self._names, self._background = estimator, contract.names, background
        self._units: Units = "value" if contract.task == "regression" else "probability"
        d = len(self._names)
        rng = np.random.default_rng(seed)
        self._orders = np.array([rng.permutation(d) for _ in background])
        self._each = 2 * len(background) * (d + 1)
        self.most_rows = max(1, min(1000, _EVALUATIONS // self._each))

    def explain(self, x: Rows) -> Explanation:
        with threadpool_limits(1):
            output = np.asarray(self._estimator.predict(x), dtype=np.float64)
            base = np.asarray(self._estimator.predict(self._background), dtype=np.float64).mean(axis=0)
            found = [self._of(row) for row in x]
        return Explanation(
            columns=self._names,
            contributions=np.stack([mean for mean, _ in found]),
            base=np.broadcast_to(base, output.shape).astype(np.float64),
            output=output,
            units=self._units,
            method="sampled_shapley",
            error=np.stack([error for _, error in found]),
        )

    def _of(self, row: Rows) -> tuple[Floats, Floats]:
        """Mean and standard error of each column's contribution, ``(d,)`` or ``(k, d)``."""
        pairs = (self._one_way(row, self._orders) + self._one_way(row, self._orders[:, ::-1])) / 2
        error = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.full(pairs.shape[1:], np.nan)
        return np.moveaxis(pairs.mean(axis=0), 0, -1), np.moveaxis(error, 0, -1)

    def _one_way(self, row: Rows, orders: NDArray[Any]) -> Floats:
        """``(background, d)`` or ``(background, d, k)``: each column's contribution when columns join in these orders."""
        count, d = orders.shape
        # Step s of path b: the background row with the first s columns of its order taken from the row.
        rank = np.empty_like(orders)
        np.put_along_axis(rank, orders, np.arange(d)[None, :].repeat(count, axis=0), axis=1)
        joined = rank[:, None, :] < np.arange(d + 1)[None, :, None]
        steps = np.where(joined, row, self._background[:, None, :]).reshape(-1, d)
        said = np.asarray(self._estimator.predict(np.ascontiguousarray(steps, dtype=np.float32)), dtype=np.float64)
        rises = np.diff(said.reshape(count, d + 1, *said.shape[1:]), axis=1)
        own = rank if rises.ndim == 2 else rank[:, :, None]
        return np.asarray(np.take_along_axis(rises, own, axis=1))
