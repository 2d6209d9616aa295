"""Files as one Arrow table, without a JVM: CSV, JSON lines, ORC and Parquet, typed as Spark would type them.

What is read here by one process is what Spark reads in many: the same rows, in the same order, of the same types once
they are pandas. Files too small to want Spark are read this way (:func:`is_small`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raymlops.data.columns import TextKind, parse_text, trimmed
from raymlops.data.sources import Format
from raymlops.errors import DataError

SMALL_BYTES = 64 * 2**20
"""Files of together less than this are read in one process; starting Spark takes longer."""
_COMPRESSED = 5
_SEPARATORS = ",;\t|"
_KINDS: tuple[TextKind, ...] = ("number", "boolean", "time")


def is_small(files: Sequence[str], form: Format) -> bool:
    """Whether files are worth no JVM; what says no size counts as large."""
    total = bytes_of(files, SMALL_BYTES)
    return total is not None and total < SMALL_BYTES


def bytes_of(files: Sequence[str], enough: float = float("inf")) -> int | None:
    """What files hold together, compressed text counted five times; counted until it is enough. ``None``: one says no size."""
    import fsspec

    total = 0
    for name in files:
        filesystem, path = fsspec.core.url_to_fs(name)
        size = filesystem.size(path)
        if size is None:
            return None
        total += int(size) * (_COMPRESSED if name.endswith((".gz", ".bz2", ".zst", ".xz")) else 1)
        if total >= enough:
            break
    return total


def read_files(files: Sequence[str], form: Format) -> pa.Table:
    """Rows of all files in order. Text columns of CSV take the narrowest kind that fits every file.

    Raises
    ------
    DataError : a file that cannot be read, columns that differ between files, nested values
    """
    if form == "csv":
        separator = separator_of(files[0])
        return typed(_joined([(name, read_text(name, separator)) for name in files]))
    return _joined([(name, read_url(name, form)) for name in files])


def read_url(url: str, form: Format, schema: pa.Schema | None = None, separator: str = "") -> pa.Table:
    """One file through fsspec, as ``schema`` when given.

    Raises
    ------
    DataError : the file cannot be read, or does not have the types of ``schema``
    """
    import fsspec
    import pyarrow.orc as arrow_orc
    import pyarrow.parquet as arrow_parquet

    if form == "csv":
        text = read_text(url, separator or separator_of(url))
        return typed(text) if schema is None else _as_schema(text, schema, url)
    try:
        with fsspec.open(url, "rb", compression="infer" if form == "json" else None) as stream:
            if form == "json":
                table = _read_json(stream.read())
            elif form == "orc":
                table = arrow_orc.read_table(pa.BufferReader(stream.read()))
            else:
                table = arrow_parquet.read_table(stream)
        table = plain_types(table, url)
        return table if schema is None else table.select(schema.names).cast(schema)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{url} cannot be read as {form}: {error}") from error


def read_text(url: str, separator: str) -> pa.Table:
    """A CSV file with a header, every cell as trimmed text; empty cells, quoted or not, are null.

    Raises
    ------
    DataError : the file cannot be read, or rows of another length than the header
    """
    import fsspec
    import pyarrow.csv as arrow_csv

    try:
        with fsspec.open(url, "rb", compression="infer") as stream:
            content = stream.read()
        names = header_of(content, separator)
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=arrow_csv.ParseOptions(delimiter=separator),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            raise DataError(f"{url}: its text is not UTF-8 ({error}). Write the file anew as UTF-8.") from error
        raise DataError(f"{url} cannot be read as csv: {error}") from error
    return pa.table({name: trimmed(table.column(name)) for name in names})


def header_of(content: bytes, separator: str) -> list[str]:
    """The names in a CSV's first line, trimmed.

    Raises
    ------
    ValueError : no line, or a name twice
    """
    line = content.split(b"\n", 1)[0].rstrip(b"\r").removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    names = [name.strip() for name in next(csv.reader([line], delimiter=separator), [])]
    if not any(names):
        raise ValueError("it has no header line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"its header names {', '.join(map(repr, twice))} more than once")
    return names


def separator_of(path: str) -> str:
    """The separator of a CSV file, from its first line; a comma when the line does not tell."""
    import fsspec

    with fsspec.open(path, "rt", compression="infer", errors="replace") as stream:
        header = stream.readline()
    try:
        return csv.Sniffer().sniff(header, _SEPARATORS).delimiter
    except csv.Error:
        return ","


def typed(text: pa.Table) -> pa.Table:
    """Columns of text as the narrowest of number, boolean, time and text that every cell reads as.

    A column without any value is text.
    """
    return pa.table({name: _narrowest(text.column(name).combine_chunks()) for name in text.column_names})


def _narrowest(column: pa.Array) -> pa.Array:
    if column.null_count == len(column):
        return column
    for kind in _KINDS:
        if not _may_be(kind, column):
            continue
        values, bad = parse_text(kind, column)
        if not bad.any():
            return values
    return _zoned(column)


def _zoned(column: pa.Array) -> pa.Array:
    """Times with a zone, as Spark has them in a session of UTC; anything else as it was."""
    try:
        return column.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return column


def _may_be(kind: TextKind, column: pa.Array) -> bool:
    """Whether the first value there is reads as ``kind``: most columns are settled by it, and cheaply."""
    first = column.drop_null().slice(0, 1)
    return not parse_text(kind, first)[1].any()


def plain_types(table: pa.Table, name: str) -> pa.Table:
    """Types that Spark and pandas share: text for a column of nulls, 64-bit whole numbers, times in microseconds.

    Raises
    ------
    DataError : a column of lists, objects or bytes
    """
    fields = [pa.field(field.name, _plain_type(field, name)) for field in table.schema]
    return table.replace_schema_metadata().cast(pa.schema(fields))


def _plain_type(field: pa.Field, name: str) -> pa.DataType:
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(
            f"{name}: column {field.name!r} holds {kind}; a model takes numbers, booleans, times and text. "
            "Flatten it in a SparkSource, or name it in drop=."
        )
    if pa.types.is_integer(kind):
        return pa.int64()
    return pa.timestamp("us") if pa.types.is_timestamp(kind) or pa.types.is_date(kind) else kind


def _as_schema(text: pa.Table, schema: pa.Schema, url: str) -> pa.Table:
    kinds = {field.name: _kind_of(field.type) for field in schema}
    if sorted(text.column_names) != sorted(schema.names):
        raise DataError(_differ(url, text.column_names, schema.names))
    columns = []
    for field in schema:
        values, bad = parse_text(kinds[field.name], text.column(field.name).combine_chunks())
        if bad.any():
            row = int(bad.argmax())
            cell = text.column(field.name)[row].as_py()
            raise DataError(
                f"{url}: column {field.name!r} reads as {kinds[field.name]} in the first file, row {row} here has "
                f"{cell[:60]!r}."
            )
        columns.append(values.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _kind_of(kind: pa.DataType) -> TextKind:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_timestamp(kind):
        return "time"
    return "text" if pa.types.is_string(kind) else "number"


def _joined(tables: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """The tables below each other in the first one's column order, types widened where they differ."""
    first, names = tables[0][0], tables[0][1].column_names
    for name, table in tables[1:]:
        if sorted(table.column_names) != sorted(names):
            raise DataError(_differ(name, table.column_names, names, first))
    columns = [_stacked(column, tables) for column in names]
    return pa.table(dict(zip(names, columns, strict=True)))


def _stacked(column: str, tables: Sequence[tuple[str, pa.Table]]) -> pa.ChunkedArray:
    """One column of all files. Where a file has no value in it, its type there says nothing."""
    parts = [(name, table.column(column)) for name, table in tables]
    told = [(name, part) for name, part in parts if part.null_count < len(part)] or parts[:1]
    first, kind = told[0][0], told[0][1].type
    for name, part in told[1:]:
        if not _joins(part.type, kind):
            raise DataError(
                f"{name}: column {column!r} holds {part.type}, and {kind} in {first}: files of a source have the same types."
            )
        kind = kind if part.type == kind else pa.float64()
    chunks: list[pa.Array] = []
    for _, part in parts:
        chunks += [pa.nulls(len(part), kind)] if part.null_count == len(part) else part.cast(kind).chunks
    return pa.chunked_array(chunks, type=kind)


def _joins(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether columns of both types can stand below each other: equal, or both numbers."""
    return one == other or all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (one, other))


def _differ(name: str, columns: Sequence[str], expected: Sequence[str], first: str = "the first file") -> str:
    missing, more = sorted(set(expected) - set(columns)), sorted(set(columns) - set(expected))
    parts = [
        f"lacks {', '.join(map(repr, missing))}" if missing else "",
        f"adds {', '.join(map(repr, more))}" if more else "",
    ]
    return f"{name} {' and '.join(part for part in parts if part)} compared with {first}: files of a source have the same columns."


def _read_json(content: bytes) -> pa.Table:
    """JSON lines; text that looks like a time stays text, as in Spark."""
    import pyarrow.json as arrow_json

    table = arrow_json.read_json(pa.BufferReader(content))
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if times:
        schema = pa.schema([(name, pa.string()) for name in times])
        options = arrow_json.ParseOptions(explicit_schema=schema)
        names = table.column_names
        table = arrow_json.read_json(pa.BufferReader(content), parse_options=options).select(names)
    return table


def json_names(url: str) -> list[str]:
    """The names in the first line of a JSON-lines file, in its order: Spark sorts them."""
    import fsspec

    with fsspec.open(url, "rt", compression="infer") as stream:
        line = next((line for line in stream if line.strip()), "")
    try:
        first: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{url} cannot be read as json: its first line is no JSON object: {error}") from error
    if not isinstance(first, dict):
        raise DataError(f"{url} cannot be read as json: write one JSON object a line, not one document.")
    return list(first)
