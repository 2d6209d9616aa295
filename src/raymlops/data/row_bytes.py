"""Rows as the bytes Spark holds them in, one after the other in a file.

Such a row (``UnsafeRow``) is a bit a column for nulls, in whole words of 8 bytes; a word a column; the arrays; the texts, padded with
zeros to whole words. The word of an array or a text is its place in the row and its length. Spark's writer of text files writes a column's
bytes as they are, which takes no Arrow, no Python worker and no look at a single value. Rows without texts are of one length; where there
are texts, two words end a row that occur in no other place. Imports nothing but numpy and pyarrow.
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

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]

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
    "string": pa.string(),
}
_BATCH_BYTES = 1 << 20  # stays in a core's cache until its values are where they belong
_TEXT_BATCH_BYTES = 1 << 23  # with texts each column of a batch costs some ten calls
_LOW = 0xFFFFFFFF
_INLINE = 12  # so many bytes of a text Arrow keeps in the place of a pointer


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBytes:
    """What a row's bytes hold.

    Attributes
    ----------
    packs : the arrays, which are the first columns
    singles : names of the other columns and Spark's names of their types, of :data:`KINDS`
    ends_with : what comes after each row: one character, or 16 that no row holds where there are texts
    """

    packs: tuple[Pack, ...]
    singles: tuple[tuple[str, str], ...]
    ends_with: str = "\n"

    @property
    def schema(self) -> pa.Schema:
        """Of the batches."""
        return pa.schema(
            [*(pack.field for pack in self.packs), *(pa.field(name, KINDS[kind]) for name, kind in self.singles)]
        )

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The rows of a file, some at a time; they are copied, and the file is not mapped.

        Raises
        ------
        ValueError : bytes that are no such rows
        """
        texts = any(kind == "string" for _, kind in self.singles)
        with open(path, "rb", buffering=0) as file:
            for columns in self._of_many_lengths(file, path) if texts else self._of_one_length(file, path):
                yield pa.Table.from_arrays(columns, schema=self.schema)

    def _of_one_length(self, file: Any, path: str) -> Iterator[list[pa.Array]]:
        size = self._fixed + len(self.ends_with)
        buffer = np.empty((max(1, _BATCH_BYTES // size), size), np.uint8)
        left, over = divmod(os.fstat(file.fileno()).st_size, size)
        if over:
            raise ValueError(f"{path} is not of whole rows of {size} bytes.")
        while left:
            part = buffer[: min(left, len(buffer))]
            if _filled(file, part.reshape(-1)) < part.size:
                raise ValueError(f"{path} ended early.")
            left -= len(part)
            yield self._columns(part, path)

    def _of_many_lengths(self, file: Any, path: str) -> Iterator[list[pa.Array]]:
        left = os.fstat(file.fileno()).st_size
        buffer, kept = np.empty(max(_TEXT_BATCH_BYTES // WORD, 64), np.int64), 0
        while left:
            if kept == len(buffer):  # one row is longer
                buffer = np.concatenate([buffer, np.empty_like(buffer)])
            read = _filled(file, buffer[kept:].view(np.uint8))
            if not read:
                raise ValueError(f"{path} ended early.")
            left -= read
            words = buffer[: kept + read // WORD]
            ends = self._row_ends(words)
            if read % WORD or (not left and (not len(ends) or ends[-1] != len(words) - 2)):
                raise ValueError(f"{path} is not of whole rows.")
            if len(ends):
                starts = np.concatenate([[0], ends[:-1] + 2])
                fixed = words[starts[:, None] + np.arange(self._fixed // WORD)]
                yield self._columns(fixed.view(np.uint8), path, (words, starts, ends))
                kept = len(words) - (ends[-1] + 2)
                buffer[:kept] = words[len(words) - kept :].copy()
            else:
                kept = len(words)

    def _row_ends(self, words: Words) -> npt.NDArray[np.intp]:
        """Places of the words after each row."""
        first, second = np.frombuffer(self.ends_with.encode(), np.int64)
        maybe = np.flatnonzero(words[:-1] == first)
        return maybe[words[maybe + 1] == second]

    def _columns(
        self, raw: Bytes, path: str, whole: tuple[Words, npt.NDArray[np.intp], npt.NDArray[np.intp]] | None = None
    ) -> list[pa.Array]:
        """Of rows' parts of one length ``(n_rows, bytes)``, and, where there are texts, of the words these are in."""
        columns: list[pa.Array] = []
        count = len(self.packs) + len(self.singles)
        nulls, at = null_bits(raw[:, : null_bytes(count)], count), self._first
        for index, pack in enumerate(self.packs):
            if not (self._slot(raw, index, np.dtype("u8")) == (at << 32 | pack.size)).all():
                raise ValueError(f"{path} holds no rows of {pack.name!r}.")
            columns.append(pack.of_bytes(raw[:, at : at + pack.size]))
            at += pack.size
        last = np.full(len(raw), at)
        for index, (_, kind) in enumerate(self.singles, len(self.packs)):
            to = KINDS[kind]
            mask = None if nulls is None or not nulls[:, index].any() else nulls[:, index]
            if whole is not None and kind == "string":
                slots = self._slot(raw, index, np.dtype(np.int64))
                texts = np.where(mask, 0, slots) if mask is not None else slots
                columns.append(_texts(whole[0], whole[1], texts, mask))
                last = np.maximum(last, (texts >> 32) + -(-(texts & _LOW) // WORD) * WORD)
                continue
            stored = pa.int64() if pa.types.is_timestamp(to) else pa.int32() if pa.types.is_date(to) else to
            values = pa.array(self._slot(raw, index, np.dtype(stored.to_pandas_dtype())), mask=mask)
            columns.append(values if stored is to else values.view(to))
        if whole is not None and not (last == (whole[2] - whole[1]) * WORD).all():
            raise ValueError(f"{path} holds rows of another length than their texts have.")
        return columns

    def _slot(self, raw: Bytes, index: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        start = null_bytes(len(self.packs) + len(self.singles)) + WORD * index
        return raw[:, start : start + dtype.itemsize].copy().view(dtype)[:, 0]

    @property
    def _first(self) -> int:
        """Where the first array is, or the first text."""
        count = len(self.packs) + len(self.singles)
        return null_bytes(count) + WORD * count

    @property
    def _fixed(self) -> int:
        """Bytes of what is in each row at the same place."""
        return self._first + sum(pack.size for pack in self.packs)


def _texts(words: Words, starts: npt.NDArray[np.intp], slots: Words, missing: npt.NDArray[np.bool_] | None) -> pa.Array:
    """Texts by their rows' starts and their places in them: first as Arrow's views, which point into the words or hold the text."""
    size = slots & _LOW
    at = starts + (slots >> 32) // WORD  # two words follow each row, so there is one after each of its own
    first, second = np.where(size > 0, words[at], 0), np.where(size > WORD, words[at + 1] & _LOW, 0)
    views = np.empty((len(size), 2), np.int64)
    views[:, 0] = size | (first << 32)
    views[:, 1] = np.where(size > _INLINE, (at * WORD) << 32, (first >> 32 & _LOW) | second << 32)
    bits = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    made = pa.Array.from_buffers(pa.string_view(), len(size), [bits, pa.py_buffer(views), pa.py_buffer(words)])
    return made.cast(pa.string())


def _filled(file: Any, flat: Bytes) -> int:
    """Bytes read, which are fewer than there is room for at the file's end only."""
    done = 0
    while done < len(flat):
        read = file.readinto(flat[done:])
        if not read:
            break
        done += read
    return done
