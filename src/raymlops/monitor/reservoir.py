"""A bounded uniform sample of rows, and sketches, from partitions: merged in any grouping, each partition read once.

Li's Algorithm L (ACM TOMS 20(4), 1994) with the keys kept: each row has a uniform key and the smallest keys stay. So two
samples merge by their keys, and the result is a uniform sample of all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.monitor.sketch import Bins, Sketch

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """At most ``size`` rows of ``seen``, each with the key that let it stay.

    Attributes
    ----------
    rows : ``(k, d)`` float32, by increasing key; keys : ``(k,)``; seen : rows it was drawn from
    """

    size: int
    rows: NDArray[np.float32]
    keys: NDArray[np.float64]
    seen: int

    @classmethod
    def of(cls, x: NDArray[np.floating[Any]], size: int, *, seed: int, part: int = 0) -> Sample:
        """Draw from ``x`` ``(n, d)``; ``seed`` and the partition's number ``part`` fix the draw.

        Takes about ``size * log(n / size)`` random numbers, not ``n``.

        Raises
        ------
        DataError : a size below 1
        """
        if size < 1:
            raise DataError(f"size={size} cannot be used: give the number of rows to keep, at least 1.")
        rng = np.random.default_rng((seed, part))
        first = min(size, len(x))
        keys, at = rng.uniform(size=first), np.arange(first)
        row = first - 1
        while len(x) > size:
            worst = int(np.argmax(keys))
            # Each later row beats the worst key with that probability: the gap to the next that does is geometric.
            row += int(min(np.log(rng.uniform()) // np.log1p(-keys[worst]), len(x))) + 1
            if row >= len(x):
                break
            keys[worst], at[worst] = rng.uniform(0.0, keys[worst]), row
        order = np.argsort(keys, kind="stable")
        return cls(size, np.asarray(x[at[order]], dtype=np.float32), keys[order], len(x))

    def __add__(self, other: Sample) -> Sample:
        if self.size != other.size or (
            len(self.rows) and len(other.rows) and self.rows.shape[1] != other.rows.shape[1]
        ):
            raise DataError(
                f"Samples of {self.size} and {other.size} rows, shapes {self.rows.shape} and {other.rows.shape}, "
                "cannot be merged: draw both with one size from the same columns."
            )
        keys = np.concatenate((self.keys, other.keys))
        order = np.argsort(keys, kind="stable")[: self.size]
        width = max(self.rows.shape[1], other.rows.shape[1])
        rows = np.concatenate((self.rows.reshape(-1, width), other.rows.reshape(-1, width)))
        return Sample(self.size, rows[order], keys[order], self.seen + other.seen)


def sketch_batches(bins: Bins, batches: Iterable[pa.RecordBatch]) -> Sketch:
    """Sketch of Arrow record batches with the columns of ``bins``, as numbers (categories as codes), null = missing.

    A pure function for one partition of a Spark or Ray data set; the sum over partitions has the same bytes as the sketch
    of all rows at once, in whatever order they come.

    Raises
    ------
    DataError : a batch lacks a column
    """
    return reduce(
        Sketch.__add__, (Sketch.of(bins, matrix(batch, bins.columns)) for batch in batches), Sketch.empty(bins)
    )


def matrix(batch: pa.RecordBatch, columns: Sequence[str]) -> NDArray[np.float32]:
    """The columns of a batch as ``(n_rows, n_columns)`` float32, null as NaN.

    Raises
    ------
    DataError : names the columns that are not there
    """
    lost = [name for name in columns if name not in batch.schema.names]
    if lost:
        raise DataError(
            f"The partition has no column {', '.join(map(repr, lost[:5]))}: it has {batch.schema.names[:10]}."
        )
    found = np.empty((len(columns), batch.num_rows), dtype=np.float32)
    for i, name in enumerate(columns):
        found[i] = batch.column(name).cast("float64", safe=False).to_numpy(zero_copy_only=False)
    return found.T
