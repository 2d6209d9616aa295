"""Small changes that last: a bet on each column's histogram that goes on from window to window.

For a column with reference shares ``p0`` over a few cells, the null hypothesis is every histogram in a band around ``p0``
that is as wide as the change that does not matter plus the reference's own error. The bettor's guess ``q`` comes from past
rows only; ``e = q / p*`` with ``p*`` the reverse information projection of ``q`` on the band, which for a band is
``clip(q / nu, low, high)``, has expectation at most 1 under all of them (Grünwald, de Heide and Koolen, JRSS-B 2024,
arXiv:1906.07801). Bets started at every time are added up in Shiryaev-Roberts form, ``M <- (M + spend) e``, with alarm at 1
(e-detectors: arXiv:2203.03532): in any number of windows the expected false alarms are at most what was spent.

Under autocorrelation ``e`` is raised to ``1 / time``, and rows are taken in blocks of at least 50 independent ones: a
heuristic, checked by simulation up to AR(1) with 0.98.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.monitor.evidence import MIN_EFFECTIVE, Evidence, Window
from raymlops.sketch.histogram import Bins, Sketch, pack_array, unpack_array

GROUPS = 16
"""Groups of quantile cells of a numeric column; categories keep one a code up to as many, rarest together."""
_BLOCK = 250
_TOLERANCE = 0.03
_STANDARD_ERRORS = 3.0
_MISSED = 1e-3
"""Share of versions whose band may miss the truth in some cell, where windows are counts: there are so many rows then that the
reference's own error, a few standard errors of some cell out of hundreds, would be found as a change."""
_PRIOR_ROWS = 150.0
_DECAY = 0.9


class PersistentBets:
    """The detector of changes too small for one window.

    A window that is whole is taken in runs of 250 rows. One that comes as counts is one run, against a wider band.

    Parameters
    ----------
    bins, reference : borders and counts of the frozen reference
    times : ``(n_columns,)`` autocorrelation times in rows, at least 1
    share : of the windows' ``alpha`` that this detector may spend
    categories : indices of the columns of category codes
    """

    name = "persistent"

    def __init__(
        self,
        bins: Bins,
        reference: Sketch,
        times: NDArray[np.float64],
        *,
        share: float = 1.0,
        categories: frozenset[int] = frozenset(),
    ) -> None:
        from scipy.special import ndtri

        self._columns, self._times, self._share = bins.columns, np.asarray(times, dtype=np.float64), share
        size = len(bins.columns)
        self._groups = np.array([_groups(reference.counts[i], i in categories) for i in range(size)]).reshape(size, -1)
        self._width = GROUPS + 3
        counts = self._group(_all_counts(reference))
        rows = np.maximum(counts.sum(axis=1, keepdims=True) / self._times[:, None], 1.0)
        share0 = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        used = np.zeros((size, self._width), dtype=bool)
        for i, groups in enumerate(self._groups):
            used[i, np.unique(groups)] = True
        error, missed = np.sqrt(share0 * (1 - share0) / rows), _MISSED / 2 / max(int(np.count_nonzero(used)), 1)
        # A cell that the reference never saw in n rows may hold -log(p) / n of them, but for a chance of p; 5 % is three.
        reach = ((_STANDARD_ERRORS, 3.0), (max(-float(ndtri(missed)), _STANDARD_ERRORS), -float(np.log(missed))))
        margins = [_TOLERANCE * share0 + errors * error + unseen / rows for errors, unseen in reach]
        self._bands = [
            (np.clip(share0 - margin, 0.0, 1.0), np.where(used, np.clip(share0 + margin, 0.0, 1.0), 0.0))
            for margin in margins
        ]
        # Every used cell starts with something: the bettor must never be ruined by one unexpected row.
        prior = np.where(used, share0 + 0.5 / rows, 0.0)
        self._prior = prior / prior.sum(axis=1, keepdims=True)
        self._reference = share0
        self._block = np.maximum(_BLOCK, np.ceil(MIN_EFFECTIVE * self._times / _BLOCK) * _BLOCK).astype(np.int64)
        self._capital = np.zeros(size)
        self._past = np.zeros((size, self._width))
        self._open = np.zeros((size, self._width), dtype=np.int64)
        self._open_spend = np.zeros(size)
        self._open_wide = np.zeros(size, dtype=bool)
        self._rows = np.zeros(size, dtype=np.int64)

    def update(self, window: Window) -> tuple[Evidence, ...]:
        """One piece of evidence a column; ``drifted`` when its bets passed the alarm within this window."""
        spend = window.alpha * self._share / max(len(self._columns), 1)
        best, judged = self._capital.copy(), np.zeros(len(self._columns), dtype=bool)
        for rows, counts in self._batches(window):
            self._open += counts
            self._open_wide |= not window.whole
            self._open_spend += spend * rows / window.rows
            done = np.flatnonzero(self._open.sum(axis=1) >= self._block)
            if done.size:
                self._bet(done)
                judged[done] = True
                best[done] = np.maximum(best[done], self._capital[done])
                self._capital[done] = np.where(self._capital[done] >= 1.0, 0.0, self._capital[done])
        self._rows += window.rows
        return tuple(self._evidence(i, float(best[i]), bool(judged[i]), spend) for i in range(len(self._columns)))

    def _batches(self, window: Window) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Rows and group counts ``(n_columns, groups)`` of each run, those of 250 rows all counted at once."""
        if not window.whole:
            yield window.rows, self._group(_all_counts(window.sketch))
            return
        cells = window.cells
        d, n = cells.shape
        runs = -(-n // _BLOCK)
        index = np.take_along_axis(self._groups, cells, axis=1)
        index += self._width * np.arange(d)[:, None]
        index += self._width * d * (np.arange(n) // _BLOCK)
        counts = np.bincount(index.ravel(), minlength=runs * d * self._width).reshape(runs, d, self._width)
        for run in range(runs):
            yield min(_BLOCK, n - run * _BLOCK), counts[run]

    def _bet(self, done: NDArray[np.intp]) -> None:
        """Settle the open rows of the columns ``done`` against what was guessed before them, then learn from them."""
        weight = self._past[done].sum(axis=1, keepdims=True)
        guess = (_PRIOR_ROWS * self._prior[done] + self._past[done]) / (_PRIOR_ROWS + weight)
        wide = self._open_wide[done, None]
        (low, high), (lower, higher) = self._bands
        null = project(guess, np.where(wide, lower[done], low[done]), np.where(wide, higher[done], high[done]))
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(guess > 0, np.log(guess / null), 0.0)
        rows = self._open[done]
        exponent = (rows * gain).sum(axis=1) / self._times[done]
        self._capital[done] = np.minimum(
            (self._capital[done] + self._open_spend[done]) * np.exp(np.minimum(exponent, 60.0)), 1e12
        )
        self._past[done] = _DECAY * self._past[done] + rows / self._times[done, None]
        self._open[done] = 0
        self._open_wide[done] = False
        self._open_spend[done] = 0.0

    def _evidence(self, i: int, capital: float, judged: bool, spend: float) -> Evidence:
        effective = float(self._rows[i] / self._times[i])
        if not judged and effective < MIN_EFFECTIVE:
            return Evidence.insufficient(self.name, self._columns[i], spend, effective)
        past = self._past[i].sum()
        return Evidence(
            name=self.name,
            column=self._columns[i],
            statistic=capital,
            p_value=min(1.0, spend / max(capital, 1e-300)),
            limit=spend,
            drifted=capital >= 1.0,
            distance=_distance(self._past[i] / past, self._reference[i], past) if past > 0 else 0.0,
            effective_rows=effective,
        )

    def _group(self, counts: NDArray[Any]) -> NDArray[Any]:
        return np.array(
            [np.bincount(g, weights=c, minlength=self._width) for g, c in zip(self._groups, counts, strict=True)]
        ).astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        names = ("capital", "past", "open", "open_spend", "open_wide", "rows")
        return {name: pack_array(getattr(self, "_" + name)) for name in names}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._capital, self._past, self._open, self._open_spend, self._open_wide, self._rows = (
            unpack_array(state[name]) for name in ("capital", "past", "open", "open_spend", "open_wide", "rows")
        )


def project(guess: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reverse information projection of ``guess`` on ``{p : low <= p <= high, sum p = 1}``, row by row ``(n, cells)``.

    ``clip(guess / nu, low, high)`` with ``nu`` found by bisection. The band must hold a distribution:
    ``sum low <= 1 <= sum high``.
    """
    # In logarithms of nu: at e^-40 every guessed cell is at its top, at e^40 every cell at its bottom.
    below, above = np.full((len(guess), 1), -40.0), np.full((len(guess), 1), 40.0)
    for _ in range(60):
        middle = (below + above) / 2
        heavy = np.clip(guess * np.exp(-middle), low, high).sum(axis=1, keepdims=True) > 1.0
        below, above = np.where(heavy, middle, below), np.where(heavy, above, middle)
    # The smaller nu: sums to 1 or a hair more, so that the bet errs on the side of caution.
    return np.clip(guess * np.exp(-below), low, high)


def _all_counts(sketch: Sketch) -> NDArray[np.int64]:
    return np.column_stack((sketch.counts, sketch.missing, sketch.infinite))


def _groups(counts: NDArray[np.int64], category: bool) -> NDArray[np.intp]:
    """Group of each cell of a column, its missing and infinite cells last (both in the last group)."""
    cells, lost = len(counts), GROUPS + 2
    if category:
        order = np.argsort(-counts[1:], kind="stable")
        rank = np.empty(cells - 1, dtype=np.intp)
        rank[order] = np.arange(cells - 1)
        # Unseen codes lie outside the reference's codes: they join the rarest.
        inner = np.concatenate(([GROUPS - 1], np.minimum(rank, GROUPS - 1)))
        return np.concatenate((inner, [lost, lost])).astype(np.intp)
    total = max(int(counts.sum()), 1)
    middle = (np.cumsum(counts) - counts / 2) / total
    inner = np.minimum((middle * GROUPS).astype(np.intp), GROUPS - 1) + 1
    seen = np.flatnonzero(counts)
    first, last = (int(seen[0]), int(seen[-1])) if seen.size else (1, 1)
    inner[:first], inner[last + 1 :] = 0, GROUPS + 1
    return np.concatenate((inner, [lost, lost])).astype(np.intp)


def _distance(now: NDArray[np.float64], then: NDArray[np.float64], rows: float) -> float:
    """Jensen-Shannon distance (base 2) less chance."""
    middle = (now + then) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.nansum(now * np.log(now / middle)) + np.nansum(then * np.log(then / middle))
    chance = (np.count_nonzero(middle) - 1) / 8 / rows
    return float(np.sqrt(max(terms / 2 - chance, 0.0) / np.log(2)))
