"""Rows on their way between processes of one machine: Arrow files, one a partition, mapped into memory and gone once read.

The system keeps such a file in memory and writes it to disk only when memory is short, so there may be more rows than memory.
Imports nothing but numpy and pyarrow: Spark's Python workers load this module.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymlops.data.packed import Pack

_REPEATED = 0.5


def part_path(folder: str, number: int) -> str:
    """The file of a partition."""
    return f"{folder}/{number:06d}.arrow"


def write_part(folder: str, number: int, batches: Iterable[pa.RecordBatch], packs: Sequence[Pack] = ()) -> int:
    """Write a partition, whole or not at all, and return how many rows it has. The first of several attempts at it counts: its
    file may be in use by then.

    Columns that are packed arrive as Spark's bytes and are written as their values. Texts of which at most half are distinct in the first batch are written as codes, with the texts once a batch.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=".writing-")
    path, rows = part_path(folder, number), 0
    by_name = {pack.name: pack for pack in packs}
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(os.fdopen(handle, "wb"))
            writer: pa.RecordBatchStreamWriter | None = None
            schema = pa.schema([])
            for batch in batches:
                if writer is None:
                    schema = _schema_of(batch, by_name)
                    writer = stack.enter_context(pa.ipc.new_stream(stream, schema))
                writer.write_batch(_written(batch, schema, by_name))
                rows += batch.num_rows
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return rows


def read_part(path: str) -> pa.Table:
    """A partition as a table over its file's memory; nothing is copied. Without a batch it has no columns."""
    with pa.memory_map(path) as file:
        if not file.size():
            return pa.table({})
        return pa.ipc.open_stream(file).read_all()


def _schema_of(batch: pa.RecordBatch, packs: Mapping[str, Pack]) -> pa.Schema:
    fields = []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        if field.name in packs:
            fields.append(packs[field.name].field)
        elif text and pc.count_distinct(column).as_py() <= _REPEATED * len(column):
            fields.append(pa.field(field.name, pa.dictionary(pa.int32(), field.type)))
        else:
            fields.append(field.remove_metadata())
    return pa.schema(fields)


def values_of(batch: pa.RecordBatch, packs: Sequence[Pack]) -> pa.Table:
    """A batch of Spark's as a table, what is packed as its values."""
    by_name = {pack.name: pack for pack in packs}
    fields = [by_name[field.name].field if field.name in by_name else field for field in batch.schema]
    columns = [
        by_name[field.name].of_spark(column) if field.name in by_name else column
        for field, column in zip(batch.schema, batch.columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _written(batch: pa.RecordBatch, schema: pa.Schema, packs: Mapping[str, Pack]) -> pa.RecordBatch:
    columns = []
    for field, column in zip(schema, batch.columns, strict=True):
        if field.name in packs:
            column = packs[field.name].of_spark(column)
        elif pa.types.is_dictionary(field.type):
            column = column.dictionary_encode()
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def plain_texts(table: pa.Table) -> pa.Table:
    """The table with its codes as the texts they stand for."""
    fields = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))


def ray_node() -> str:
    """The Ray node whose raylet started this process or one above it; ``""`` when that does not tell.

    A process that is no Ray worker itself, such as Spark's Python workers, knows the raylet by the variable its parent had.
    """
    try:
        words = Path(f"/proc/{os.environ.get('RAY_RAYLET_PID', 'none')}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((word.partition(b"=")[2].decode() for word in words if word.startswith(b"--node_id=")), "")
