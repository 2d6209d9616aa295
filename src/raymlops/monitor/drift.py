"""Which columns moved: one-shot tests of a window against the frozen reference, honest about autocorrelation.

Numeric columns: two-sample Kolmogorov-Smirnov (Stephens' correction, JRSS-B 1970, for the p-value): the exact statistic,
from the reference sorted once, when every row of the window is there; else from counts over the reference's cells, which is
exact at the cells' borders and never larger. Category columns: chi-square with rare and unseen codes pooled. Every column: the rates of
missing and infinite values, and of values outside the reference's range or its categories. Sample sizes are divided by
each column's autocorrelation time in the reference, without which such tests flag every window of an ordered stream: the window's by
that of a mean over so many rows, the reference's by the longest there is. One
budget a window, Bonferroni over all tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.monitor.evidence import MIN_EFFECTIVE, Detector, Evidence, Window
from raymlops.monitor.quality import autocorrelation_time
from raymlops.monitor.smirnov import (
    binned_distance,
    exact_distance,
    order_keys,
    p_value,
    p_values,
    sort_keys,
    sort_rows,
    sorted_distance,
)
from raymlops.sketch.histogram import Bins, Sketch
from raymlops.sketch.memory import Memory
from raymlops.sketch.profile import Profile

__all__ = ["MIN_EFFECTIVE", "RATES", "ColumnTests", "Detector", "Evidence", "Window"]

RATES = ("missing", "infinite", "range", "unseen")
"""Names of the evidence that tells of broken data rather than of a changed world."""
_VALUES_SHARE, _RATE_SHARE = 2 / 3, 1 / 9
Times = NDArray[np.float64]
_MERGED_WINDOWS = 6
_POOL_BELOW = 5.0


class ColumnTests:
    """The one-shot detector: each window stands alone, but for rows of earlier ones where it is too short.

    Parameters
    ----------
    x : reference rows ``(n_rows, n_columns)``, NaN = missing, in time order when ``ordered``
    columns : their names
    categories : column index -> number of category codes
    ordered : whether row order is time order; if not, rows are assumed independent
    share : of a window's ``alpha`` that these tests may spend
    profile : bins and counts frozen with the version; without it they are learned from ``x``, which gives the same. One that counts
        more rows than ``x`` is of a whole period: sizes and autocorrelation times are then the period's, and the
        Kolmogorov-Smirnov statistic is taken at the cells' borders

    Raises
    ------
    DataError : fewer than 100 reference rows, or a shape that does not fit the names
    """

    def __init__(
        self,
        x: NDArray[np.floating[Any]],
        columns: Sequence[str],
        *,
        categories: Mapping[int, int] | None = None,
        ordered: bool = True,
        share: float = 1.0,
        profile: Profile | None = None,
    ) -> None:
        self._share = share
        self._earlier: list[Sketch] = []
        self.categories = dict(categories or {})
        x = np.asarray(x, dtype=np.float32)  # one precision on both sides, or equal values would not tie
        self.bins = Bins.learn(x, columns, self.categories) if profile is None else profile.bins
        if len(x) < 100:
            raise DataError(f"The reference holds {len(x)} rows; watching for drift needs at least 100.")
        self.reference = Sketch.of(self.bins, x) if profile is None else profile.sketch
        self._known = self.reference.counts.sum(axis=1)
        self._whole = self.reference.rows == len(x)
        self._sorted = [sort_keys(order_keys(column[np.isfinite(column)])) for column in x.T] if self._whole else []
        kept = None if profile is None or not ordered else profile.memory
        self.memory = _memory_of(x, self.categories, ordered) if kept is None else kept
        self.times = self.memory.longest
        self._missing_times = self.memory.of_rate(np.inf)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.bins.columns

    @property
    def name(self) -> str:
        return "columns"

    def update(self, window: Window) -> tuple[Evidence, ...]:
        """Four pieces of evidence a column: its values, missing and infinite rate, and what lies outside the reference.

        Where a window holds too few independent values, those of up to five windows before it are joined.
        """
        found = self._judge(window, window.alpha * self._share, self._earlier)
        self._earlier = [*self._earlier, window.sketch][-(_MERGED_WINDOWS - 1) :]
        return found

    def detect(
        self, x: NDArray[np.floating[Any]], alpha: float, earlier: Sequence[Sketch] = ()
    ) -> tuple[Evidence, ...]:
        """The same for rows that belong to no stream, as a pure function; nothing is remembered.

        Parameters
        ----------
        x : the window's rows ``(n_rows, n_columns)``
        alpha : probability that a window without change is flagged, shared by all its tests
        earlier : sketches of the windows before, latest last; merged in where this one holds too few independent rows
        """
        return self._judge(Window.of(self.bins, x, alpha), alpha, earlier)

    def kolmogorov_smirnov(
        self, x: NDArray[np.floating[Any]], *, binned: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Statistic and p-value of every column, each ``(n_columns,)``, without the rest of :meth:`detect`.

        Parameters
        ----------
        x : rows ``(n_rows, n_columns)``; values that are not finite are left out, a column without any has p 0
        binned : from the counts over the reference's cells, in constant time a value; the statistic is then a lower
            bound of the exact one, within the share of one cell
        """
        rows = np.asarray(x, dtype=np.float32)
        found = self._binned(rows) if binned or not self._whole else self._exact(rows)
        statistics, sizes = np.array(found).T
        judged = (sizes > 0) & (self._known > 0)
        p = np.zeros(len(self.columns))
        n = sizes[judged] / self.memory.of_mean(len(rows))[judged]
        m = self._known[judged] / self.times[judged]
        p[judged] = p_values(statistics[judged], n, m)
        return np.where(judged, statistics, 1.0), p

    def _binned(self, rows: NDArray[np.float32]) -> list[tuple[float, float]]:
        """Statistic and number of finite values of each column."""
        sketch = Sketch.of(self.bins, rows)
        sizes = sketch.counts.sum(axis=1)
        return [
            (binned_distance(counts, then) if size and known else 1.0, size)
            for counts, then, size, known in zip(
                sketch.counts.astype(float), self.reference.counts.astype(float), sizes, self._known, strict=True
            )
        ]

    def _exact(self, rows: NDArray[np.float32]) -> list[tuple[float, float]]:
        finite = np.isfinite(rows)
        columns = np.ascontiguousarray(rows.T)
        if len(rows) and finite.all():  # then the columns are turned to keys, and short ones sorted, all at once
            keys = sort_rows(order_keys(columns))
            return [
                (sorted_distance(known, mine) if len(known) else 1.0, len(rows))
                for known, mine in zip(self._sorted, keys, strict=True)
            ]
        kept = [column[held] for column, held in zip(columns, finite.T, strict=True)]
        return [
            (exact_distance(known, order_keys(mine)) if len(known) and len(mine) else 1.0, len(mine))
            for known, mine in zip(self._sorted, kept, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"earlier": [sketch.to_dict() for sketch in self._earlier]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._earlier = [Sketch.from_dict(item) for item in state["earlier"]]

    def _judge(self, window: Window, alpha: float, earlier: Sequence[Sketch]) -> tuple[Evidence, ...]:
        each = alpha / max(len(self.columns), 1)
        columns = np.ascontiguousarray(window.x.T)
        # What is joined, one window more each time, with the times of so many rows.
        joined = [window.sketch]
        for before in reversed(earlier):
            joined.append(joined[-1] + before)
        merged = [(sketch, self.memory.of_mean(sketch.rows)) for sketch in joined]
        rates = self.memory.of_rate(window.rows)
        found = []
        for i, column in enumerate(columns):
            shown = column if window.whole and self._whole else None
            found += [
                self._values(i, shown, merged, each * _VALUES_SHARE),
                *self._rates(i, window.sketch, merged[0][1][i], rates[i], each * _RATE_SHARE),
            ]
        return tuple(found)

    def _values(
        self, i: int, column: NDArray[np.float32] | None, merged: Sequence[tuple[Sketch, Times]], limit: float
    ) -> Evidence:
        """``merged`` is the window, and joined with those before it as far as may be needed."""
        window = merged[0][0]
        used, times = next(
            ((sketch, times) for sketch, times in merged if sketch.counts[i].sum() / times[i] >= MIN_EFFECTIVE),
            merged[-1],
        )
        n, m = float(used.counts[i].sum()) / times[i], float(self._known[i]) / self.times[i]
        name: Literal["ks", "chi2"] = "chi2" if i in self.categories else "ks"
        blind = window.rows > 0 and window.counts[i].sum() == 0 and m > 0
        if not blind and (n < MIN_EFFECTIVE or m == 0):
            # Nothing was finite in the reference either, or too little came: the missing rate still speaks.
            return Evidence.insufficient(name, self.columns[i], limit, n)
        counts, reference = used.counts[i].astype(float), self.reference.counts[i].astype(float)
        if blind:  # every value is missing: the strongest change there is, not an absence of evidence
            return self._evidence(name, i, 1.0, 0.0, limit, 1.0, 0.0)
        distance = _distance(counts, reference, n, m, join=name == "ks")
        if name == "chi2":
            statistic, p = _chi2(counts / times[i], reference / self.times[i])
            return self._evidence(name, i, statistic, p, limit, distance, n)
        if used is not window or column is None:
            statistic = binned_distance(counts, reference)
        else:
            lost = window.missing[i] + window.infinite[i]
            statistic = exact_distance(self._sorted[i], order_keys(column[np.isfinite(column)] if lost else column))
        return self._evidence(name, i, statistic, p_value(statistic, n, m), limit, distance, n)

    def _rates(self, i: int, window: Sketch, time: float, missing_time: float, limit: float) -> tuple[Evidence, ...]:
        last, longest = len(self.bins.edges[i]), float(self.times[i])
        now, then = window.counts[i], self.reference.counts[i]
        below, above = (int(now[0]), int(then[0])), (int(now[last]), int(then[last]))
        gone = (int(window.missing[i]), int(self.reference.missing[i]))
        infinite = (int(window.infinite[i]), int(self.reference.infinite[i]))
        lost = missing_time, float(self._missing_times[i])
        if i in self.categories:
            unseen = below[0] + above[0], below[1] + above[1]
            outside = self._rate("unseen", i, window.rows, (time, longest), limit, unseen)
        else:
            outside = self._rate("range", i, window.rows, (time, longest), limit, below, above)
        return (
            self._rate("missing", i, window.rows, lost, limit, gone),
            self._rate("infinite", i, window.rows, lost, limit, infinite),
            outside,
        )

    def _rate(
        self, name: str, i: int, rows: int, times: tuple[float, float], limit: float, *pairs: tuple[int, int]
    ) -> Evidence:
        """Rates now and then of one or two kinds of rows, Bonferroni over them; pairs count rows now and then, and ``times``
        are those of a mean over the window and over the reference."""
        if rows == 0:
            return Evidence.insufficient(name, self.columns[i], limit)
        own, known = times
        n, m = rows / own, self.reference.rows / known
        p = min(1.0, len(pairs) * min(_rate_p(now / own, n, then / known, m) for now, then in pairs))
        now, then = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        difference = now / rows - then / self.reference.rows
        pooled = (now / own + then / known) / (n + m)
        chance = float(np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m)))
        return self._evidence(name, i, difference, p, limit, max(abs(difference) - chance, 0.0), n)

    def _evidence(
        self, name: str, i: int, statistic: float, p: float, limit: float, distance: float, effective: float
    ) -> Evidence:
        return Evidence(
            name=name,
            column=self.columns[i],
            statistic=float(statistic),
            p_value=float(p),
            limit=limit,
            drifted=bool(p <= limit),
            distance=float(distance),
            effective_rows=float(effective),
        )


def _memory_of(x: NDArray[np.float32], categories: Mapping[int, int], ordered: bool) -> Memory:
    """What rows that are all there tell of themselves: one time a column, however many rows are averaged, and none of
    columns together."""
    times = [_column_time(column, i in categories) if ordered else 1.0 for i, column in enumerate(x.T)]
    missing = [autocorrelation_time(~np.isfinite(column) * 1.0) if ordered else 1.0 for column in x.T]
    return Memory(
        lengths=np.array([1]),
        times=np.array([times]),
        missing=np.array([missing]),
        joint=np.ones(1),
    )


def _column_time(column: NDArray[np.floating[Any]], categorical: bool) -> float:
    """Autocorrelation time of a column: of its ranks, or the largest over its eight most frequent categories."""
    finite = column[np.isfinite(column)]
    if categorical:
        codes, counts = np.unique(finite, return_counts=True)
        frequent = codes[np.argsort(-counts, kind="stable")[:8]]
        return max((autocorrelation_time((finite == code) * 1.0) for code in frequent), default=1.0)
    return autocorrelation_time(np.searchsorted(np.sort(finite), finite).astype(np.float64))


def _chi2(counts: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Homogeneity chi-square on counts of effective rows; cells that expect fewer than 5 are pooled into one."""
    from scipy.special import chdtrc

    table = np.vstack((counts, reference))
    expected = table.sum(axis=0) * table[0].sum() / table.sum()
    rare = expected < _POOL_BELOW
    table = np.column_stack((table[:, ~rare], table[:, rare].sum(axis=1)))
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 0.0, 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return statistic, float(chdtrc(table.shape[1] - 1, statistic))


def _rate_p(now: float, n: float, then: float, m: float) -> float:
    """Two-sided conditional test that two rates are equal: given the total, the window's share is binomial."""
    from scipy.special import betainc

    total, share = now + then, n / (n + m)
    if total <= 0:
        return 1.0
    at_least = float(betainc(now, total - now + 1, share)) if now > 0 else 1.0
    at_most = float(betainc(total - now, now + 1, 1 - share)) if then > 0 else 1.0
    return min(1.0, 2 * min(at_least, at_most))


def _distance(counts: NDArray[np.float64], reference: NDArray[np.float64], n: float, m: float, *, join: bool) -> float:
    """Jensen-Shannon distance, base 2, with the divergence that chance alone gives taken off first.

    With ``join``, neighbouring cells are joined until each expects five independent rows. Chance:
    ``(cells - 1) / 8 * (1/n + 1/m)`` nats, from the chi-square limit of the divergence.
    """
    both = np.vstack((counts / counts.sum(), reference / reference.sum()))
    if join:
        groups = int(np.clip(n / 5.0, 4, both.shape[1]))
        cumulative = np.cumsum(both[1]) - both[1] / 2
        group = np.minimum((cumulative * groups).astype(int), groups - 1)
        both = np.vstack([np.bincount(group, weights=row, minlength=groups) for row in both])
    p, q = both
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.nansum(p * np.log(p / middle)) + np.nansum(q * np.log(q / middle))
    chance = (np.count_nonzero(middle) - 1) / 8 * (1 / n + 1 / m)
    return float(np.sqrt(max(terms / 2 - chance, 0.0) / np.log(2)))
