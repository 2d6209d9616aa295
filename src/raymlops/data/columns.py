"""Rows that came as a table of columns: encoded column by column, and rows only for those who ask for rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raymlops.data.schema import MAX_WHOLE, Column, DataContract

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class TableRows(Sequence[dict[str, Any]]):
    """An Arrow table where a list of request rows is expected.

    Whoever knows tables takes :attr:`table`; others iterate over rows, which are made then.
    """

    __slots__ = ("table",)

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row: dict[str, Any] = self.table.slice(index % len(self), 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()


def encode_table(contract: DataContract, table: pa.Table) -> npt.NDArray[np.float32]:
    """As :meth:`raymlops.data.schema.DataContract.encode_rows` of the table's rows, without making them.

    A column of another type than its kind has in Arrow is encoded by its values, row by row.

    Raises
    ------
    ContractViolation : what ``encode_rows`` says of the rows
    """
    names = table.column_names
    if len(names) == len(contract.columns) and set(names) == set(contract.names):
        out = np.empty((table.num_rows, len(contract.columns)), dtype=np.float32)
        if all(_fill(column, table.column(column.name), out[:, i]) for i, column in enumerate(contract.columns)):
            return out
    return contract.encode_rows(table.to_pylist())


def _fill(column: Column, values: pa.ChunkedArray, out: npt.NDArray[np.float32]) -> bool:
    """Whether the column could be encoded as a whole and keeps the contract; ``out`` is then filled."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if values.null_count and not column.nullable:
        return False
    if column.kind == "category":
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return False
        known = pa.array(list(column.categories), type=kind)
        # Missing values and unseen categories are both null here, and both NaN in the matrix.
        out[:] = _floats(pc.index_in(values, value_set=known, skip_nulls=True))
        return True
    if column.kind == "boolean":
        if not pa.types.is_boolean(kind):
            return False
        out[:] = _floats(values.cast(pa.uint8()))
        return True
    if pa.types.is_integer(kind):
        numbers = _floats(values)
        if (np.abs(numbers) >= MAX_WHOLE).any():
            return False
    elif pa.types.is_floating(kind):
        numbers = _floats(values)
        finite = np.abs(numbers) <= _FLOAT32_MAX
        if column.kind == "integer" and (numbers[finite] != np.floor(numbers[finite])).any():
            return False
        if not finite.all():
            if not column.nullable:
                return False
            numbers = np.where(finite, numbers, np.nan)
    else:
        return False
    out[:] = numbers
    return True


def _floats(values: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Float64, shape (n,), nulls as NaN; whole numbers beyond 2**53 are rounded."""
    numbers: npt.NDArray[np.float64] = values.cast(pa.float64(), safe=False).to_numpy()
    return numbers
