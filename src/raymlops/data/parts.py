"""Large input in parts: row groups of Parquet files and byte ranges of CSV files, each read by itself as a stream.

A part is the unit that is scored, written and, after a crash, not scored again. The plan depends on the files only, so
the same files give the same parts in every run.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from raymlops.data.files import separator_of
from raymlops.data.sources import Format, expand_files
from raymlops.errors import DataError

BLOCK_ROWS = 65_536
PART_ROWS = 262_144
PART_BYTES = 32 * 1024 * 1024
_EDGE = 64 * 1024
_SAMPLE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of the input.

    Attributes
    ----------
    size : bytes
    print : SHA-256 over the size and the first and last 64 KiB (of Parquet: where its schema and row groups are listed)
    rows : ``None`` where only reading the file tells
    """

    name: str
    format: Format
    size: int
    print: str
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Row groups (Parquet) or bytes (CSV) ``start`` to ``stop`` of one file. A compressed CSV file is one part.

    Attributes
    ----------
    number : position in the input, from 0
    share : of the whole input, by rows or bytes
    rows : as the file's own footer counts them, or ``None``
    """

    number: int
    file: str
    format: Format
    start: int
    stop: int
    share: float
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """All files of a run in order, their parts, and how CSV is read.

    Attributes
    ----------
    columns : names in file order, the same in every file
    separator : of CSV files; ``""`` for Parquet
    """

    files: tuple[InputFile, ...]
    parts: tuple[Part, ...]
    columns: tuple[str, ...]
    separator: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; without the parts, which the files determine."""
        return {
            "files": [asdict(file) for file in self.files],
            "columns": list(self.columns),
            "separator": self.separator,
        }


def plan_input(
    paths: Sequence[str], format: Format | None = None, *, part_rows: int = PART_ROWS, part_bytes: int = PART_BYTES
) -> Input:
    """List the files and cut them into parts of about ``part_rows`` rows (Parquet) or ``part_bytes`` bytes (CSV).

    Raises
    ------
    DataError : no file matches, a file cannot be read, files whose columns differ, columns of one name
    """
    names, kind, _ = expand_files(paths, format)
    if kind not in ("csv", "parquet"):
        raise DataError(f"Bulk scoring reads CSV and Parquet, not {kind}: {names[0]}. Convert the files first.")
    files, pieces, columns = [], [], None
    separator = separator_of(names[0]) if kind == "csv" else ""
    for name in names:
        file, found, cuts = _look(name, kind, separator, part_rows, part_bytes)
        _check_columns(name, found, columns, names[0])
        columns = columns or found
        files.append(file)
        pieces += [(name, *cut) for cut in cuts]
    weights = [float(weight) for *_, weight, _ in pieces]
    total = sum(weights) or 1.0
    parts = tuple(
        Part(number=number, file=name, format=kind, start=start, stop=stop, share=weight / total, rows=rows)
        for number, (name, start, stop, weight, rows) in enumerate(pieces)
    )
    return Input(files=tuple(files), parts=parts, columns=tuple(columns or ()), separator=separator)


def read_part(part: Part, source: Input, block_rows: int = BLOCK_ROWS) -> Iterator[pa.Table]:
    """The rows of a part in order, at most ``block_rows`` at a time; CSV as text, one column a name.

    Raises
    ------
    DataError : the part cannot be read, or does not hold the rows its file promised
    """
    seen = 0
    with _as_data_error(part.file, part.format), _open(part.file, part.format) as stream:
        for table in _blocks(part, source, stream, block_rows):
            for start in range(0, len(table), block_rows):
                seen += len(block := table.slice(start, block_rows))
                yield block
    if part.rows is not None and seen != part.rows:
        raise DataError(f"{part.file} promised {part.rows} rows in part {part.number} and held {seen}: it was changed.")


def inferred_schema(source: Input) -> pa.Schema:
    """The types pyarrow sees in the first mebibyte of the first CSV file.

    Raises
    ------
    DataError : it cannot be read
    """
    name = source.files[0].name
    with _as_data_error(name, "csv"), _open(name, "csv") as stream:
        content = stream.read(_SAMPLE_BYTES)
        if len(content) == _SAMPLE_BYTES:
            content = content[: content.rfind(b"\n") + 1]
        return arrow_csv.read_csv(
            io.BytesIO(content),
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=2 * _SAMPLE_BYTES),
            parse_options=arrow_csv.ParseOptions(delimiter=source.separator),
            convert_options=arrow_csv.ConvertOptions(strings_can_be_null=True),
        ).schema


# --- looking ---------------------------------------------------------------------------------------------

_Cut = tuple[int, int, int, int | None]


def _look(
    name: str, kind: Format, separator: str, part_rows: int, part_bytes: int
) -> tuple[InputFile, list[str], list[_Cut]]:
    with _as_data_error(name, kind), _raw(name) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        digest = hashlib.sha256(f"{size}\n".encode() + stream.read(_EDGE))
        stream.seek(max(0, size - _EDGE))
        digest.update(stream.read(_EDGE))
        if kind == "parquet":
            footer = pq.ParquetFile(stream)
            found, rows = footer.schema_arrow.names, footer.metadata.num_rows
            counts = [footer.metadata.row_group(index).num_rows for index in range(footer.metadata.num_row_groups)]
            cuts = _row_group_cuts(counts, part_rows)
        else:
            found, rows = _header(name, separator), None
            cuts = [(start, stop, stop - start, None) for start, stop in _byte_cuts(name, size, part_bytes)]
    return InputFile(name=name, format=kind, size=size, print=digest.hexdigest(), rows=rows), found, cuts


def _row_group_cuts(counts: Sequence[int], part_rows: int) -> list[_Cut]:
    """Neighbouring row groups together until they hold ``part_rows``; a row group is never split."""
    cuts: list[_Cut] = []
    start, rows = 0, 0
    for index, count in enumerate(counts):
        rows += count
        if rows >= part_rows or index == len(counts) - 1:
            cuts.append((start, index + 1, rows, rows))
            start, rows = index + 1, 0
    return cuts


def _byte_cuts(name: str, size: int, part_bytes: int) -> list[tuple[int, int]]:
    if _is_compressed(name):
        return [(0, size)]
    return [(start, min(start + part_bytes, size)) for start in range(0, size, part_bytes)]


def _is_compressed(name: str) -> bool:
    return name.lower().endswith((".gz", ".bz2", ".xz", ".zst"))


def _check_columns(name: str, found: list[str], expected: list[str] | None, first: str) -> None:
    repeated = sorted({column for column in found if found.count(column) > 1})
    if repeated:
        raise DataError(f"{name} has {', '.join(map(repr, repeated))} more than once: rename or drop the column.")
    if expected is not None and set(found) != set(expected):
        lost, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        said = [f"lacks {', '.join(map(repr, lost))}"] * bool(lost) + [
            f"has {', '.join(map(repr, extra))} besides"
        ] * bool(extra)
        raise DataError(f"{name} does not have the columns of {first}: it {' and '.join(said)}. Score them apart.")
    if expected is not None and name.lower().endswith((".csv", ".tsv", ".txt")) and found != expected:
        raise DataError(f"{name} has the columns of {first} in another order: score it apart.")


# --- reading ---------------------------------------------------------------------------------------------


def _blocks(part: Part, source: Input, stream: Any, block_rows: int) -> Iterator[pa.Table]:
    if part.format == "parquet":
        file = pq.ParquetFile(stream, pre_buffer=False)
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(
            batch_size=block_rows, row_groups=groups, columns=list(source.columns), use_threads=False
        ):
            yield pa.Table.from_batches([batch])
    elif _is_compressed(part.file):
        stream.readline()
        unpacked = io.BufferedReader(stream)
        if unpacked.peek(1):
            yield from _csv_blocks(unpacked, source)
    else:
        content = _whole_lines(stream, part)
        if content.strip():
            yield from _csv_blocks(io.BytesIO(content), source)


def _whole_lines(stream: Any, part: Part) -> bytes:
    """The lines that begin in the range: the last one whole, none that began before; never the header."""
    stream.seek(max(part.start - 1, 0))
    stream.readline()  # the header, or the rest of the line that the byte before the range belongs to
    begin = stream.tell()
    if begin >= part.stop:
        return b""
    content: bytes = stream.read(part.stop - begin)
    return content if content.endswith(b"\n") else content + stream.readline()


def _csv_blocks(stream: Any, source: Input) -> Iterator[pa.Table]:
    reader = arrow_csv.open_csv(
        stream,
        read_options=arrow_csv.ReadOptions(
            column_names=list(source.columns), use_threads=False, block_size=8 * 1024 * 1024
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=source.separator),
        convert_options=arrow_csv.ConvertOptions(column_types={name: pa.string() for name in source.columns}),
    )
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _header(name: str, separator: str) -> list[str]:
    with _open(name, "csv") as stream:
        line = stream.readline()
    if not line.strip():
        raise DataError(f"{name} is empty: its first line must name the columns.")
    names = next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], delimiter=separator))
    return [column.strip() for column in names]


def _raw(name: str) -> Any:
    import fsspec

    return fsspec.open(name, "rb").open()


def _open(name: str, kind: Format) -> Any:
    import fsspec

    return fsspec.open(name, "rb", compression="infer" if kind == "csv" else None).open()


@contextlib.contextmanager
def _as_data_error(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{name} cannot be read as {kind}: {words[0][:300]}") from error
