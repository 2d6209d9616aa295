"""Mergeable histograms over the reference's own quantiles: windows, replicas and hours are sums."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.sketch.cells import CellGrid

CELLS = 64
"""Quantile cells of a numeric column, not counting the one below and the one above the reference's range."""
_CHUNK = 16_384
"""Rows turned to columns at once: small enough for a cache, large enough that calls cost nothing."""


def pack_array(array: NDArray[Any]) -> dict[str, Any]:
    """An array as JSON, bit for bit (little-endian, zlib, base64)."""
    plain = np.ascontiguousarray(array)
    data = base64.b64encode(zlib.compress(plain.tobytes(), 1)).decode("ascii")
    return {"dtype": plain.dtype.str, "shape": list(plain.shape), "data": data}


def unpack_array(body: Mapping[str, Any]) -> NDArray[Any]:
    """The array that :func:`pack_array` was given."""
    raw = zlib.decompress(base64.b64decode(body["data"]))
    array: NDArray[Any] = np.frombuffer(raw, dtype=np.dtype(body["dtype"]))
    return array.reshape(body["shape"]).copy()


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Where each column's cells begin; frozen with the model version, never learned from live traffic.

    Attributes
    ----------
    columns : names, one a column of the matrix
    edges : per column the increasing cell borders; a value's cell is how many borders are <= it. The first cell is
        below the reference's range and the last above it (categories: codes the reference's contract does not have)
    digest : what two sketches must share to be added
    grids : the same borders, ready to find cells in constant time
    """

    columns: tuple[str, ...]
    edges: tuple[NDArray[np.float64], ...]
    digest: str
    grids: tuple[CellGrid, ...]

    @classmethod
    def learn(
        cls, x: NDArray[np.floating[Any]], columns: Sequence[str], categories: Mapping[int, int] | None = None
    ) -> Bins:
        """Bins from reference rows ``x`` of shape ``(n_rows, n_columns)``; not-finite values are left out.

        ``categories`` gives, for each column of category codes, how many codes there are. A column with no finite
        value in the reference has one cell, ``[0, inf)`` above and the rest below.

        Raises
        ------
        DataError : ``x`` is not two-dimensional with one column a name
        """
        if x.ndim != 2 or x.shape[1] != len(columns):
            raise DataError(f"The reference has shape {x.shape}, but {len(columns)} columns are named.")
        kinds = categories or {}
        edges = tuple(
            np.arange(kinds[i] + 1, dtype=np.float64) - 0.5 if i in kinds else _quantile_edges(x[:, i])
            for i in range(len(columns))
        )
        return cls.over(columns, edges)

    @classmethod
    def over(cls, columns: Sequence[str], edges: Sequence[NDArray[np.float64]]) -> Bins:
        """Bins with these borders, one array a column."""
        content = hashlib.sha256(repr(tuple(columns)).encode())
        for edge in edges:
            content.update(len(edge).to_bytes(4, "little") + edge.tobytes())
        return cls(tuple(columns), tuple(edges), content.hexdigest(), tuple(CellGrid.build(edge) for edge in edges))

    @property
    def width(self) -> int:
        """Cells of the widest column."""
        return max((len(edge) + 1 for edge in self.edges), default=1)

    def outside(self, cells: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Of cells ``(n_columns, n_rows)`` those that the reference has not: below, above, unseen or infinite."""
        last = np.array([len(edge) for edge in self.edges], dtype=np.int16)[:, None]
        return (cells == 0) | (cells == last) | (cells == self.width + 1)

    def locate(self, x: NDArray[np.floating[Any]]) -> NDArray[np.int16]:
        """The cell of every value of ``x`` ``(n_rows, n_columns)``, as ``(n_columns, n_rows)``.

        A missing value has cell ``width`` and an infinite one ``width + 1``.

        Raises
        ------
        DataError : another number of columns than the bins have
        """
        found = np.empty((len(self.columns), len(x)), dtype=np.int16)
        for start, i, cells in self._found(x):
            found[i, start : start + _CHUNK] = cells
        return found

    def _found(self, x: NDArray[np.floating[Any]]) -> Iterator[tuple[int, int, NDArray[np.intp]]]:
        """First row, column and cells of each run of rows that fits a cache."""
        self._check(x)
        for start in range(0, len(x), _CHUNK):
            columns = np.ascontiguousarray(x[start : start + _CHUNK].T)
            for i, column in enumerate(columns):
                yield start, i, self._cells(i, column)

    def _cells(self, i: int, column: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        finite = np.isfinite(column)
        if finite.all():
            return self.grids[i].locate(column)
        cells = np.where(np.isnan(column), self.width, self.width + 1)
        cells[finite] = self.grids[i].locate(column[finite])
        return cells

    def _check(self, x: NDArray[np.floating[Any]]) -> None:
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise DataError(f"Rows of shape {x.shape} do not fit bins of {len(self.columns)} columns.")


def _quantile_edges(column: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    values = np.sort(column[np.isfinite(column)].astype(np.float64))
    if values.size == 0:
        return np.array([0.0])
    inner = values[(np.arange(1, CELLS) * values.size) // CELLS]
    # The last border lies just above the maximum, so that a constant column still sees a rise.
    edges: NDArray[np.float64] = np.unique(np.concatenate(([values[0]], inner, [np.nextafter(values[-1], np.inf)])))
    return edges


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Counts of some rows: addition is associative and commutative, so the order of merging does not matter.

    Attributes
    ----------
    bins : digest of the :class:`Bins` that made it
    rows : rows counted
    counts : int64 ``(n_columns, width)``, finite values per cell
    missing : int64 ``(n_columns,)``, NaN; infinite : int64 ``(n_columns,)``
    """

    bins: str
    rows: int
    counts: NDArray[np.int64]
    missing: NDArray[np.int64]
    infinite: NDArray[np.int64]

    @classmethod
    def empty(cls, bins: Bins) -> Sketch:
        """A sketch of no rows: the neutral element of addition."""
        size = len(bins.columns)
        zeros = np.zeros(size, dtype=np.int64)
        return cls(bins.digest, 0, np.zeros((size, bins.width), dtype=np.int64), zeros, zeros.copy())

    @classmethod
    def of(cls, bins: Bins, x: NDArray[np.floating[Any]]) -> Sketch:
        """Count rows ``x`` of shape ``(n_rows, n_columns)``.

        Raises
        ------
        DataError : another number of columns than the bins have; columns are never cut off in silence
        """
        counts = np.zeros((len(bins.columns), bins.width + 2), dtype=np.int64)
        for _, i, cells in bins._found(x):
            counts[i] += np.bincount(cells, minlength=bins.width + 2)
        return cls._from_counts(bins, len(x), counts)

    @classmethod
    def located(cls, bins: Bins, x: NDArray[np.floating[Any]]) -> tuple[Sketch, NDArray[np.int16]]:
        """As :meth:`of` and :meth:`Bins.locate` at once, which looks for each cell only once."""
        counts = np.zeros((len(bins.columns), bins.width + 2), dtype=np.int64)
        found = np.empty((len(bins.columns), len(x)), dtype=np.int16)
        for start, i, cells in bins._found(x):
            found[i, start : start + _CHUNK] = cells
            counts[i] += np.bincount(cells, minlength=bins.width + 2)
        return cls._from_counts(bins, len(x), counts), found

    @classmethod
    def _from_counts(cls, bins: Bins, rows: int, counts: NDArray[np.int64]) -> Sketch:
        width = bins.width
        return cls(bins.digest, rows, counts[:, :width].copy(), counts[:, width].copy(), counts[:, width + 1].copy())

    def __add__(self, other: Sketch) -> Sketch:
        if self.bins != other.bins:
            raise DataError(
                "Two sketches over different bins cannot be added: they come from different model versions."
            )
        return Sketch(
            self.bins,
            self.rows + other.rows,
            self.counts + other.counts,
            self.missing + other.missing,
            self.infinite + other.infinite,
        )

    def __sub__(self, part: Sketch) -> Sketch:
        """What is left when the rows of ``part``, which are among these, are taken out."""
        taken = Sketch(part.bins, -part.rows, -part.counts, -part.missing, -part.infinite)
        return self + taken

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sketch) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.bins, self.rows))

    def to_dict(self) -> dict[str, Any]:
        arrays = {name: pack_array(getattr(self, name)) for name in ("counts", "missing", "infinite")}
        return {"bins": self.bins, "rows": self.rows, **arrays}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Sketch:
        arrays = [unpack_array(body[name]) for name in ("counts", "missing", "infinite")]
        return cls(body["bins"], body["rows"], *arrays)
