"""Changes that no column shows alone: a classifier learns to tell live rows from the reference and bets that it can.

Columns become normal scores of the reference's cells (bounded, so outliers and infinities are harmless; missing is 0) and
are whitened by the reference. There the log density ratio of a small change is close to
``b'y + (y'Cy - tr C) / 2`` with ``b`` and ``C`` the differences of means and covariances: a quadratic classifier without
an optimiser. It is learned on past rows and one half of the reference; each later row bets, by its score's rank ``u``
among the other half, against ``mean u <= 1/2 + tolerance`` (sequential two-sample tests by betting: Podkopaev and Ramdas,
NeurIPS 2023; Shiryaev-Roberts form, arXiv:2203.03532). ``mean u`` is the AUC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.monitor.evidence import JOINT, MIN_EFFECTIVE, Evidence, Window
from raymlops.monitor.quality import thinned_time
from raymlops.sketch.histogram import Bins, Sketch, pack_array, unpack_array
from raymlops.sketch.period import most_tied

_BETS = np.array([0.15, 0.4, 0.8, 1.4])
_TOLERANCE = 0.01
_STANDARD_ERRORS = 2.5
_DECAY = 0.75
_BLOCKS = 20
_RIDGE = 0.05


class JointBets:
    """The detector of changes in how columns hang together.

    Parameters
    ----------
    bins, reference : borders and counts of the frozen reference
    cells : ``(n_columns, n_rows)``, cells of its rows in time order
    times : ``(n_columns,)`` autocorrelation times in rows; the longest counts for all. Rows of a window's sample lie further
        apart and depend less on each other (``thinned_time``)
    share : of the windows' ``alpha`` that this detector may spend
    time : of the combination of columns that remembers longest, where that is known
    """

    name = "classifier"

    def __init__(
        self,
        bins: Bins,
        reference: Sketch,
        cells: NDArray[np.int16],
        times: NDArray[np.float64],
        *,
        share: float = 1.0,
        time: float = 1.0,
    ) -> None:
        self._share = share
        scores = np.array([_normal_scores(counts) for counts in reference.counts])
        # Missing and infinite count as the middle; the rate tests look at them.
        self._table = np.column_stack((scores, np.zeros((len(scores), 2)))).astype(np.float32)
        z = self._lookup(cells, np.arange(len(bins.columns)))
        varied = most_tied(z)
        self._used, z = varied, z[:, varied]
        self._columns = tuple(bins.columns[i] for i in varied)
        self._time = float(np.max(times[varied], initial=max(time, 1.0)))
        block = np.arange(len(z)) * _BLOCKS // max(len(z), 1)
        learn, judge = z[block % 2 == 0], z[block % 2 == 1]
        d = len(varied)
        self._mean = learn.mean(axis=0) if d else np.zeros(0)
        covariance = np.cov(learn.T).reshape(d, d) if len(learn) > 1 else np.eye(d)
        values, vectors = np.linalg.eigh(covariance + _RIDGE * np.diag(np.diag(covariance)))
        self._whiten = vectors / np.sqrt(np.maximum(values, 1e-9))
        self._learn_mean, self._learn_cov = _moments(self._white(learn))
        self._judge = self._white(judge)
        judges = len(judge) / self._time
        self._enough = d > 0 and judges >= MIN_EFFECTIVE
        self._accepted = 0.5 + _TOLERANCE + _STANDARD_ERRORS * float(np.sqrt(1 / 12 / max(judges, 1.0)))
        self._weight, self._sum = 0.0, np.zeros(d)
        self._cross = np.zeros((d, d))
        self._capital = np.zeros(len(_BETS))
        self._clear()

    def _clear(self) -> None:
        d = len(self._columns)
        self._open_rows, self._open_effective = 0, 0.0
        self._open_sum, self._open_cross = np.zeros(d), np.zeros((d, d))
        self._open_gain, self._open_spend, self._open_rank = np.zeros(len(_BETS)), 0.0, 0.0

    def update(self, window: Window) -> tuple[Evidence, ...]:
        """One piece of evidence about all columns together; needs a window before this one to learn from."""
        spend = window.alpha * self._share
        if not self._enough or not len(window.x):
            return (Evidence.insufficient(self.name, JOINT, spend),)
        time = thinned_time(self._time, window.stride)
        y = self._white(self._lookup(window.cells, self._used))
        if self._weight > 0:
            rank = self._rank(y)
            # Capital can never be ruined: a bet of at most 1.4 on u - accepted loses at most three quarters.
            self._open_gain += np.log1p(_BETS[:, None] * (rank - self._accepted)).sum(axis=1) / time
            self._open_rank += float(rank.sum())
        self._open_rows += len(y)
        self._open_effective += len(y) / time
        self._open_sum += y.sum(axis=0) / time
        self._open_cross += y.T @ y / time
        self._open_spend += spend
        if self._open_effective < MIN_EFFECTIVE:
            return (Evidence.insufficient(self.name, JOINT, spend, self._open_effective),)
        return (self._settle(spend),)

    def _settle(self, spend: float) -> Evidence:
        learned, effective = self._weight > 0, self._open_effective
        auc = self._open_rank / self._open_rows if learned else 0.5
        if learned:
            stake = self._open_spend / len(_BETS)
            self._capital = np.minimum((self._capital + stake) * np.exp(np.minimum(self._open_gain, 60.0)), 1e12)
        capital = float(self._capital.sum())
        if capital >= 1.0:
            self._capital = np.zeros(len(_BETS))
        self._weight = _DECAY * self._weight + effective
        self._sum = _DECAY * self._sum + self._open_sum
        self._cross = _DECAY * self._cross + self._open_cross
        self._clear()
        if not learned:
            return Evidence.insufficient(self.name, JOINT, spend, effective)
        return Evidence(
            name=self.name,
            column=JOINT,
            statistic=auc,
            p_value=min(1.0, spend / max(capital, 1e-300)),
            limit=spend,
            drifted=capital >= 1.0,
            distance=max(2.0 * auc - 1.0 - 2.0 * (self._accepted - 0.5 - _TOLERANCE), 0.0),
            effective_rows=effective,
            detail=self._guilty() if capital >= 1.0 else (),
        )

    def _direction(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``b`` and ``C`` from past rows, entries that chance explains set to 0."""
        mean = self._sum / self._weight
        b = mean - self._learn_mean
        c = self._cross / self._weight - np.outer(mean, mean) - self._learn_cov
        noise = float(np.sqrt(1.0 / self._weight + self._time / max(len(self._judge), 1)))
        b = np.where(np.abs(b) > 1.5 * noise, b, 0.0)
        # Off the diagonal the variance of a product is 1; on it 2.
        limit = 1.5 * noise * np.where(np.eye(len(c)) > 0, np.sqrt(2.0), 1.0)
        return b, np.where(np.abs(c) > limit, c, 0.0)

    def _rank(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mid-rank of each row's score among the judging half, 0 to 1."""
        b, c = self._direction()
        if not (b.any() or c.any()):
            return np.full(len(y), 0.5)
        scores, own = np.sort(_score(self._judge, b, c)), _score(y, b, c)
        left, right = np.searchsorted(scores, own, side="left"), np.searchsorted(scores, own, side="right")
        rank: NDArray[np.float64] = (left + right) / (2.0 * len(scores))
        return rank

    def _guilty(self) -> tuple[str, ...]:
        """Columns by how much of the change in means and covariances, undone from whitening, is theirs."""
        mean = self._sum / self._weight
        back = np.linalg.pinv(self._whiten)
        shift = (mean - self._learn_mean) @ back
        moved = back.T @ (self._cross / self._weight - np.outer(mean, mean) - self._learn_cov) @ back
        part = shift**2 + (moved**2).sum(axis=1)
        return tuple(self._columns[i] for i in np.argsort(-part, kind="stable")[:5])

    def _lookup(self, cells: NDArray[np.int16], used: NDArray[np.intp]) -> NDArray[np.float64]:
        return (
            np.column_stack([self._table[i].take(cells[i]) for i in used]).astype(np.float64)
            if len(used)
            else np.zeros((cells.shape[1], 0))
        )

    def _white(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        white: NDArray[np.float64] = (z - self._mean) @ self._whiten
        return white

    def state_dict(self) -> dict[str, Any]:
        arrays = ("sum", "cross", "capital", "open_sum", "open_cross", "open_gain")
        plain = ("weight", "open_rows", "open_effective", "open_spend", "open_rank")
        return {name: pack_array(getattr(self, "_" + name)) for name in arrays} | {
            name: getattr(self, "_" + name) for name in plain
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._sum, self._cross, self._capital, self._open_sum, self._open_cross, self._open_gain = (
            unpack_array(state[name]) for name in ("sum", "cross", "capital", "open_sum", "open_cross", "open_gain")
        )
        self._weight, self._open_rows = state["weight"], state["open_rows"]
        self._open_effective = state["open_effective"]
        self._open_spend, self._open_rank = state["open_spend"], state["open_rank"]


def _normal_scores(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Normal quantile of each cell's mid-rank in the reference; cells beyond its range get the outermost."""
    from scipy.special import ndtri

    total = int(counts.sum())
    if total == 0:
        return np.zeros(len(counts))
    middle = (np.cumsum(counts) - counts / 2) / total
    scores: NDArray[np.float64] = ndtri(np.clip(middle, 0.5 / total, 1 - 0.5 / total))
    return np.clip(scores, -3.0, 3.0)


def _moments(y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = y.mean(axis=0) if len(y) else np.zeros(y.shape[1])
    return mean, (y.T @ y) / max(len(y), 1) - np.outer(mean, mean)


def _score(y: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    score: NDArray[np.float64] = y @ b + 0.5 * np.einsum("ij,ij->i", y @ c, y)
    return score
