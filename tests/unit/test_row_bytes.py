"""Rows as the bytes Spark holds them in, against the values they were made of."""

from __future__ import annotations

import datetime as dt
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlops.data import row_bytes
from raymlops.data.packed import Pack, unpacked
from raymlops.data.row_bytes import KINDS, RowBytes

PACK = Pack(name="packed float", kind="float32", columns=("a", "b", "c"))
HELD = {"date": "<i4", "timestamp": "<i8", "timestamp_ntz": "<i8", "float": "<f4", "double": "<f8", "int": "<i4"}
HELD |= {"bigint": "<i8", "smallint": "<i2", "tinyint": "<i1", "boolean": "?"}


def words_of(bits: list[bool]) -> bytes:
    return sum(1 << index for index, bit in enumerate(bits) if bit).to_bytes(8 * -(-len(bits) // 64), "little")


def row_of(packed: list[list[float | None]], singles: list[tuple[str, Any]]) -> bytes:
    """An UnsafeRow: null bits, a word a column, then the arrays, each 8 bytes of count, null bits, values padded to 8."""
    head = words_of([False] * len(packed) + [value is None for _, value in singles])
    arrays, slots, at = b"", b"", len(head) + 8 * (len(packed) + len(singles))
    for values in packed:
        content = np.array([0 if v is None else v for v in values], "<f4").tobytes()
        array = len(values).to_bytes(8, "little") + words_of([v is None for v in values]) + content
        array += bytes(-len(array) % 8)
        slots += ((at + len(arrays)) << 32 | len(array)).to_bytes(8, "little")
        arrays += array
    for kind, value in singles:
        slots += np.array([value or 0], HELD[kind]).tobytes().ljust(8, b"\0")
    return head + slots + arrays + b"\n"


def test_every_type_with_and_without_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_bytes, "_BATCH_BYTES", 2000)  # some batches
    rng = np.random.default_rng(0)
    kinds = list(KINDS) * 8  # more than one word of null bits
    form = RowBytes(packs=(PACK,), singles=tuple((f"{kind} {i}", kind) for i, kind in enumerate(kinds)))
    packed: list[list[float | None]] = [
        [None if rng.random() < 0.3 else float(v) for v in range(i, i + 3)] for i in range(50)
    ]
    singles = [
        [(kind, None if rng.random() < 0.3 else int(rng.integers(0, 2))) for kind in kinds] for _ in range(len(packed))
    ]
    singles[0] = [(kind, 0) for kind in kinds]
    made = [row_of([values], others) for values, others in zip(packed, singles, strict=True)]
    path = tmp_path / "part"
    path.write_bytes(b"".join(made))
    assert {len(row) for row in made} == {form.size}
    tables = list(pickle.loads(pickle.dumps(form)).tables(str(path)))
    assert len(tables) > 1
    table = unpacked(pa.concat_tables(tables), ["c", "a", *(name for name, _ in form.singles)])
    for place, name in ((2, "c"), (0, "a")):
        expected = [np.nan if values[place] is None else values[place] for values in packed]
        np.testing.assert_array_equal(table[name].to_numpy(), expected)
    epoch = dt.datetime(1970, 1, 1)
    for index, (name, kind) in enumerate(form.singles):
        assert table.schema.field(name).type == KINDS[kind]
        expected = [others[index][1] for others in singles]
        found = table[name].to_pylist()
        if kind == "date":
            expected = [None if v is None else epoch.date() + dt.timedelta(days=v) for v in expected]
        elif kind.startswith("timestamp"):
            zone = dt.timezone.utc if kind == "timestamp" else None
            moments = [None if v is None else epoch + dt.timedelta(microseconds=v) for v in expected]
            expected = [None if v is None else v.replace(tzinfo=zone) for v in moments]
        assert found == expected, name


def test_bytes_that_are_no_such_rows_are_refused(tmp_path: Path) -> None:
    form = RowBytes(packs=(PACK,), singles=(("y", "int"),))
    path = tmp_path / "part"
    good = row_of([[1.0, None, 2.0]], [("int", 3)])
    path.write_bytes(good + good[:-1])
    with pytest.raises(ValueError, match=f"is not of whole rows of {form.size} bytes"):
        list(form.batches(str(path)))
    path.write_bytes(good[8:] + good[:8])
    with pytest.raises(ValueError, match="holds no rows of 'packed float'"):
        list(form.batches(str(path)))
    path.write_bytes(b"")
    assert list(form.batches(str(path))) == []
