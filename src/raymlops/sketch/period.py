"""Counts of a whole period, chunk by chunk, and how long its columns remember: a reference longer than the rows that are kept.

Everything that is added up is a whole number, so that any partition of the chunks, counted anywhere and added in any order,
gives the same bits. Autocorrelation times come from sums over blocks of rows of each value's *cell*, which is its rank as far as
the borders tell ranks apart: ``b * var(means of b rows) / var(rows)`` for blocks of 64 rows and of each doubling that leaves
40 of them (integrated autocorrelation time by batch means). A rhythm that is shorter than the period shows in them, and one that
is a little longer in that they still grow; the time that a test needs is that of blocks as long as what it averages.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.sketch.histogram import Bins, Sketch
from raymlops.sketch.memory import Memory
from raymlops.sketch.profile import Profile

CHUNK = 16_384
"""Rows counted at once: whoever counts the rows from a multiple of this on counts the same sums."""
_LEAST, _BLOCKS = 64, 40
_LENGTHS = tuple(_LEAST << i for i in range((CHUNK // _LEAST).bit_length() - 1))
"""Block lengths below a chunk; longer ones are sums of chunks."""
_FOLLOWED = 8
MOST_TIED = 64
_RIDGE = 0.05
_STANDS_OUT = 1.1
_GROWS, _FEWEST = 1.6, 4
"""Where a time has grown so much with the last doubling of the blocks, it is taken to grow on, up to so few blocks a period."""


def most_tied(z: NDArray[Any], most: int = MOST_TIED) -> NDArray[np.intp]:
    """Columns of ``z`` ``(n, d)`` that vary; of more than ``most`` those that depend most on the others."""
    varied = np.flatnonzero(z.std(axis=0) > 1e-6)
    if varied.size > most:
        tied = np.nan_to_num(np.abs(np.corrcoef(z[:, varied].T))).sum(axis=0)
        varied = np.sort(varied[np.argsort(-tied, kind="stable")[:most]])
    return varied


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PeriodPart:
    """What was counted of some chunks; parts add up in any order.

    Attributes
    ----------
    sketch : over the plan's borders
    low, high : float32 ``(d,)``, the smallest and largest finite value
    blocks : ``(k,)`` blocks of each length below a chunk; sums, squares : ``(k, s)`` of their sums, by series; cross : ``(k, j, j)``
        of the products of the joint columns' sums
    chunks : ``(c,)`` numbers of the whole chunks; totals : ``(c, s)`` their sums
    """

    sketch: Sketch
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    blocks: NDArray[np.int64]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    cross: NDArray[np.int64]
    chunks: NDArray[np.int64]
    totals: NDArray[np.int64]

    def __add__(self, other: PeriodPart) -> PeriodPart:
        return PeriodPart(
            sketch=self.sketch + other.sketch,
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            blocks=self.blocks + other.blocks,
            sums=self.sums + other.sums,
            squares=self.squares + other.squares,
            cross=self.cross + other.cross,
            chunks=np.concatenate((self.chunks, other.chunks)),
            totals=np.concatenate((self.totals, other.totals)),
        )

    def to_bytes(self) -> bytes:
        """An ``.npz`` without a pickle in it."""
        buffer, counted = io.BytesIO(), self.sketch
        arrays = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "sketch"}
        named = {"bins": np.array(counted.bins), "rows": np.array(counted.rows)}
        counts = {name: getattr(counted, name) for name in ("counts", "missing", "infinite")}
        np.savez(buffer, **named, **counts, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PeriodPart:
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            sketch = Sketch(str(held["bins"]), int(held["rows"]), held["counts"], held["missing"], held["infinite"])
            return cls(sketch=sketch, **{item.name: held[item.name] for item in fields(cls) if item.name != "sketch"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PeriodPlan:
    """How a period is counted: borders from rows spread over it, and what is followed through time.

    Attributes
    ----------
    bins : the score last
    categories : column index -> number of codes
    followed : ``(column, code)`` of the most frequent categories, whose rates are followed
    joint : columns whose combinations are followed
    covariance : ``(j, j)`` of the joint columns' cells among the spread rows
    """

    bins: Bins
    categories: Mapping[int, int]
    followed: tuple[tuple[int, int], ...]
    joint: NDArray[np.intp]
    covariance: NDArray[np.float64]

    @classmethod
    def learn(cls, rows: NDArray[np.float32], columns: Sequence[str], categories: Mapping[int, int]) -> PeriodPlan:
        """From rows ``(n, d)`` that are spread evenly over the period."""
        bins = Bins.learn(rows, columns, categories)
        counted, cells = Sketch.located(bins, rows)
        frequent = {i: np.argsort(-counted.counts[i, 1 : size + 1], kind="stable") for i, size in categories.items()}
        ranks = _ranks(bins, cells).T
        joint = most_tied(ranks)
        covariance = np.cov(ranks[:, joint].T.astype(np.float64)).reshape(len(joint), len(joint))
        return cls(
            bins=bins,
            categories=dict(categories),
            followed=tuple((i, int(code)) for i, codes in sorted(frequent.items()) for code in codes[:_FOLLOWED]),
            joint=joint,
            covariance=covariance,
        )

    def count(self, number: int, rows: NDArray[np.float32]) -> PeriodPart:
        """The rows ``(n, d)`` of chunk ``number``: those of the period from ``number * CHUNK`` on, all of them."""
        sketch, cells = Sketch.located(self.bins, rows)
        finite = np.isfinite(rows)
        codes = [cells[i] == code + 1 for i, code in self.followed]
        series = np.vstack((_ranks(self.bins, cells), cells >= self.bins.width, *codes))
        by_length, total = _block_sums(series)
        size = len(series)
        crosses = []
        for block in by_length:
            some = block[self.joint].astype(np.float64)  # exact: these are whole numbers far below 2**53
            crosses.append((some @ some.T).astype(np.int64))
        whole = len(rows) == CHUNK
        return PeriodPart(
            sketch=sketch,
            low=np.where(finite, rows, np.inf).min(axis=0, initial=np.inf).astype(np.float32),
            high=np.where(finite, rows, -np.inf).max(axis=0, initial=-np.inf).astype(np.float32),
            blocks=np.array([block.shape[1] for block in by_length], dtype=np.int64),
            sums=np.array([block.sum(axis=1) for block in by_length]),
            squares=np.array([(block * block).sum(axis=1) for block in by_length]),
            cross=np.array(crosses),
            chunks=np.array([number] if whole else [], dtype=np.int64),
            totals=total[None, :] if whole else np.zeros((0, size), dtype=np.int64),
        )

    def profile(self, counted: PeriodPart, ordered: bool) -> Profile:
        """The reference of all chunks of a period: its counts over borders that hold its smallest and largest values, and,
        where the rows are in time order, its autocorrelation times."""
        edges, counts = [], np.zeros((len(self.bins.columns), self.bins.width + 2), dtype=np.int64)
        for i, edge in enumerate(self.bins.edges):
            cells = len(edge) + 1
            before = i not in self.categories and bool(counted.low[i] < edge[0])
            after = i not in self.categories and bool(counted.high[i] >= edge[-1])
            first = [np.float64(counted.low[i])] if before else []
            last = [np.nextafter(np.float64(counted.high[i]), np.inf)] if after else []
            edges.append(np.concatenate((first, edge, last)))
            counts[i, before : before + cells] = counted.sketch.counts[i, :cells]
        bins, known = Bins.over(self.bins.columns, edges), counted.sketch
        sketch = Sketch(bins.digest, known.rows, counts[:, : bins.width].copy(), known.missing, known.infinite)
        return Profile(bins, sketch, self._memory(counted) if ordered else None)

    def _memory(self, counted: PeriodPart) -> Memory | None:
        """``None`` of so few rows that two lengths of blocks cannot be told apart."""
        d = len(self.bins.columns)
        totals = counted.totals[np.argsort(counted.chunks)].T
        levels = [
            _Level(length, int(n), total, square, cross)
            for length, n, total, square, cross in zip(
                _LENGTHS, counted.blocks, counted.sums, counted.squares, counted.cross, strict=True
            )
        ]
        length = CHUNK
        while totals.shape[1] >= _BLOCKS:
            levels.append(_Level.of(length, totals, self.joint))
            length, totals = 2 * length, _paired(totals)
        levels = [level for level in levels if level.blocks >= _BLOCKS]
        if len(levels) < 2:
            return None
        variance = self._variances(counted.sketch)
        times = np.array([level.times(variance) for level in levels]).reshape(len(levels), len(variance))
        values = times[:, :d].copy()
        for i in self.categories:
            mine = [2 * d + j for j, (column, _) in enumerate(self.followed) if column == i]
            values[:, i] = times[:, mine].max(axis=1, initial=1.0)
        joint = np.array([[level.joint_time(self.joint, self.covariance)] for level in levels])
        lengths = [level.length for level in levels]
        known = _grown(np.hstack((values, times[:, d : 2 * d], joint)), lengths, counted.sketch.rows // _FEWEST)
        return Memory(
            lengths=lengths[0] << np.arange(len(known), dtype=np.int64),
            times=known[:, :d].copy(),
            missing=known[:, d : 2 * d].copy(),
            joint=known[:, -1].copy(),
        )

    def _variances(self, counted: Sketch) -> NDArray[np.float64]:
        """Of each series over all rows, from the counts."""
        ranks, rows = np.arange(self.bins.width), max(counted.rows, 1)
        lost = (counted.missing + counted.infinite) / rows
        found = []
        for i, counts in enumerate(counted.counts):
            away = ranks - _middle(self.bins, i)
            found.append((counts @ away**2) / rows - ((counts @ away) / rows) ** 2)
        rates = np.array([counted.counts[i, code + 1] / rows for i, code in self.followed])
        return np.concatenate((found, lost * (1 - lost), rates * (1 - rates)))


def counted(parts: Iterable[PeriodPart]) -> PeriodPart:
    """The sum of parts, at least one."""
    iterator = iter(parts)
    found = next(iterator)
    for part in iterator:
        found = found + part
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """Sums of all blocks of one length: how many, and of their sums the sum, the squares, and the joint columns' products."""

    length: int
    blocks: int
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    cross: NDArray[np.int64]

    @classmethod
    def of(cls, length: int, blocks: NDArray[np.int64], joint: NDArray[np.intp]) -> _Level:
        some = blocks[joint].astype(np.float64)
        return cls(
            length, blocks.shape[1], blocks.sum(axis=1), (blocks * blocks).sum(axis=1), (some @ some.T).astype(np.int64)
        )

    def times(self, variance: NDArray[np.float64]) -> NDArray[np.float64]:
        """``length * var(means) / var(rows)`` of each series, at least 1."""
        spread = (self.squares - self.sums.astype(np.float64) ** 2 / self.blocks) / (self.blocks - 1) / self.length
        return np.where(variance > 0, np.maximum(spread / np.where(variance > 0, variance, 1.0), 1.0), 1.0)

    def joint_time(self, joint: NDArray[np.intp], covariance: NDArray[np.float64]) -> float:
        """The same for the linear combination of columns of which it is largest, at least 1.

        Of columns that all remember alike, chance alone makes one combination look longer: the largest of the other
        directions' times comes out ``(1 + sqrt(g))**2`` times their mean, ``g`` columns a block (Marchenko and Pastur 1967).
        One that stands out is put back to where it was (Baik and Silverstein 2006).
        """
        if not joint.size:
            return 1.0
        sums = self.sums[joint].astype(np.float64)
        spread = (self.cross - np.outer(sums, sums) / self.blocks) / (self.blocks - 1) / self.length
        values, vectors = np.linalg.eigh(covariance + _RIDGE * np.diag(np.diag(covariance)))
        white = vectors / np.sqrt(np.maximum(values, 1e-9))
        times = np.linalg.eigvalsh(white.T @ spread @ white)
        usual = max(float(times[:-1].mean()) if joint.size > 1 else 1.0, 1e-9)
        largest, g = float(times[-1]) / usual, joint.size / self.blocks
        if largest <= _STANDS_OUT * (1.0 + np.sqrt(g)) ** 2:
            return max(usual, 1.0)
        middle = largest + 1.0 - g
        return max(usual * (middle + float(np.sqrt(middle * middle - 4.0 * largest))) / 2.0, 1.0)


def _grown(times: NDArray[np.float64], lengths: Sequence[int], longest: int) -> NDArray[np.float64]:
    """Times ``(k, c)`` by block length, carried on to blocks of at most ``longest`` rows: where a column's were still growing with
    the blocks, as those of a rhythm or a trend do that is longer than the blocks, they grow on."""
    growth = times[-1] / times[-2]
    growth = np.where(growth >= _GROWS, np.minimum(growth, 2.0), 1.0)
    rows, length = [*times], 2 * lengths[-1]
    while length <= longest:
        rows.append(rows[-1] * growth)
        length *= 2
    return np.array(rows)


def _middle(bins: Bins, i: int) -> int:
    return (len(bins.edges[i]) + 1) // 2


def _ranks(bins: Bins, cells: NDArray[np.int16]) -> NDArray[np.int64]:
    """Cells ``(d, n)`` counted from each column's middle one, where missing and infinite values are put."""
    middle = np.array([_middle(bins, i) for i in range(len(bins.columns))])[:, None]
    return np.where(cells >= bins.width, 0, cells - middle)


def _block_sums(series: NDArray[np.int64]) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Of ``(s, n)`` the sums over whole blocks of each length, ``(s, blocks)``, and over everything."""
    size, n = series.shape
    blocks = series[:, : n // _LEAST * _LEAST].reshape(size, -1, _LEAST).sum(axis=2)
    found = []
    for _ in _LENGTHS:
        found.append(blocks)
        blocks = _paired(blocks)
    return found, series.sum(axis=1)


def _paired(blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of two neighbours each; a last one without a neighbour is left out."""
    even = blocks.shape[1] // 2 * 2
    return blocks[:, 0:even:2] + blocks[:, 1:even:2]
