"""A fingerprint of rows that neither their order nor their partitioning changes.

Each value is hashed with its column's name and kind to 128 bits, each row's hash is made of those, and the rows' hashes are
added modulo 2^64 in each half. Addition commutes and counts duplicates (Bellare and Micciancio, "A New Paradigm for
Collision-Free Hashing", 1997, call it AdHash), so partitions are hashed where they lie and their sums are added.

Numbers are hashed by value: ``1``, ``1.0`` and a column that became float for a missing value in one partition are the same; -0 is 0,
NaN is missing. Booleans, texts and times are kinds of their own. It tells chance and mistakes apart, not a forger.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15
_BATCH_ROWS = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPrint:
    """The sum over some rows; ``+`` joins partitions."""

    rows: int = 0
    low: int = 0
    high: int = 0

    def __add__(self, other: ContentPrint) -> ContentPrint:
        return ContentPrint(
            rows=self.rows + other.rows,
            low=(self.low + other.low) % 2**64,
            high=(self.high + other.high) % 2**64,
        )

    def __str__(self) -> str:
        """48 hexadecimal digits: the number of rows, then the sum."""
        return f"{self.rows:016x}{self.high:016x}{self.low:016x}"

    @classmethod
    def of(cls, table: pa.Table | pd.DataFrame) -> ContentPrint:
        """Of an Arrow table or a pandas frame."""
        total = cls()
        table = _table(table)
        for start in range(0, table.num_rows, _BATCH_ROWS):
            low, high = row_hashes(table.slice(start, _BATCH_ROWS))
            total += cls(rows=len(low), low=int(low.sum(dtype=np.uint64)), high=int(high.sum(dtype=np.uint64)))
        return total


def row_hashes(table: pa.Table | pd.DataFrame) -> tuple[Hashes, Hashes]:
    """Two 64-bit hashes of each row, ``(n_rows,)`` each; the order of the columns does not matter."""
    table = _table(table)
    low = np.zeros(table.num_rows, dtype=np.uint64)
    high = np.zeros(table.num_rows, dtype=np.uint64)
    for name in table.column_names:
        first, second = column_hashes(name, table.column(name))
        low += first
        high += second
    return _mixed(low), _mixed(high)


def column_hashes(name: str, column: pa.ChunkedArray | pa.Array) -> tuple[Hashes, Hashes]:
    """Two 64-bit hashes of each value of a column, ``(n_rows,)`` each."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # pyarrow before 18 gives one of no chunks back
        array = pa.array([], array.type)
    kind, bits, more = _bits(array)
    seed = hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=16).digest()
    one, two = (np.uint64(int.from_bytes(part, "little")) for part in (seed[:8], seed[8:]))
    missing = np.asarray(array.is_null(nan_is_null=True))
    low, high = _mixed(bits + one), _mixed(more ^ two)
    absent = hashlib.blake2b(f"missing\0{name}".encode(), digest_size=16).digest()
    low[missing] = int.from_bytes(absent[:8], "little")
    high[missing] = int.from_bytes(absent[8:], "little")
    return low, high


def _table(given: pa.Table | pd.DataFrame) -> pa.Table:
    if isinstance(given, pa.Table):
        return given
    return pa.table({str(name): _arrow(given[name]) for name in given.columns})


def _arrow(series: pd.Series) -> pa.Array:
    try:
        made = pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        made = pa.array([None if pd.isna(v) else f"{type(v).__name__}:{v}" for v in series], pa.string())
    return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made


def _bits(array: pa.Array) -> tuple[str, Hashes, Hashes]:
    """The kind of the values, and twice 64 bits that tell each from others of the kind."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_boolean(kind):
        bits = np.asarray(array.fill_null(False)).astype(np.uint64)
        return "boolean", bits, bits
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # The type's zone is how a time is shown; what is stored is UTC.
        bits = np.asarray(array.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).fill_null(0)).view(np.uint64)
        return "time", bits, bits
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        bits = _number_bits(array)
        return "number", bits, bits
    return "text", *_text_bits(array)


def _number_bits(array: pa.Array) -> Hashes:
    """A double's bits; a whole number that no double holds as itself, beside the doubles' range of whole numbers."""
    if pa.types.is_integer(array.type):
        whole = np.asarray(array.fill_null(0))
        doubles = whole.astype(np.float64)
        bits = (doubles + 0.0).view(np.uint64).copy()
        large = np.abs(doubles) > 2.0**53
        if large.any():
            bits[large] = _mixed(whole[large].astype(np.uint64))
        return bits
    doubles = np.asarray(array.cast(pa.float64(), safe=False).fill_null(0.0)) + 0.0  # -0.0 + 0.0 is 0.0
    bits = doubles.view(np.uint64).copy()
    large = (np.abs(doubles) > 2.0**53) & (np.abs(doubles) < 2.0**63)
    if large.any():
        bits[large] = _mixed(doubles[large].astype(np.int64).view(np.uint64))
    return bits


def _text_bits(array: pa.Array) -> tuple[Hashes, Hashes]:
    """Each distinct text is hashed once, by BLAKE2b to 128 bits."""
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        texts = [None if value is None else f"{type(value).__name__}:{value}" for value in array.to_pylist()]
        array = pa.array(texts, pa.string())
    coded = pc.dictionary_encode(array)
    digests = b"".join(
        hashlib.blake2b((text or "").encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in coded.dictionary.to_pylist()
    )
    words = np.frombuffer(digests or bytes(16), dtype="<u8").reshape(-1, 2)
    codes = np.asarray(coded.indices.fill_null(0))
    return words[codes, 0].astype(np.uint64), words[codes, 1].astype(np.uint64)


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)."""
    z = values + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = z ^ (z >> np.uint64(31))
    return mixed
