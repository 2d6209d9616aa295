"""Rows of numbers and times as the bytes Spark holds them in, all of one length, one after the other in a file.

Such a row (``UnsafeRow``) is a bit a column for nulls, in whole words of 8 bytes, a word a column, and then the arrays, of which
the column's word tells place and length. Spark's writer of text files writes a column's bytes as they are, which takes no Arrow, no
Python worker and no look at a single value. Imports nothing but numpy and pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymlops.data.packed import WORD, Pack, null_bits, null_bytes

KINDS = {
    "float": pa.float32(),
    "double": pa.float64(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "smallint": pa.int16(),
    "tinyint": pa.int8(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "timestamp_ntz": pa.timestamp("us"),
}
ENDS_WITH = b"\n"
_BATCH_BYTES = 1 << 20  # stays in a core's cache until its values are where they belong


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBytes:
    """What a row's bytes hold.

    Attributes
    ----------
    packs : the arrays, which are the first columns
    singles : names of the other columns and Spark's names of their types, of :data:`KINDS`
    """

    packs: tuple[Pack, ...]
    singles: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Bytes of one row."""
        return self._ends[-1] + len(ENDS_WITH)

    @property
    def schema(self) -> pa.Schema:
        """Of the batches."""
        return pa.schema(
            [*(pack.field for pack in self.packs), *(pa.field(name, KINDS[kind]) for name, kind in self.singles)]
        )

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The same as :meth:`batches`, as tables."""
        for batch in self.batches(path):
            yield pa.Table.from_batches([batch])

    def batches(self, path: str) -> Iterator[pa.RecordBatch]:
        """The rows of a file, some at a time; they are copied, and the file is not mapped.

        Raises
        ------
        ValueError : bytes that are no such rows
        """
        size = self.size
        buffer = np.empty((max(1, _BATCH_BYTES // size), size), np.uint8)
        with open(path, "rb", buffering=0) as file:
            left, over = divmod(os.fstat(file.fileno()).st_size, size)
            if over:
                raise ValueError(f"{path} is not of whole rows of {size} bytes.")
            while left:
                part = buffer[: min(left, len(buffer))]
                _fill(file, part.reshape(-1), path)
                left -= len(part)
                yield self._batch(part, path)

    def _batch(self, raw: npt.NDArray[np.uint8], path: str) -> pa.RecordBatch:
        columns: list[pa.Array] = []
        nulls = null_bits(raw[:, : self._slots], len(self.packs) + len(self.singles))
        for index, pack in enumerate(self.packs):
            start, end = self._ends[index], self._ends[index + 1]
            # The word holds an array's place and length.
            if not (self._slot(raw, index, np.dtype("u8")) == (start << 32 | pack.size)).all():
                raise ValueError(f"{path} holds no rows of {pack.name!r}.")
            columns.append(pack.of_bytes(raw[:, start:end]))
        for index, (_, kind) in enumerate(self.singles, len(self.packs)):
            to = KINDS[kind]
            stored = pa.int64() if pa.types.is_timestamp(to) else pa.int32() if pa.types.is_date(to) else to
            values: npt.NDArray[Any] = self._slot(raw, index, np.dtype(stored.to_pandas_dtype()))
            mask = None if nulls is None or not nulls[:, index].any() else nulls[:, index]
            made = pa.array(values, mask=mask)
            columns.append(made if stored is to else made.view(to))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _slot(self, raw: npt.NDArray[np.uint8], index: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        start = self._slots + WORD * index
        return raw[:, start : start + dtype.itemsize].copy().view(dtype)[:, 0]

    @property
    def _slots(self) -> int:
        return null_bytes(len(self.packs) + len(self.singles))

    @property
    def _ends(self) -> list[int]:
        """Where the fixed part of a row ends, and each array."""
        ends = [self._slots + WORD * (len(self.packs) + len(self.singles))]
        for pack in self.packs:
            ends.append(ends[-1] + pack.size)
        return ends


def _fill(file: Any, flat: npt.NDArray[np.uint8], path: str) -> None:
    done = 0
    while done < len(flat):
        read = file.readinto(flat[done:])
        if not read:
            raise ValueError(f"{path} ended early.")
        done += read
