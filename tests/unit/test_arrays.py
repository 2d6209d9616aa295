"""Arrow blocks into training arrays: what stays, what is coded, what is refused, and how much memory it takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymlops.data.arrays import Growing, training_arrays
from raymlops.data.columns import encode_into
from raymlops.data.handed import part_path, plain_texts, read_part, write_part
from raymlops.data.packed import Pack, unpacked
from raymlops.data.schema import DataContract, learn_contract
from raymlops.errors import DataError


def table(texts: list[str | None], **more: object) -> pa.Table:
    return pa.table({"n": np.arange(len(texts), dtype=np.float32), "c": pa.array(texts, pa.string()), **more})


def test_every_kind_of_column() -> None:
    first = pa.table(
        {
            "f": pa.array([1.5, None], pa.float32()),
            "i": pa.array([3, None], pa.int32()),
            "b": [True, None],
            "d": pa.array([1, 2], pa.int64()).cast(pa.decimal128(21, 2)),
            "inf": [np.inf, 1e300],
            "c": ["b", "a"],
            "t": pa.array([0, None], pa.timestamp("us", "UTC")),
            "s": ["free", "text"],
            "y": ["no", "yes"],
        }
    )
    second = first.set_column(5, "c", pa.array(["c", None]).dictionary_encode())
    made = training_arrays([first, second], label="y", texts=("s",))
    assert made.names == ("f", "i", "b", "d", "inf", "c")
    assert made.x.dtype == np.float32
    assert made.x.flags.c_contiguous
    nan = np.nan
    expected = [
        [1.5, 3, 1, 1, nan, 1],
        [nan, nan, nan, 2, nan, 0],
        [1.5, 3, 1, 1, nan, 2],
        [nan, nan, nan, 2, nan, nan],
    ]
    np.testing.assert_array_equal(made.x, np.array(expected, np.float32))
    assert made.categories == {"c": ("a", "b", "c"), "y": ("no", "yes")}
    assert made.label is not None
    assert made.label.tolist() == [0, 1, 0, 1]
    assert made.times["t"].tolist()[0].isoformat() == "1970-01-01T00:00:00"
    assert np.isnat(made.times["t"]).tolist() == [False, True, False, True]
    assert made.texts["s"].to_pylist() == ["free", "text", "free", "text"]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_codes_are_of_one_dictionary_whichever_block_comes_first(order: list[int]) -> None:
    blocks = [table(["z", "a"]), table(["m", None]), table(["a", "b"])]
    made = training_arrays(blocks[index] for index in order)
    texts = [text for index in order for text in blocks[index]["c"].to_pylist()]
    known = made.categories["c"]
    assert known == ("a", "b", "m", "z")
    assert [None if np.isnan(code) else known[int(code)] for code in made.x[:, 1]] == texts


@pytest.mark.parametrize(
    ("tables", "options", "sentence"),
    [
        ([], {}, "No rows were handed over"),
        ([table(["a"]), table(["a"], z=[1])], {}, "The blocks differ in columns 'z'"),
        ([table(["a"])], {"label": "m"}, "The rows have no column 'm'"),
        ([table(["a"])], {"texts": ("b",)}, "The rows have no column 'b'"),
        ([table(["a"])], {"label": "c", "texts": ("c",)}, r"The label 'c' is to be left as text \(texts=\)"),
        (
            [pa.table({"at": pa.array([0], pa.timestamp("us"))})],
            {"label": "at"},
            "The label 'at' is a time: a label is",
        ),
        ([table(["a"], z=[[1]])], {}, r"Column 'z' is of type list<.*>, which no model takes"),
        (
            [table([f"{i}-{j}" for j in range(400)]) for i in range(3)],
            {},
            r"Column 'c' holds more than 1000 distinct texts: .* leave it as text \(texts=\)",
        ),
    ],
)
def test_what_cannot_be_an_array_is_named(tables: list[pa.Table], options: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        training_arrays(tables, **options)


def test_memory_grows_at_its_end_and_keeps_what_it_holds() -> None:
    growing = Growing(3, "float32")
    for step in range(40):
        growing.take(50_000)[:] = step
    whole = growing.array()
    assert whole.shape == (2_000_000, 3)
    np.testing.assert_array_equal(whole[::50_000, 2], np.arange(40, dtype=np.float32))


def batches(texts: list[list[str | None]]) -> Iterator[pa.RecordBatch]:
    for part in texts:
        yield from table(part).to_batches()


def test_a_partition_is_written_once_and_texts_that_repeat_as_codes(tmp_path: Path) -> None:
    folder = str(tmp_path / "handed")
    texts = [["a", "b", "a", "b", None], ["c"] * 3, ["e", "f", "g"]]
    assert write_part(folder, 7, batches(texts)) == 11
    assert write_part(folder, 7, batches([["other"]])) == 1
    read = read_part(part_path(folder, 7))
    assert pa.types.is_dictionary(read.schema.field("c").type)
    assert plain_texts(read)["c"].to_pylist() == [text for part in texts for text in part]
    assert write_part(folder, 8, batches([["u", "v", "w"]])) == 3
    assert read_part(part_path(folder, 8)).schema.field("c").type == pa.string()
    assert write_part(folder, 9, iter(())) == 0
    assert read_part(part_path(folder, 9)).num_rows == 0
    assert sorted(path.name for path in Path(folder).iterdir()) == ["000007.arrow", "000008.arrow", "000009.arrow"]


def as_spark_holds(rows: list[list[float | int | None]], kind: str) -> pa.Array:
    """Arrays of numbers as UnsafeArrayData: the count, a bit a null in whole words, the values, padded to 8 bytes."""
    made = []
    for row in rows:
        nulls = sum(1 << index for index, value in enumerate(row) if value is None)
        words = -(-len(row) // 64)
        values = np.array([0 if value is None else value for value in row], kind).tobytes()
        content = len(row).to_bytes(8, "little") + nulls.to_bytes(8 * words, "little") + values
        made.append(content + bytes(-len(content) % 8))
    return pa.array(made, pa.binary())


@pytest.mark.parametrize(
    ("kind", "width"), [("float32", 3), ("float32", 65), ("float64", 3), ("int32", 5), ("int64", 64)]
)
def test_packed_columns_come_back_as_they_were(tmp_path: Path, kind: str, width: int) -> None:
    rng = np.random.default_rng(width)
    rows = [[None if rng.random() < 0.2 else int(rng.integers(-9, 9)) for _ in range(width)] for _ in range(40)]
    pack = Pack(name="packed", kind=kind, columns=tuple(f"c{i}" for i in range(width)))
    raw = as_spark_holds(rows, kind)
    texts = pa.array(["a", "b"] * 20)
    batches = [
        pa.RecordBatch.from_pydict({"packed": raw[start : start + 10], "s": texts[start : start + 10]})
        for start in (0, 10, 20, 30)
    ]
    write_part(str(tmp_path), 0, batches, [pack])
    read = read_part(part_path(str(tmp_path), 0))
    names = ["c1", "s", "c0", *pack.columns[2:]]
    table = plain_texts(unpacked(read, names))
    assert table.column_names == names
    assert table.schema.field("c1").type == pa.from_numpy_dtype(np.dtype(kind))
    plain = pa.table({n: texts if n == "s" else pa.array([row[int(n[1:])] for row in rows], kind) for n in names})
    for name in pack.columns:
        np.testing.assert_array_equal(table[name].to_pandas(), plain[name].to_pandas())
    packed, single = training_arrays([read], label="c2", names=names), training_arrays([plain], label="c2")
    assert packed.names == single.names
    np.testing.assert_array_equal(packed.x, single.x)
    np.testing.assert_array_equal(packed.label, single.label)


def test_whole_numbers_that_doubles_may_not_hold_are_settled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = 2**60 + np.arange(500)
    contract = learn_contract(pd.DataFrame({"id": ids, "y": ids % 2}), "y")
    asked: list[int] = []
    encode = DataContract.encode

    def counted(self: DataContract, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
        asked.append(len(frame))
        return encode(self, frame)

    monkeypatch.setattr(DataContract, "encode", counted)
    x = np.zeros((500, 1), dtype=np.float32)
    assert not encode_into(contract, pa.RecordBatch.from_pydict({"id": ids}), x)
    assert asked == [500]
    np.testing.assert_array_equal(x[:, 0], ids.astype(np.float32))


def test_bytes_that_are_no_arrays_are_refused() -> None:
    pack = Pack(name="p", kind="float32", columns=("a", "b", "c"))
    with pytest.raises(ValueError, match="5 bytes are not 1 of Spark's arrays of 3 float32"):
        pack.of_spark(pa.array([b"12345"], pa.binary()))


def test_one_row_with_a_null_from_memory_that_may_not_be_written_to() -> None:
    pack = Pack(name="p", kind="float32", columns=("a", "b", "c"))
    batch = pa.RecordBatch.from_pydict({"p": as_spark_holds([[1.0, None, 3.0]], "float32")})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    received = pa.ipc.open_stream(pa.py_buffer(sink.getvalue().to_pybytes())).read_next_batch()
    values = pack.of_spark(received.column(0))
    made = training_arrays([pa.Table.from_arrays([values], schema=pa.schema([pack.field]))])
    np.testing.assert_array_equal(made.x, [[1.0, np.nan, 3.0]])


def test_infinities_in_packed_columns_count_as_missing() -> None:
    pack = Pack(name="p", kind="float64", columns=("a", "b", "c"))
    values = pack.of_spark(as_spark_holds([[np.inf, 1e300, 2.0]], "float64"))
    made = training_arrays([pa.Table.from_arrays([values], schema=pa.schema([pack.field]))])
    np.testing.assert_array_equal(made.x, [[np.nan, np.nan, 2.0]])


def test_an_attempt_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from batches([["a"]])
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        write_part(str(tmp_path), 0, broken())
    assert not list(tmp_path.iterdir())


BOUNDED = """
import resource, sys
import numpy as np, pyarrow as pa
from raymlops.data.arrays import training_arrays
from raymlops.data.handed import part_path, read_part, write_part

ROWS, COLUMNS, PARTS = 65_536, 16, 40
folder = sys.argv[1]

def made(number):
    rng = np.random.default_rng(number)
    for _ in range(4):
        columns = {f"c{i}": rng.standard_normal(ROWS // 4, dtype=np.float32) for i in range(COLUMNS)}
        yield pa.RecordBatch.from_pydict(columns)

def read():
    for number in range(PARTS):
        write_part(folder, number, made(number))
        yield read_part(part_path(folder, number))

data = ROWS * COLUMNS * PARTS * 4
before = int(open("/proc/self/statm").read().split()[0]) * 4096
matrix = data if sys.argv[2] == "arrays" else 0
# The address space is bounded: what goes past it is an error, not a figure. Twice a block beside the matrix, and the allocators' arenas.
limit = before + 2 * matrix + 2 * data // PARTS + (96 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if matrix:
    x = training_arrays(read()).x
    assert x.shape == (ROWS * PARTS, COLUMNS)
    print(float(x[-1, 0]))
else:
    print(sum(float(table["c0"][-1].as_py()) for table in read()))
"""


@pytest.mark.parametrize("way", ["arrays", "stream"])
def test_blocks_do_not_pile_up_in_memory(tmp_path: Path, way: str) -> None:
    """167 MB in 40 blocks: streamed within about 100 MB; as arrays within the matrix, its growth and a block."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path), way], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.isfinite(float(done.stdout))
