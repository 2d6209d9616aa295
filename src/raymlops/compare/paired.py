"""Candidate against champion on identical rows: how much better, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.search.objective import Objective, pinball_rows
from raymlops.search.resample import Rows, block_rows, moving_blocks, stratified

if TYPE_CHECKING:
    from raymlops.data.schema import Task

Floats = NDArray[np.float64]

LEVEL, REPLICATES = 0.9, 500
MOST_ROWS = 20_000
_RARE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The paired bootstrap of a metric's difference (percentile interval; Efron & Tibshirani 1993, chapter 13).

    Attributes
    ----------
    gain : how much better the candidate is on these rows, in units of the metric; negative when it is worse
    low, high : interval of ``level`` for it
    certainty : share of replicates in which the gain is above the one that was asked for
    method : how rows were drawn
    rows, replicates : that were used; replicates without a score (one class only) are left out
    """

    gain: float
    low: float
    high: float
    level: float
    certainty: float
    method: str
    rows: int
    replicates: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        return cls(**data)


def row_loss(objective: Objective, y: NDArray[Any], p: NDArray[Any]) -> Floats:
    """One loss a row ``(n,)``, for what needs rows and not a metric: squared error of a probability or a value (absolute
    for mae, the quantile's own for a quantile), or one minus the true class's probability for ``(n, k)``."""
    y, p = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if p.ndim == 2:
        return np.asarray(1.0 - p[np.arange(len(y)), y.astype(int)])
    if objective.quantile is not None:
        return pinball_rows(y, p, objective.quantile)
    return np.asarray(np.abs(p - y) if objective.metric == "mae" else (p - y) ** 2)


def compare(
    objective: Objective,
    y: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    task: Task,
    ordered: bool,
    min_gain: float = 0.0,
    seed: int = 0,
) -> Comparison | None:
    """Compare two models' predictions for the same rows, at most the newest 20,000, or with k classes 40,000 / k.

    ``champion`` may be a constant baseline's. ``None`` when one of the two has no score, or when fewer than a tenth of the
    replicates have one.

    Parameters
    ----------
    y : ``(n,)`` class indices or values
    candidate, champion : what :meth:`Objective.score` takes
    ordered : the rows are in time order; blocks of neighbours are drawn then (moving-block bootstrap)
    """
    most = MOST_ROWS if candidate.ndim == 1 else 2 * MOST_ROWS // candidate.shape[1]
    y, a, b = (np.asarray(part, dtype=np.float64)[-most:] for part in (y, candidate, champion))
    gain = objective.gain(objective.score(y, a), objective.score(y, b))
    if not np.isfinite(gain):
        return None
    draws, method = _draws(task, y, row_loss(objective, y, b) - row_loss(objective, y, a), ordered, seed)
    gains = np.array(
        [
            objective.gain(objective.score_part(y[rows], a[rows]), objective.score_part(y[rows], b[rows]))
            for rows in draws
        ]
    )
    gains = gains[np.isfinite(gains)]
    if len(gains) < REPLICATES / 10:
        return None
    low, high = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Comparison(
        gain=float(gain),
        low=float(low),
        high=float(high),
        level=LEVEL,
        certainty=float((gains > min_gain).mean()),
        method=method,
        rows=len(y),
        replicates=len(gains),
    )


def _draws(task: Task, y: Floats, difference: Floats, ordered: bool, seed: int) -> tuple[Iterator[Rows], str]:
    classes = task != "regression"
    rare = classes and int(np.unique(y, return_counts=True)[1].min()) < _RARE
    if classes and (rare or not ordered):
        # The split has given each part its share of each class; a replicate without the rare one would have no score.
        return stratified(y, REPLICATES, seed), "rows drawn within each class"
    block = block_rows(difference) if ordered else 1
    words = "single rows" if block == 1 else f"moving blocks of {block} rows"
    return moving_blocks(len(y), block, REPLICATES, seed), words


def best_constant(objective: Objective, task: Task, y_train: NDArray[Any], y: NDArray[Any]) -> Floats:
    """The best constant prediction for the rows ``y``, of a few that the train rows give, whatever the metric.

    Base rates, and for two classes always the positive one; for values the mean and the twentieths of their distribution.
    """
    n = len(y)
    if task == "regression":
        values = [float(np.mean(y_train)), *np.quantile(y_train, np.linspace(0.05, 0.95, 19)).tolist()]
        constants = [np.full(n, value) for value in values]
    else:
        k = max(2, int(max(np.max(y_train), np.max(y, initial=0))) + 1)
        # One more row of each class: one that training never saw is improbable, not impossible.
        rates = (np.bincount(np.asarray(y_train).astype(int), minlength=k) + 1) / (len(y_train) + k)
        constants = [np.tile(rates, (n, 1))] if k > 2 else [np.full(n, rates[1]), np.ones(n)]
    best = constants[0]
    for other in constants[1:]:
        if objective.better(objective.score(y, other), objective.score(y, best)):
            best = other
    return best
