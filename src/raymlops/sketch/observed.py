"""What was seen of one version's traffic: every row counted, few of them kept. Observations add up in any order.

The sample is by threshold: each row has a key, and the sample holds exactly the rows whose key lies below ``cut``. Two samples
are merged by the lower cut, so gateways with much and with little traffic weigh by what they served. Keys are multiples of
the golden ratio modulo 1 (Fibonacci hashing; Knuth, The Art of Computer Programming 3, 6.4): rows below any cut lie evenly
spread over the traffic, at no more than three different distances (the three-gap theorem; Sós, 1958), which is nearer to the
whole than a random draw. A random start makes each row as likely as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.errors import DataError
from raymlops.sketch.histogram import Bins, Sketch, pack_array, unpack_array

WHOLE = 1 << 64
"""The cut of a sample that holds every row."""
MOST_FAR = 32
"""Rows outside the reference's range that are kept whatever the sample holds, furthest first."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOOKED_AT = 8 * MOST_FAR


def keys_of(first: int, rows: int, start: int = 0) -> NDArray[np.uint64]:
    """Keys ``(rows,)`` of the rows numbered from ``first``; ``start`` below 2^64 tells gateways apart."""
    numbers = np.arange(rows, dtype=np.uint64) + np.uint64(first % WHOLE)
    keys: NDArray[np.uint64] = numbers * _GOLDEN + np.uint64(start)
    return keys


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows one by one, in the order they came.

    Attributes
    ----------
    x : ``(k, n_columns)`` float32, the score last, NaN = missing
    at : ``(k,)`` when each was served, wall seconds
    keys : ``(k,)`` uint64
    ids : the request of each, ``""`` where it is not known
    """

    x: NDArray[np.float32]
    at: NDArray[np.float64]
    keys: NDArray[np.uint64]
    ids: tuple[str, ...]

    @classmethod
    def none(cls, columns: int) -> Rows:
        return cls(np.zeros((0, columns), dtype=np.float32), np.zeros(0), np.zeros(0, dtype=np.uint64), ())

    def __len__(self) -> int:
        return len(self.x)

    def __add__(self, other: Rows) -> Rows:
        return Rows(
            np.concatenate((self.x, other.x)),
            np.concatenate((self.at, other.at)),
            np.concatenate((self.keys, other.keys)),
            self.ids + other.ids,
        )

    def take(self, index: NDArray[np.intp]) -> Rows:
        return Rows(self.x[index], self.at[index], self.keys[index], tuple(self.ids[i] for i in index))

    def without(self, others: Rows) -> Rows:
        """These rows, but for those that ``others`` holds too."""
        return self.take(np.flatnonzero(~np.isin(self.keys, others.keys)))

    def plain(self, array: Callable[[NDArray[Any]], Any]) -> dict[str, Any]:
        return {"x": array(self.x), "at": array(self.at), "keys": array(self.keys), "ids": list(self.ids)}

    @classmethod
    def from_plain(cls, body: Mapping[str, Any], array: Callable[[Any], NDArray[Any]]) -> Rows:
        return cls(array(body["x"]), array(body["at"]), array(body["keys"]), tuple(body["ids"]))


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Some traffic of one version.

    Attributes
    ----------
    sketch : of all its rows
    sample : the rows whose key is below ``cut``, in the order they came
    cut : of the keys; :data:`WHOLE` when the sample holds every row
    far, far_by : rows outside the reference's range, at most :data:`MOST_FAR`, furthest first, and how far; they may be in
        the sample too
    from_at, to_at : when the first and the last row were served, wall seconds; 0 without rows
    """

    sketch: Sketch
    sample: Rows
    cut: int
    far: Rows
    far_by: NDArray[np.float64]
    from_at: float
    to_at: float

    @classmethod
    def empty(cls, bins: Bins) -> Observed:
        none = Rows.none(len(bins.columns))
        return cls(Sketch.empty(bins), none, WHOLE, none, np.zeros(0), 0.0, 0.0)

    @classmethod
    def of(
        cls,
        bins: Bins,
        x: NDArray[np.floating[Any]],
        at: ArrayLike,
        keys: NDArray[np.uint64],
        ids: Callable[[NDArray[np.intp]], Sequence[str]] | Sequence[str] = (),
        *,
        limit: int | None = None,
    ) -> Observed:
        """Rows ``x`` ``(n, n_columns)`` with the score last, served ``at``, of which ``limit`` are kept (``None``: all).

        ``ids`` holds the request of each row, or gives those of the rows it is asked for: the ones that are kept.

        Raises
        ------
        DataError : another number of columns than the bins have
        """
        rows = np.asarray(x, dtype=np.float32)
        sketch, cells = Sketch.located(bins, rows)
        if not len(rows):
            return cls.empty(bins)
        times = np.broadcast_to(np.asarray(at, dtype=np.float64), len(rows))

        def some(index: NDArray[np.intp]) -> Rows:
            if callable(ids):
                names = tuple(ids(index))
            else:
                names = tuple(ids[i] for i in index) if len(ids) else ("",) * len(index)
            return Rows(rows[index], times[index], keys[index], names)

        cut, kept = _below(keys, limit)
        far, by = _furthest(bins, rows, cells, keys)
        return cls(sketch, some(kept), cut, some(far), by, float(times.min()), float(times.max()))

    @property
    def rows(self) -> int:
        return self.sketch.rows

    @property
    def whole(self) -> bool:
        """The sample holds every row."""
        return len(self.sample) == self.rows

    def __add__(self, other: Observed) -> Observed:
        sketch = self.sketch + other.sketch
        if not self.rows or not other.rows:
            return self if not other.rows else other
        cut, sample = min(self.cut, other.cut), self.sample + other.sample
        if cut < WHOLE:
            sample = sample.take(np.flatnonzero(sample.keys < np.uint64(cut)))
        far, by = self.far + other.far, np.concatenate((self.far_by, other.far_by))
        first = np.lexsort((far.keys, -by))[:MOST_FAR]
        from_at, to_at = min(self.from_at, other.from_at), max(self.to_at, other.to_at)
        return Observed(sketch, sample, cut, far.take(first), by[first], from_at, to_at)

    def limit(self, rows: int) -> Observed:
        """The same with at most ``rows`` rows in the sample."""
        if len(self.sample) <= rows:
            return self
        cut, kept = _below(self.sample.keys, rows)
        return Observed(self.sketch, self.sample.take(kept), cut, self.far, self.far_by, self.from_at, self.to_at)

    def split(self, bins: Bins, rows: int) -> tuple[Observed, Observed]:
        """The first ``rows`` rows and the others; needs a sample that is whole.

        Raises
        ------
        DataError : the sample is not whole, so nobody knows which row counted in which cell
        """
        if not self.whole:
            raise DataError(f"Of {self.rows} rows {len(self.sample)} are kept: they cannot be parted.")
        index = np.arange(self.rows)
        first, others = self.sample.take(index[:rows]), self.sample.take(index[rows:])
        head = Sketch.of(bins, first.x)
        return self._part(head, first), self._part(self.sketch - head, others)

    def _part(self, sketch: Sketch, sample: Rows) -> Observed:
        mine = np.flatnonzero(np.isin(self.far.keys, sample.keys))
        at = sample.at if len(sample) else np.zeros(1)
        far, by = self.far.take(mine), self.far_by[mine]
        return Observed(sketch, sample, WHOLE, far, by, float(at.min()), float(at.max()))

    # --- across processes ---------------------------------------------------------------------------

    def to_message(self) -> dict[str, Any]:
        """Plain arrays, for an actor call: survives processes whose versions of this class differ."""
        return self._plain(lambda array: array)

    @classmethod
    def from_message(cls, body: Mapping[str, Any]) -> Observed:
        return cls._from_plain(body, np.asarray)

    def to_dict(self) -> dict[str, Any]:
        """JSON, bit for bit."""
        return self._plain(pack_array)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Observed:
        return cls._from_plain(body, unpack_array)

    def _plain(self, array: Callable[[NDArray[Any]], Any]) -> dict[str, Any]:
        counts = {name: array(getattr(self.sketch, name)) for name in ("counts", "missing", "infinite")}
        return {
            "bins": self.sketch.bins,
            "rows": self.rows,
            **counts,
            "cut": self.cut,
            "sample": self.sample.plain(array),
            "far": self.far.plain(array),
            "far_by": array(self.far_by),
            "from_at": self.from_at,
            "to_at": self.to_at,
        }

    @classmethod
    def _from_plain(cls, body: Mapping[str, Any], array: Callable[[Any], NDArray[Any]]) -> Observed:
        counts = [array(body[name]) for name in ("counts", "missing", "infinite")]
        return cls(
            Sketch(body["bins"], body["rows"], *counts),
            Rows.from_plain(body["sample"], array),
            body["cut"],
            Rows.from_plain(body["far"], array),
            array(body["far_by"]),
            body["from_at"],
            body["to_at"],
        )


def _below(keys: NDArray[np.uint64], limit: int | None) -> tuple[int, NDArray[np.intp]]:
    """A cut with at most ``limit`` keys below it, and where those are."""
    if limit is None or len(keys) <= limit:
        return WHOLE, np.arange(len(keys))
    cut = np.partition(keys, limit)[limit]
    return int(cut), np.flatnonzero(keys < cut)


def _furthest(
    bins: Bins, x: NDArray[np.float32], cells: NDArray[np.int16], keys: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows furthest outside the reference's range, and how far: only those that the cells show to lie outside are looked at.

    Each column outside counts 1 and the logarithm of its distance in widths of the range, at most 10, which is what an
    infinite value and an unseen category count.
    """
    outside = bins.outside(cells)
    columns = outside.sum(axis=0)
    found = np.flatnonzero(columns)
    if len(found) > _LOOKED_AT:
        found = found[np.lexsort((keys[found], -columns[found]))[:_LOOKED_AT]]
    values = x[found].astype(np.float64)
    by = np.zeros(len(found))
    for i in np.flatnonzero(outside[:, found].any(axis=1)):
        low, high = bins.edges[i][0], bins.edges[i][-1]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            beyond = np.maximum(low - values[:, i], values[:, i] - high) / (high - low)
            reach = 1.0 + np.log1p(np.where(np.isnan(beyond), np.inf, np.maximum(beyond, 0.0)))
        by += np.where(outside[i, found], np.minimum(reach, 10.0), 0.0)
    first = np.lexsort((keys[found], -by))[:MOST_FAR]
    return found[first], by[first]
