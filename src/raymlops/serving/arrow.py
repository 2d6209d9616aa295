"""Bulk predictions as Arrow IPC streams: a table of rows in, a table of predictions out.

What a stream says of itself is checked in its message headers before anything is unpacked: 8 MB of compressed buffers,
or a batch of 2**40 nulls, are small on the wire and large in memory.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymlops.data.tables import TableRows
from raymlops.errors import ContractViolation, MalformedRequest, RaymlopsError, TooLarge, UnsupportedMedia
from raymlops.serving.checks import check_count
from raymlops.serving.protocol import PredictRequest
from raymlops.serving.strict import MAX_STRING

MEDIA = b"application/vnd.apache.arrow.stream"
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_MAX_MESSAGES = 1024


def parse_table(body: bytes, max_rows: int, max_columns: int = 4096) -> PredictRequest:
    """An Arrow IPC stream as rows that stay a table.

    Raises
    ------
    MalformedRequest : not such a stream, or one that contradicts itself
    UnsupportedMedia : compressed buffers
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows, a column twice, a column of a type no contract has
    """
    buffer = pa.py_buffer(body)
    try:
        _check_messages(buffer, max_rows)
        options = pa.ipc.IpcReadOptions(use_threads=False)
        with pa.ipc.open_stream(buffer, options=options) as reader:
            _check_schema(reader.schema, max_columns)
            batches = list(reader)
        table = pa.Table.from_batches(batches, reader.schema)
        table.validate(full=True)
    except RaymlopsError:
        raise
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise MalformedRequest(
            f"The body is not an Arrow IPC stream: {str(error)[:200]}. Write it with pyarrow.ipc.new_stream."
        ) from error
    if not table.num_rows or not table.num_columns:
        raise ContractViolation("The table is empty: send at least one row and its columns.")
    check_count(table.num_rows, max_rows)
    _check_texts(table)
    return PredictRequest(rows=TableRows(_decoded(table)))


def _decoded(table: pa.Table) -> pa.Table:
    """Dictionary columns as the values they stand for, so that nobody after this needs to know of them."""
    kinds = [(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema]
    return table.cast(pa.schema(kinds))


def format_table(
    endpoint: str,
    request_id: str,
    version: int,
    variant: str,
    predictions: list[Any],
    probabilities: list[Any] | None,
) -> bytes:
    """A stream of ``prediction`` and, for classes, ``probability``: a double, or a list of them in the order of the classes.

    The schema's metadata names endpoint, request id, version and variant.
    """
    columns = {"prediction": pa.array(predictions)}
    if probabilities is not None:
        several = bool(probabilities) and isinstance(probabilities[0], (list, tuple))
        kind = pa.list_(pa.float64(), len(probabilities[0])) if several else pa.float64()
        columns["probability"] = pa.array(probabilities, type=kind)
    facts = {"endpoint": endpoint, "request_id": request_id, "version": str(version), "variant": variant}
    table = pa.table(columns).replace_schema_metadata(facts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


# --- before anything is unpacked ------------------------------------------------------------------------


def _check_messages(buffer: pa.Buffer, max_rows: int) -> None:
    """Lengths and compression of every batch, from the message headers alone."""
    rows = 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(buffer)):
        if number >= _MAX_MESSAGES:
            raise MalformedRequest(f"The stream has more than {_MAX_MESSAGES} messages: write larger batches.")
        header = _Flat.root(message.metadata.to_pybytes())
        kind = header.byte(1)
        if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH):
            continue
        batch = header.table(2)
        if kind == _DICTIONARY_BATCH:
            batch = batch.table(1)  # its values are a batch again
        length = batch.long(0)
        if batch.has(3):
            raise UnsupportedMedia("The stream's buffers are compressed: write it without compression.")
        if length < 0:
            raise MalformedRequest("The stream holds a batch of negative length.")
        if kind == _RECORD_BATCH:
            rows += length
            check_count(rows, max_rows)
        else:
            check_count(length, 2 * max_rows)


class _Flat:
    """As much of a FlatBuffers table as the headers above need. Raises :class:`ValueError` outside the buffer."""

    __slots__ = ("_at", "_data", "_fields")

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        vtable = at - self._int(at, 4)
        size = self._int(vtable, 2, signed=False)
        if size < 4:
            raise ValueError("a table without fields")
        self._fields = [self._int(vtable + 4 + 2 * i, 2, signed=False) for i in range((size - 4) // 2)]

    @classmethod
    def root(cls, data: bytes) -> _Flat:
        return cls(data, int.from_bytes(data[:4], "little"))

    def has(self, field: int) -> bool:
        return field < len(self._fields) and self._fields[field] != 0

    def byte(self, field: int) -> int:
        return self._int(self._at + self._fields[field], 1, signed=False) if self.has(field) else 0

    def long(self, field: int) -> int:
        return self._int(self._at + self._fields[field], 8) if self.has(field) else 0

    def table(self, field: int) -> _Flat:
        if not self.has(field):
            raise ValueError("a message without a header")
        at = self._at + self._fields[field]
        return _Flat(self._data, at + self._int(at, 4, signed=False))

    def _int(self, at: int, size: int, signed: bool = True) -> int:
        if not 0 <= at <= len(self._data) - size:
            raise ValueError("an offset outside the message")
        return int.from_bytes(self._data[at : at + size], "little", signed=signed)


def _check_schema(schema: pa.Schema, max_columns: int) -> None:
    names = schema.names
    if len(names) > max_columns:
        raise ContractViolation(f"The table has {len(names)} columns; at most {max_columns} are taken.")
    seen: set[str] = set()
    for field in schema:
        if field.name in seen:
            raise ContractViolation(f"column {field.name[:60]!r}: appears more than once")
        seen.add(field.name)
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not any(is_one(kind) for is_one in _PLAIN):
            raise ContractViolation(
                f"column {field.name[:60]!r}: expected numbers, booleans or text, got Arrow's {str(field.type)[:60]}"
            )


_PLAIN = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_null,
)


def _check_texts(table: pa.Table) -> None:
    """No text too long, none with a NUL; dictionaries are looked at before a row can repeat what is in them."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        coded = pa.types.is_dictionary(column.type)
        for chunk in column.chunks:
            texts = chunk.dictionary if coded else chunk
            if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
                break
            longest = pc.max(pc.binary_length(texts)).as_py() or 0
            if longest > MAX_STRING:
                raise TooLarge(f"Column {name[:60]!r} holds a text of {longest} bytes; at most {MAX_STRING} are taken.")
            if pc.any(pc.match_substring(texts, "\0")).as_py():
                raise MalformedRequest(f"Column {name[:60]!r} holds a NUL character, which nothing can store.")
