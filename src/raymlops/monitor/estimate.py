"""Performance of a binary classifier before its labels come, as far as it can be known without them.

PAPE (Białek, Kuberski, Perrakis and Bifet, arXiv:2401.08348): reference rows are weighted by how much likelier they are in the
window than in the reference (a gradient-boosted classifier tells the two apart), the score is calibrated on the weighted rows,
and each metric takes its expectation under the calibrated probabilities. CBPE is the same without weights and is given beside
it: where the two differ, the inputs have moved to where the model is calibrated otherwise. Both take ``P(y | x)`` for
unchanged, so neither can see concept drift; nor can any method without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.errors import DataError

ASSUMES = "no concept drift: P(y | x) is that of the reference"
METRICS = ("brier", "accuracy", "f1", "roc_auc")
MIN_PER_CLASS = 50
"""Expected rows of each class below which an AUC is refused."""
_MIN_ROWS = 300
_CALIBRATION_BINS = 100
_MOST_RATIO = 20.0
_FOLDS = 3
_BOOTSTRAPS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """One metric.

    Attributes
    ----------
    value : expectation under the weighted calibration (PAPE)
    low, high : 95 % bootstrap interval of what labels would show, over rows of window and reference and the labels'
        own chance; it does not cover a broken assumption
    check : the same without weights (CBPE)
    reference : measured on the reference's labels
    """

    value: float
    low: float
    high: float
    check: float
    reference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceEstimate:
    """What a window's performance probably was.

    Attributes
    ----------
    metrics : by name: ``brier`` (the monitor's loss), ``accuracy`` and ``f1`` at a threshold of 0.5, ``roc_auc``
    refused : metrics left out, with the reason
    effective_rows : Kish size of the weighted reference; small when little of it resembles the window
    assumes : what all of this rests on
    """

    metrics: Mapping[str, Estimated]
    refused: Mapping[str, str]
    rows: int
    effective_rows: float
    assumes: str = ASSUMES

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> PerformanceEstimate:
        return cls(**{**body, "metrics": {name: Estimated(**item) for name, item in body["metrics"].items()}})


def labels_of(scores: ArrayLike, losses: ArrayLike) -> NDArray[np.float64]:
    """Labels ``(n,)`` of binary rows from their scores and Brier losses.

    NaN where the score is 0.5 and cannot tell, and where the loss is no Brier loss of that score.
    """
    s, loss = np.asarray(scores, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    one, zero = np.abs((s - 1) ** 2 - loss), np.abs(s**2 - loss)
    labels = np.where(one < zero, 1.0, 0.0)
    certain = (np.minimum(one, zero) < 1e-3) & (np.abs(one - zero) > 1e-9)
    return np.where(certain, labels, np.nan)


class PerformanceEstimator:
    """Estimates for windows of one version's traffic. Pure: the same rows give the same numbers.

    Parameters
    ----------
    x : reference rows ``(n, d)``, NaN = missing
    scores : ``(n,)`` probability of class 1; y : ``(n,)`` labels 0 or 1, NaN = unknown (such rows are left out)
    threshold : at which a score counts as class 1

    Raises
    ------
    DataError : fewer than 300 labelled rows, or fewer than 10 of one class
    """

    def __init__(self, x: NDArray[Any], scores: ArrayLike, y: ArrayLike, *, threshold: float = 0.5) -> None:
        s, labels = np.asarray(scores, dtype=np.float64), np.asarray(y, dtype=np.float64)
        known = np.isfinite(s) & np.isfinite(labels)
        self._x, self._s, self._y = np.asarray(x)[known], s[known], labels[known]
        positives = int(self._y.sum())
        if len(self._y) < _MIN_ROWS or min(positives, len(self._y) - positives) < 10:
            raise DataError(
                f"{len(self._y)} labelled reference rows, {positives} of class 1: estimating performance needs at least "
                f"{_MIN_ROWS} rows and 10 of each class."
            )
        self._threshold = threshold
        edges = np.unique(np.quantile(self._s, np.arange(1, _CALIBRATION_BINS) / _CALIBRATION_BINS))
        self._bin = np.searchsorted(edges, self._s, side="right")
        self._bins = len(edges) + 1
        ones = np.ones(len(self._s))
        self._reference = {name: _metric(name, self._s, self._y, ones, threshold) for name in METRICS}

    def estimate(self, x: NDArray[Any], scores: ArrayLike, *, seed: int = 0) -> PerformanceEstimate:
        """For rows ``x`` ``(n, d)`` with scores ``(n,)``; rows without a finite score are left out.

        Raises
        ------
        DataError : fewer than 50 rows with a score, or another number of columns
        """
        s = np.asarray(scores, dtype=np.float64)
        known = np.isfinite(s)
        if int(known.sum()) < 50 or np.asarray(x).shape[1:] != self._x.shape[1:]:
            raise DataError(
                f"Rows of shape {np.asarray(x).shape}, {int(known.sum())} with a score: an estimate needs 50 of "
                f"{self._x.shape[1]} columns."
            )
        rows, s = np.asarray(x)[known], s[known]
        ratio = density_ratio(self._x, rows, seed)
        ones, plain = np.ones(len(s)), np.ones(len(self._s))
        weighted, unweighted = self._calibrate(ratio)(s), self._calibrate(plain)(s)
        expected = float(min(weighted.sum(), (1 - weighted).sum()))
        refused = {}
        if expected < MIN_PER_CLASS:
            refused["roc_auc"] = f"{expected:.0f} rows of one class expected, needs {MIN_PER_CLASS}"
        rng = np.random.default_rng(seed)
        names = [name for name in METRICS if name not in refused]
        draws: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(_BOOTSTRAPS):
            again = self._calibrate(ratio * rng.poisson(1.0, len(ratio)))(s)
            labels = (rng.uniform(size=len(s)) < again).astype(np.float64)
            for name in names:
                draws[name].append(_metric(name, s, labels, ones, self._threshold))
        metrics = {}
        for name in names:
            value = _metric(name, s, weighted, ones, self._threshold)
            low, high = np.quantile(draws[name], (0.025, 0.975))
            metrics[name] = Estimated(
                value=value,
                low=min(float(low), value),
                high=max(float(high), value),
                check=_metric(name, s, unweighted, ones, self._threshold),
                reference=self._reference[name],
            )
        kish = float(ratio.sum() ** 2 / (ratio**2).sum())
        return PerformanceEstimate(metrics=metrics, refused=refused, rows=len(s), effective_rows=kish)

    def _calibrate(self, weights: NDArray[np.float64]) -> Calibration:
        """Monotone calibration of the score on the weighted reference, over quantile bins of the score."""
        mass = np.bincount(self._bin, weights=weights, minlength=self._bins).astype(np.float64)
        held = mass > 0
        at = np.bincount(self._bin, weights=weights * self._s, minlength=self._bins)[held] / mass[held]
        rate = np.bincount(self._bin, weights=weights * self._y, minlength=self._bins)[held] / mass[held]
        return Calibration(at, pool(rate, mass[held]))


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Probability of class 1 by score, linear between points of increasing score."""

    at: NDArray[np.float64]
    rate: NDArray[np.float64]

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(scores, self.at, self.rate)


def pool(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted isotonic regression of ``values`` ``(n,)`` (pool adjacent violators; Ayer et al., 1955)."""
    means, masses, sizes = list[float](), list[float](), list[int]()
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, size = value, weight, 1
        while means and means[-1] >= mean:
            total = masses[-1] + mass
            mean = (means.pop() * masses.pop() + mean * mass) / total
            mass, size = total, size + sizes.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    return np.repeat(means, sizes)


def density_ratio(reference: NDArray[Any], window: NDArray[Any], seed: int = 0) -> NDArray[np.float64]:
    """How much likelier each reference row ``(n,)`` is in the window, mean 1, at most 20 before it is scaled.

    Odds of a gradient-boosted classifier that tells window from reference; each row is judged by trees that have not seen it.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    x = np.concatenate((reference, window)).astype(np.float32)
    x[~np.isfinite(x)] = np.nan
    y = np.concatenate((np.zeros(len(reference)), np.ones(len(window))))
    fold = np.random.default_rng(seed).integers(0, _FOLDS, len(y))
    odds = np.ones(len(reference))
    for number in range(_FOLDS):
        mine = fold[: len(reference)] == number
        # scikit-learn bins no column without a single value, and there is nothing to learn from one.
        known = ~np.isnan(x[fold != number]).all(axis=0)
        if not known.any():
            continue
        model = HistGradientBoostingClassifier(
            max_iter=60,
            learning_rate=0.08,
            max_leaf_nodes=15,
            min_samples_leaf=50,
            l2_regularization=5.0,
            random_state=seed,
        ).fit(x[fold != number][:, known], y[fold != number])
        p = np.clip(model.predict_proba(x[: len(reference)][mine][:, known])[:, 1], 1e-6, 1 - 1e-6)
        odds[mine] = p / (1 - p)
    ratio = np.minimum(odds * len(reference) / len(window), _MOST_RATIO)
    return ratio / ratio.mean()


def _metric(
    name: str, s: NDArray[np.float64], p: NDArray[np.float64], taken: NDArray[np.float64], threshold: float
) -> float:
    """Expectation of a metric where row ``i``, counted ``taken[i]`` times, is of class 1 with probability ``p[i]``."""
    total = max(float(taken.sum()), 1.0)
    if name == "brier":
        return float((taken * (p * (1 - s) ** 2 + (1 - p) * s**2)).sum() / total)
    if name == "roc_auc":
        return _auc(s, taken * p, taken * (1 - p))
    chosen = s >= threshold
    if name == "accuracy":
        return float((taken * np.where(chosen, p, 1 - p)).sum() / total)
    hits, alarms, positives = (taken * p)[chosen].sum(), taken[chosen].sum(), (taken * p).sum()
    return float(2 * hits / max(alarms + positives, 1e-12))


def _auc(s: NDArray[np.float64], ones: NDArray[np.float64], zeros: NDArray[np.float64]) -> float:
    """Probability that a row of class 1 scores above one of class 0, ties half, for fractional memberships."""
    order = np.argsort(s, kind="stable")
    _, at = np.unique(s[order], return_index=True)
    one, zero = np.add.reduceat(ones[order], at), np.add.reduceat(zeros[order], at)
    below = np.cumsum(zero) - zero / 2
    return float((one * below).sum() / max(one.sum() * zero.sum(), 1e-12))
