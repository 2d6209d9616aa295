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
from raymlops.data.arrays import training_arrays
from raymlops.data.packed import Pack, unpacked
from raymlops.data.row_bytes import KINDS, RowBytes

PACK = Pack(name="packed float", kind="float32", columns=("a", "b", "c"))
HELD = {"date": "<i4", "timestamp": "<i8", "timestamp_ntz": "<i8", "float": "<f4", "double": "<f8", "int": "<i4"}
HELD |= {"bigint": "<i8", "smallint": "<i2", "tinyint": "<i1", "boolean": "?"}
ENDS_WITH = "0123456789abcdef"
TEXTS = ["", "a", "12345678", "123456789", "twelve bytes", "thirteen byte", "é ☃ of more than twelve", "\n\0", None]


def words_of(bits: list[bool]) -> bytes:
    return sum(1 << index for index, bit in enumerate(bits) if bit).to_bytes(8 * -(-len(bits) // 64), "little")


def row_of(packed: list[list[float | None]], singles: list[tuple[str, Any]]) -> bytes:
    """An UnsafeRow: null bits, a word a column, the arrays (count in 8 bytes, null bits, values padded to 8), the texts."""
    head = words_of([False] * len(packed) + [value is None for _, value in singles])
    after, slots, at = b"", b"", len(head) + 8 * (len(packed) + len(singles))
    for values in packed:
        content = np.array([0 if v is None else v for v in values], "<f4").tobytes()
        array = len(values).to_bytes(8, "little") + words_of([v is None for v in values]) + content
        array += bytes(-len(array) % 8)
        slots += ((at + len(after)) << 32 | len(array)).to_bytes(8, "little")
        after += array
    for kind, value in singles:
        if kind == "string":
            text = (value or "").encode()
            slots += (0 if value is None else (at + len(after)) << 32 | len(text)).to_bytes(8, "little")
            after += text + bytes(-len(text) % 8)
        else:
            slots += np.array([value or 0], HELD[kind]).tobytes().ljust(8, b"\0")
    return head + slots + after


@pytest.mark.parametrize("texts", [False, True])
def test_every_type_with_and_without_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: bool) -> None:
    monkeypatch.setattr(row_bytes, "_TEXT_BATCH_BYTES" if texts else "_BATCH_BYTES", 4000)  # some batches
    rng = np.random.default_rng(0)
    kinds = [kind for kind in KINDS if texts or kind != "string"] * 8  # more than one word of null bits
    singles = tuple((f"{kind} {i}", kind) for i, kind in enumerate(kinds))
    form = RowBytes(packs=(PACK,), singles=singles, ends_with=ENDS_WITH if texts else "\n")
    packed: list[list[float | None]] = [
        [None if rng.random() < 0.3 else float(v) for v in range(i, i + 3)] for i in range(50)
    ]
    rows: list[list[tuple[str, Any]]] = [
        [
            (kind, rng.choice(TEXTS) if kind == "string" else None if rng.random() < 0.3 else int(rng.integers(0, 2)))
            for kind in kinds
        ]
        for _ in range(len(packed))
    ]
    rows[0] = [(kind, "" if kind == "string" else 0) for kind in kinds]
    rows[1] = [(kind, "long" * 2000 if kind == "string" else 1) for kind in kinds]  # longer than a batch
    path = tmp_path / "part"
    path.write_bytes(b"".join(row_of([a], b) + form.ends_with.encode() for a, b in zip(packed, rows, strict=True)))
    tables = list(pickle.loads(pickle.dumps(form)).tables(str(path)))
    assert len(tables) > 1
    table = unpacked(pa.concat_tables(tables), ["c", "a", *(name for name, _ in singles)])
    table.validate(full=True)
    for place, name in ((2, "c"), (0, "a")):
        numbers = [np.nan if values[place] is None else values[place] for values in packed]
        np.testing.assert_array_equal(table[name].to_numpy(), numbers)
    epoch = dt.datetime(1970, 1, 1)
    for index, (name, kind) in enumerate(singles):
        assert table.schema.field(name).type == KINDS[kind]
        expected: list[Any] = [row[index][1] for row in rows]
        if kind == "date":
            expected = [None if v is None else epoch.date() + dt.timedelta(days=v) for v in expected]
        elif kind.startswith("timestamp"):
            zone = dt.timezone.utc if kind == "timestamp" else None
            moments = [None if v is None else epoch + dt.timedelta(microseconds=v) for v in expected]
            expected = [None if v is None else v.replace(tzinfo=zone) for v in moments]
        assert table[name].to_pylist() == expected, name


def test_texts_become_codes_of_one_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_bytes, "_TEXT_BATCH_BYTES", 600)
    form = RowBytes(packs=(), singles=(("k", "string"), ("y", "int")), ends_with=ENDS_WITH)
    texts = [f"category number {i % 7}" for i in range(100)]
    rows = [row_of([], [("string", text), ("int", i)]) for i, text in enumerate(texts)]
    path = tmp_path / "part"
    path.write_bytes(b"".join(row + ENDS_WITH.encode() for row in rows))
    made = training_arrays(form.tables(str(path)), label="y")
    assert made.categories == {"k": tuple(f"category number {i}" for i in range(7))}
    np.testing.assert_array_equal(made.x[:, 0], np.arange(100) % 7)


def test_bytes_that_are_no_such_rows_are_refused(tmp_path: Path) -> None:
    form = RowBytes(packs=(PACK,), singles=(("y", "int"),))
    path = tmp_path / "part"
    good = row_of([[1.0, None, 2.0]], [("int", 3)]) + b"\n"
    path.write_bytes(good + good[:-1])
    with pytest.raises(ValueError, match=f"is not of whole rows of {len(good)} bytes"):
        list(form.tables(str(path)))
    path.write_bytes(good[8:] + good[:8])
    with pytest.raises(ValueError, match="holds no rows of 'packed float'"):
        list(form.tables(str(path)))
    path.write_bytes(b"")
    assert list(form.tables(str(path))) == []
    form = RowBytes(packs=(), singles=(("s", "string"),), ends_with=ENDS_WITH)
    row = row_of([], [("string", "of some length")])
    path.write_bytes(row + ENDS_WITH.encode() + row)
    with pytest.raises(ValueError, match="is not of whole rows"):
        list(form.tables(str(path)))
    path.write_bytes(row + bytes(8) + ENDS_WITH.encode())
    with pytest.raises(ValueError, match="holds rows of another length than their texts have"):
        list(form.tables(str(path)))
