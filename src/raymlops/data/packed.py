"""Columns of one number type that travel as one: a value a row, not a value a column and row.

Spark turns its rows into Arrow one value at a time, which costs more than all that follows. An array of numbers in one of
Spark's rows is a run of bytes (``UnsafeArrayData``: the count in 8 bytes, a bit a value for nulls in whole words of 8 bytes, the values,
padded to 8), and bytes are copied at once. Imports nothing but numpy and pyarrow: Spark's Python workers load this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_COLUMNS = b"columns"
WORD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Some columns as one.

    Attributes
    ----------
    name : of the one column
    kind : NumPy's name of the type
    columns : what it holds, in order
    """

    name: str
    kind: str
    columns: tuple[str, ...]

    @property
    def field(self) -> pa.Field:
        """As it is written: a list of one length, which is a matrix with contiguous rows."""
        kind = pa.list_(pa.from_numpy_dtype(np.dtype(self.kind)), len(self.columns))
        return pa.field(self.name, kind, metadata={_COLUMNS: json.dumps(self.columns)})

    def of_spark(self, given: pa.BinaryArray) -> pa.FixedSizeListArray:
        """The values of Spark's arrays; nulls of floats as NaN.

        Raises
        ------
        ValueError : bytes that are no such arrays
        """
        rows, size = len(given), self.size
        _, ends, content = given.buffers()
        at = np.frombuffer(ends, np.int32, rows + 1, given.offset * 4) if rows else np.zeros(1, np.int32)
        if given.null_count or at[-1] - at[0] != rows * size:
            raise ValueError(
                f"{at[-1] - at[0]} bytes are not {rows} of Spark's arrays of {len(self.columns)} {self.kind}."
            )
        return self.of_bytes(
            np.frombuffer(content, np.uint8, rows * size, at[0]).reshape(rows, size)
            if rows
            else np.empty((0, size), "u1")
        )

    @property
    def size(self) -> int:
        """Bytes of one of Spark's arrays."""
        return self._head + words(len(self.columns) * np.dtype(self.kind).itemsize)

    @property
    def _head(self) -> int:
        return WORD + null_bytes(len(self.columns))

    def of_bytes(self, raw: npt.NDArray[np.uint8]) -> pa.FixedSizeListArray:
        """The values of Spark's arrays ``(n_rows, size)``, which are copied; nulls of floats as NaN."""
        width, dtype, head = len(self.columns), np.dtype(self.kind), self._head
        # A copy also of one row, whose bytes are contiguous as they are: the memory is not to be written to.
        values = raw[:, head : head + width * dtype.itemsize].copy().view(dtype)
        missing = null_bits(raw[:, WORD:head], width)
        if missing is not None and dtype.kind == "f":
            values[missing], missing = np.nan, None
        flat = pa.array(values.ravel(), mask=None if missing is None else missing.ravel())
        return pa.FixedSizeListArray.from_arrays(flat, width)


def words(size: int) -> int:
    """Bytes in whole words."""
    return WORD * -(-size // WORD)


def null_bytes(width: int) -> int:
    """Bytes of the bits that tell which of ``width`` values are null."""
    return words(-(-width // 8))


def null_bits(raw: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.bool_] | None:
    """Which values ``(n_rows, width)`` are null, by the bits of each row; ``None`` when none is."""
    if not raw.any():
        return None
    return np.unpackbits(np.ascontiguousarray(raw), axis=1, count=width, bitorder="little").astype(bool)


def columns_of(field: pa.Field) -> tuple[str, ...]:
    """The columns in a field: several where it is packed."""
    if not pa.types.is_fixed_size_list(field.type) or _COLUMNS not in (field.metadata or {}):
        return (field.name,)
    return tuple(json.loads(field.metadata[_COLUMNS]))


def matrix_of(packed: pa.FixedSizeListArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Values ``(n_rows, width)``, which are not copied, and which of them are null, where some are."""
    flat, width = packed.flatten(), packed.type.list_size
    if not flat.null_count:
        return flat.to_numpy().reshape(-1, width), None
    missing = np.asarray(flat.is_null()).reshape(-1, width)
    return flat.fill_null(0).to_numpy().reshape(-1, width), missing


def unpacked(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The table with a column for each name."""
    columns: dict[str, pa.ChunkedArray] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        inner = columns_of(field)
        if inner == (field.name,):
            columns[field.name] = column
            continue
        parts: list[list[pa.Array]] = [[] for _ in inner]
        for chunk in column.chunks:
            values, missing = matrix_of(chunk)
            for index, of_one in enumerate(np.ascontiguousarray(values.T)):
                parts[index].append(pa.array(of_one, mask=None if missing is None else missing[:, index]))
        for name, part in zip(inner, parts, strict=True):
            columns[name] = pa.chunked_array(part, field.type.value_type)
    return pa.table({name: columns[name] for name in names})
