"""What a search optimises: a metric, its direction, and the trivial baseline it has to beat.

Plain numpy, so that the steward can score live predictions without importing a machine-learning engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import ConfigError, nearest

if TYPE_CHECKING:
    from raymlops.data.schema import Task

Mode = Literal["max", "min"]
Array = NDArray[np.float64]

_EPSILON = 1e-15


def roc_auc(y: Array, p: Array) -> float:
    """Area under the ROC curve, ties counted half (Hanley & McNeil 1982).

    For ``p`` of shape ``(n, k)``: mean over the classes present in ``y`` of one against the rest. NaN when only one
    class is present.
    """
    if p.ndim == 2:
        areas = [roc_auc((y == k).astype(np.float64), p[:, k]) for k in np.unique(y).astype(int)]
        return float(np.mean(areas)) if len(areas) > 1 else float("nan")
    positive = y == 1
    n_positive = int(positive.sum())
    n_negative = len(y) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = float(middle_rank[inverse][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2.0) / (n_positive * n_negative)


def average_precision(y: Array, p: Array) -> float:
    """Step-wise area under precision against recall, as in scikit-learn. NaN without a positive row."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order] == 1)
    if hits[-1] == 0:
        return float("nan")
    # One point per distinct score: rows with equal scores cannot be put in an order.
    last = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    precision = hits[last] / (last + 1.0)
    gained = np.diff(np.append(0, hits[last])) / hits[-1]
    return float((precision * gained).sum())


def log_loss(y: Array, p: Array) -> float:
    """Mean negative log-likelihood in nats; rows of a ``(n, k)`` matrix are normalised first."""
    if p.ndim == 1:
        p = np.column_stack([1.0 - p, p])
    p = p / p.sum(axis=1, keepdims=True)
    chosen = p[np.arange(len(y)), y.astype(int)]
    return float(-np.log(np.clip(chosen, _EPSILON, 1.0)).mean())


def accuracy(y: Array, p: Array) -> float:
    return float((_decide(p) == y).mean())


def f1(y: Array, p: Array) -> float:
    """F1 of the positive class, or its unweighted mean over classes for ``(n, k)`` (absent and never predicted: left out)."""
    decided = _decide(p)
    classes = [1] if p.ndim == 1 else sorted({*np.unique(y).astype(int).tolist(), *np.unique(decided).tolist()})
    scores = []
    for k in classes:
        both = int(((decided == k) & (y == k)).sum())
        either = int((decided == k).sum() + (y == k).sum())
        scores.append(2.0 * both / either if either else 0.0)
    return float(np.mean(scores))


def brier(y: Array, p: Array) -> float:
    """Brier (1950): ``(p - y)²`` for a binary task, summed over the classes for ``(n, k)``."""
    if p.ndim == 1:
        return float(((p - y) ** 2).mean())
    truth = np.zeros_like(p)
    truth[np.arange(len(y)), y.astype(int)] = 1.0
    return float(((p - truth) ** 2).sum(axis=1).mean())


def rmse(y: Array, p: Array) -> float:
    return float(np.sqrt(((p - y) ** 2).mean()))


def mae(y: Array, p: Array) -> float:
    return float(np.abs(p - y).mean())


def r2(y: Array, p: Array) -> float:
    """Coefficient of determination; NaN when the label is constant."""
    spread = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((p - y) ** 2).sum()) / spread if spread > 0 else float("nan")


def pinball(y: Array, p: Array, quantile: float = 0.5) -> float:
    """Mean quantile loss (Koenker & Bassett 1978): ``q · max(y - p, 0) + (1 - q) · max(p - y, 0)``."""
    return float(pinball_rows(y, p, quantile).mean())


def pinball_rows(y: Array, p: Array, quantile: float) -> Array:
    """The quantile loss of each row ``(n,)``, see :func:`pinball`."""
    short = y - p
    return np.maximum(quantile * short, (quantile - 1.0) * short)


def _decide(p: Array) -> Array:
    return (p >= 0.5).astype(np.float64) if p.ndim == 1 else p.argmax(axis=1).astype(np.float64)


_CLASSES: tuple[Task, ...] = ("binary", "multiclass")
_METRICS: dict[str, tuple[Callable[[Array, Array], float], Mode, tuple[Task, ...]]] = {
    "roc_auc": (roc_auc, "max", _CLASSES),
    "average_precision": (average_precision, "max", ("binary",)),
    "log_loss": (log_loss, "min", _CLASSES),
    "accuracy": (accuracy, "max", _CLASSES),
    "f1": (f1, "max", _CLASSES),
    "brier": (brier, "min", _CLASSES),
    "rmse": (rmse, "min", ("regression",)),
    "mae": (mae, "min", ("regression",)),
    "r2": (r2, "max", ("regression",)),
}
METRICS = tuple(_METRICS)
_DECIDED = ("accuracy", "f1")
_AUTO: dict[Task, str] = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A metric with its direction: ``mode="max"`` when more is better.

    ``function`` computes a metric that is none of ours, from ``y`` and predictions as :meth:`score` takes them.

    >>> Objective.of("auto", "binary")
    Objective(metric='roc_auc', mode='max')
    """

    metric: str
    mode: Mode
    function: Callable[[Array, Array], float] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.function is not None:
            return
        if self.metric not in _METRICS:
            raise ConfigError(f"metric={self.metric!r} is not known.{nearest(str(self.metric), _METRICS)}")
        if self.mode != _METRICS[self.metric][1]:
            raise ConfigError(f"mode={self.mode!r} does not fit {self.metric}: it is {_METRICS[self.metric][1]!r}.")

    @classmethod
    def of(cls, metric: Any, task: Task, *, mode: Mode = "max", quantile: float | None = None) -> Objective:
        """The objective for ``task``.

        Parameters
        ----------
        metric : a name of ours, ``"auto"`` (roc_auc, log_loss or rmse), a name or an object of scikit-learn's scorers, or a
            function of ``y`` and the prediction that returns a number
        mode : of such a function
        quantile : of a regression; ``"auto"`` is then its pinball loss

        Raises
        ------
        ConfigError : an unknown metric, or one that does not fit the task
        """
        if quantile is not None and task != "regression":
            raise ConfigError(
                f"quantile={quantile:g} needs numbers to predict, and the label makes this a {task} task."
            )
        if quantile is not None and metric == "auto":
            loss = functools.partial(pinball, quantile=quantile)
            return cls(metric=f"pinball_{quantile:g}", mode="min", function=loss)
        if not isinstance(metric, str):
            return cls._foreign(metric, task, mode)
        name = _AUTO[task] if metric == "auto" else metric
        if name not in _METRICS and (scorer := sklearn_scorer(name)) is not None:
            return cls._foreign(scorer, task, mode, name)
        if name not in _METRICS:
            raise ConfigError(f"metric={metric!r} is not known.{nearest(str(metric), (*_METRICS, 'auto'))}")
        _, mode, tasks = _METRICS[name]
        if task not in tasks:
            fitting = ", ".join(key for key, entry in _METRICS.items() if task in entry[2])
            raise ConfigError(
                f"metric={name!r} does not fit a {task} label: it needs {' or '.join(tasks)}. Use one of {fitting}."
            )
        return cls(metric=name, mode=mode)

    @classmethod
    def _foreign(cls, given: Any, task: Task, mode: Mode, name: str = "") -> Objective:
        if hasattr(given, "_score_func"):
            # A scorer's sign makes more always better.
            label = name or getattr(given._score_func, "__name__", "score")
            return cls(metric=label, mode="max", function=_Scorer(given, task))
        label = getattr(given, "__name__", type(given).__name__).strip("<>")
        return cls(metric=label, mode=mode, function=_Given(given, task))

    @property
    def quantile(self) -> float | None:
        """Whose loss this is; ``None`` for every other metric."""
        given = self.function
        return given.keywords["quantile"] if isinstance(given, functools.partial) and given.func is pinball else None

    @property
    def decides(self) -> bool:
        """The metric looks at the class a prediction says, not at its probability."""
        if self.function is not None:
            return isinstance(self.function, _Scorer) and self.function.decides
        return self.metric in _DECIDED

    def score(self, y: Array, prediction: Array) -> float:
        """The metric over rows.

        Parameters
        ----------
        y : ``(n,)`` class indices or values
        prediction : ``(n,)`` positive-class probability or value, or ``(n, k)`` class probabilities

        Returns
        -------
        NaN when the metric is not defined: no rows, a prediction that is not finite, one class only (roc_auc).
        """
        y, prediction = np.asarray(y, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
        if len(y) == 0 or not np.isfinite(prediction).all():
            return float("nan")
        return float((self.function or _METRICS[self.metric][0])(y, prediction))

    def score_part(self, y: Array, prediction: Array) -> float:
        """:meth:`score` of some of the rows, a group or a slice; NaN where a metric of the user's cannot be computed.

        Not all classes need be among them, and metrics that need all of them raise.
        """
        try:
            return self.score(y, prediction)
        except Exception:
            if self.function is None:
                raise
            # What is wrong with the metric itself was raised by the score of all rows.
            return float("nan")

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is strictly better than ``b``; NaN is worse than everything and never better."""
        if np.isnan(a):
            return False
        if np.isnan(b):
            return True
        return a > b if self.mode == "max" else a < b

    def gain(self, candidate: float, reference: float) -> float:
        """How much better ``candidate`` is, in units of the metric; negative when it is worse."""
        return candidate - reference if self.mode == "max" else reference - candidate

    def gap(self, train: float, validation: float, baseline: float) -> float:
        """Over-fitting as a share of the way from no skill to perfection: 0 none, 1 all of it.

        For a metric of ours to be raised, the plain difference. For a loss the difference over the trivial baseline's loss: a
        boosted tree's train loss is often a tenth of its validation loss, so a ratio of the two would tell nothing. A
        metric that is not ours may have any size (a profit, a negated error): its difference is taken over the larger of
        1, the train score's size and the baseline's.
        """
        if self.mode == "max":
            sizes = [abs(value) for value in (train, baseline) if np.isfinite(value)]
            return (train - validation) / (1.0 if self.function is None else max(1.0, *sizes))
        return (validation - train) / baseline if baseline > 0 else float("nan")

    def baseline(self, y_train: Array, y_test: Array) -> float:
        """The score on ``y_test`` of the best constant prediction that ``y_train`` gives.

        Base rates for a classification metric (for F1: always the positive class, or base rates for more than two), the
        mean for rmse and r2, the median for mae.
        """
        n = len(y_test)
        if self.function is not None:
            return self._foreign_baseline(np.asarray(y_train), y_test)
        if self.metric in ("rmse", "r2"):
            return self.score(y_test, np.full(n, float(np.mean(y_train))))
        if self.metric == "mae":
            return self.score(y_test, np.full(n, float(np.median(y_train))))
        n_classes = max(2, int(max(np.max(y_train), np.max(y_test, initial=0.0))) + 1)
        # One more row of each class: a class that training never saw is improbable, not impossible.
        rates = (np.bincount(np.asarray(y_train).astype(int), minlength=n_classes) + 1) / (len(y_train) + n_classes)
        if n_classes > 2:
            return self.score(y_test, np.tile(rates, (n, 1)))
        return self.score(y_test, np.full(n, 1.0 if self.metric == "f1" else rates[1]))

    def _foreign_baseline(self, y_train: Array, y_test: Array) -> float:
        """The best of a few constants: of a metric that is not ours it is not known which one is."""
        n = len(y_test)
        if getattr(self.function, "task", "regression") != "regression":
            k = max(2, int(max(np.max(y_train), np.max(y_test, initial=0.0))) + 1)
            rates = (np.bincount(y_train.astype(int), minlength=k) + 1) / (len(y_train) + k)
            constants = [np.tile(rates, (n, 1)) if k > 2 else np.full(n, rates[1])]
        else:
            values = [float(np.mean(y_train)), *(float(q) for q in np.quantile(y_train, np.linspace(0.05, 0.95, 19)))]
            constants = [np.full(n, value) for value in values]
        scores = [self.score(y_test, constant) for constant in constants]
        return max(scores) if self.mode == "max" else min(scores)


class _Given:
    """The user's function, and the task whose predictions it takes."""

    def __init__(self, function: Callable[[Array, Array], float], task: Task) -> None:
        self.function, self.task = function, task

    def __call__(self, y: Array, p: Array) -> float:
        return self.function(y, p)


class _Scorer:
    """A scikit-learn scorer's function over predictions that were already made."""

    def __init__(self, scorer: Any, task: Task) -> None:
        self._scorer, self.task = scorer, task

    @property
    def decides(self) -> bool:
        return self.task != "regression" and self._scorer._response_method == "predict"

    def __call__(self, y: Array, p: Array) -> float:
        scorer = self._scorer
        return float(scorer._sign * scorer._score_func(y, _decide(p) if self.decides else p, **scorer._kwargs))


def sklearn_scorer(name: str) -> Any | None:
    """scikit-learn's scorer of that name, or ``None``; it is imported only for a name that is not ours."""
    from sklearn.metrics import get_scorer, get_scorer_names

    return get_scorer(name) if name in get_scorer_names() else None
