"""Rows that came as a table of columns: encoded column by column, and rows only for those who ask for rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymlops.data.columns import encode_table
from raymlops.data.rows import MadeRows
from raymlops.data.schema import DataContract


class TableRows(MadeRows):
    """An Arrow table where a list of request rows is expected.

    Whoever knows tables takes :attr:`table`; others iterate over rows, which are made then.
    """

    __slots__ = ("table",)

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def row(self, index: int) -> dict[str, Any]:
        made: dict[str, Any] = self.table.slice(index, 1).to_pylist()[0]
        return made

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()


def encode_table_rows(contract: DataContract, table: pa.Table) -> npt.NDArray[np.float32]:
    """As :meth:`raymlops.data.schema.DataContract.encode_rows` of the table's rows, mostly without making them.

    Raises
    ------
    ContractViolation : what ``encode_rows`` says of the rows
    """
    names = table.column_names
    if len(names) == len(contract.columns) and set(names) == set(contract.names):
        encoded = encode_table(contract, table)
        if not encoded.refused:
            return encoded.x
    return contract.encode_rows(table.to_pylist())
