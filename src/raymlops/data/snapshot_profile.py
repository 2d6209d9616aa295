"""What a data set's columns look like, from summaries of its partitions that merge to the same bytes in any order.

Counts, sums of squares (Chan, Golub, LeVeque 1979), the k smallest hashes for the number of distinct values (Bar-Yossef et al. 2002),
logarithmic cells for quantiles within half a percent (times: to the day) (DDSketch: Masson, Rim, Lee, VLDB 2019), counts of texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.data.snapshot_print import column_hashes

K = 4096
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
TOP = 10
_ACCURACY = 0.005
_LOG = math.log((1 + _ACCURACY) / (1 - _ACCURACY))
_SMALLEST = 1e-12
_DAY_S = 86400.0
_MAX_TEXTS = 10_000
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """One column in figures.

    Attributes
    ----------
    kind : ``number``, ``boolean``, ``time`` or ``text``
    rows, nulls : NaN counts as null
    distinct : exact up to 4,096, then within a few percent
    minimum, maximum, mean, std, quantiles : of the finite values; times in seconds since 1970; ``std`` divides by n
    top : the most frequent texts with their counts
    """

    name: str
    kind: str
    rows: int
    nulls: int
    distinct: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    quantiles: dict[str, float] = field(default_factory=dict)
    top: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ColumnProfile:
        return cls(**{**data, "top": tuple((text, count) for text, count in data["top"])})


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSketch:
    """What is kept of a column of some rows; ``+`` joins partitions."""

    name: str
    kind: str
    rows: int
    nulls: int
    hashes: npt.NDArray[np.uint64]
    moments: tuple[float, float, float, float, float]
    cells: Counter[int]
    texts: Counter[str]

    @classmethod
    def of(cls, name: str, column: pa.ChunkedArray) -> ColumnSketch:
        array = column.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.array([], array.type)
        null = np.asarray(array.is_null(nan_is_null=True))
        low, _ = column_hashes(name, array)
        kind, numbers = _numbers_of(array)
        values = numbers[~null & np.isfinite(numbers)] if numbers is not None else np.empty(0)
        return cls(
            name=name,
            kind=kind,
            rows=len(array),
            nulls=int(null.sum()),
            hashes=_smallest(low[~null]),
            moments=_moments(values),
            cells=_days(values) if kind == "time" else _cells(values),
            texts=_texts(array) if kind == "text" else Counter(),
        )

    def __add__(self, other: ColumnSketch) -> ColumnSketch:
        return ColumnSketch(
            name=self.name,
            kind=self.kind if self.rows > self.nulls else other.kind,
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            hashes=_smallest(np.concatenate([self.hashes, other.hashes])),
            moments=_joined(self.moments, other.moments),
            cells=self.cells + other.cells,
            texts=_bounded(self.texts + other.texts),
        )

    def profile(self) -> ColumnProfile:
        """The figures."""
        count, mean, squares, lowest, highest = self.moments
        numeric = count > 0
        top = sorted(self.texts.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        return ColumnProfile(
            name=self.name,
            kind=self.kind,
            rows=self.rows,
            nulls=self.nulls,
            distinct=_distinct(self.hashes),
            minimum=lowest if numeric else None,
            maximum=highest if numeric else None,
            mean=_finite(mean) if numeric else None,
            std=_finite(math.sqrt(squares / count)) if numeric else None,
            quantiles=_quantiles(self.cells, self.kind == "time", lowest, highest) if numeric else {},
            top=tuple(top),
        )


def profile(partitions: Iterable[pa.Table | pd.DataFrame]) -> tuple[ColumnProfile, ...]:
    """The columns of all partitions in the order of the first; each partition has the same columns."""
    sketches: dict[str, ColumnSketch] = {}
    for part in partitions:
        table = part if isinstance(part, pa.Table) else pa.Table.from_pandas(part, preserve_index=False)
        for name in table.column_names:
            sketch = ColumnSketch.of(name, table.column(name))
            sketches[name] = sketches[name] + sketch if name in sketches else sketch
    return tuple(sketch.profile() for sketch in sketches.values())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers_of(array: pa.Array) -> tuple[str, npt.NDArray[np.float64] | None]:
    kind = array.type
    if pa.types.is_boolean(kind):
        return "boolean", np.asarray(array.cast(pa.float64()).fill_null(0.0))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).fill_null(0)
        return "time", np.asarray(micros).astype(np.float64) / 1e6
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number", np.asarray(array.cast(pa.float64(), safe=False).fill_null(0.0))
    return "text", None


def _smallest(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The k smallest that differ. Of many rows most are not even looked at twice: hashes are spread evenly."""
    if len(hashes) > 16 * K:
        few = np.unique(hashes[hashes < np.uint64(4 * K / len(hashes) * 2.0**64)])
        if len(few) >= K:
            return few[:K]
    return np.sort(pd.unique(hashes))[:K]


def _distinct(hashes: npt.NDArray[np.uint64]) -> int:
    """``(k - 1) / h_k`` with the k-th smallest hash as a share of all hashes."""
    return len(hashes) if len(hashes) < K else round((K - 1) / (float(hashes[-1]) / 2.0**64))


def _moments(values: npt.NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """Count, mean, sum of squared differences from the mean, minimum, maximum."""
    if not len(values):
        return 0.0, 0.0, 0.0, math.inf, -math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum())
    return float(len(values)), mean, squares, float(values.min()), float(values.max())


def _joined(
    a: tuple[float, float, float, float, float], b: tuple[float, float, float, float, float]
) -> tuple[float, float, float, float, float]:
    count = a[0] + b[0]
    if not count:
        return a
    apart = b[1] - a[1]
    mean = a[1] * (a[0] / count) + b[1] * (b[0] / count)
    return count, mean, a[2] + b[2] + apart * apart * a[0] * b[0] / count, min(a[3], b[3]), max(a[4], b[4])


def _cells(values: npt.NDArray[np.float64]) -> Counter[int]:
    """How many values each logarithmic cell holds: 0 for next to nothing, negative numbers for negative values."""
    size = np.abs(values)
    cell = np.zeros(len(values), dtype=np.int64)
    large = size > _SMALLEST
    cell[large] = np.ceil(np.log(size[large] / _SMALLEST) / _LOG).astype(np.int64) * np.sign(values[large]).astype(
        np.int64
    )
    return _counted(cell)


def _counted(cell: npt.NDArray[np.int64]) -> Counter[int]:
    if not len(cell):
        return Counter()
    lowest = int(cell.min())
    if int(cell.max()) - lowest < 1_000_000:
        counts = np.bincount(cell - lowest)
        found = np.flatnonzero(counts)
        return Counter(dict(zip((found + lowest).tolist(), counts[found].tolist(), strict=True)))
    found, counts = np.unique(cell, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _days(values: npt.NDArray[np.float64]) -> Counter[int]:
    """Of times: how many values each day has."""
    return _counted(np.floor(values / _DAY_S).astype(np.int64))


def _quantiles(cells: Counter[int], days: bool, lowest: float, highest: float) -> dict[str, float]:
    keys = sorted(cells)
    below = np.cumsum([cells[key] for key in keys])
    made = {}
    for share in QUANTILES:
        key = keys[int(np.searchsorted(below, share * (below[-1] - 1), side="right"))]
        size = math.exp(min(math.log(_SMALLEST) + abs(key) * _LOG, 709.0)) * (1 - _ACCURACY) if key else 0.0
        value = key * _DAY_S if days else math.copysign(size, key)
        made[f"{share:g}"] = min(max(value, lowest), highest)
    return made


def _texts(array: pa.Array) -> Counter[str]:
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        array = pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
    coded = pc.dictionary_encode(array.drop_null())
    counts = np.bincount(np.asarray(coded.indices), minlength=len(coded.dictionary))
    if len(counts) > _MAX_TEXTS:
        counts = np.maximum(counts - np.sort(counts)[-_MAX_TEXTS - 1], 0)
    kept = np.flatnonzero(counts)
    texts: Counter[str] = Counter()
    for text, count in zip(coded.dictionary.take(pa.array(kept)).to_pylist(), counts[kept].tolist(), strict=True):
        texts[text[:_MAX_TEXT]] += count
    return texts


def _bounded(texts: Counter[str]) -> Counter[str]:
    """At most :data:`_MAX_TEXTS`: what is dropped is as rare as the rarest kept (Misra and Gries 1982)."""
    if len(texts) <= _MAX_TEXTS:
        return texts
    cut = sorted(texts.values(), reverse=True)[_MAX_TEXTS]
    return Counter({text: count - cut for text, count in texts.items() if count > cut})
