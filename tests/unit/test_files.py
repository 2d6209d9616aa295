"""Files without a JVM: rows, types and refusals. That Spark gives the same is shown in tests/spark."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from raymlops.data.files import header_of, is_small, json_names, read_files, read_url
from raymlops.errors import DataError


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_csv_takes_the_narrowest_kind_that_fits_every_cell(tmp_path: Path) -> None:
    text = 'n, f ,b,d,z,s,none\n1, 1.5 ,TRUE,2026-01-02,2026-01-02T03:04:05Z,"a, ""b""",\n2,,false,2026-01-03 04:05:06,2026-01-02T03:04:05+02:00, 7x ,""\n'
    table = read_files([write(tmp_path, "a.csv", text)], "csv")
    assert {field.name: str(field.type) for field in table.schema} == {
        "n": "int64",
        "f": "double",
        "b": "bool",
        "d": "timestamp[us]",
        "z": "timestamp[us]",
        "s": "string",
        "none": "string",
    }
    assert table["s"].to_pylist() == ['a, "b"', "7x"]
    assert table["none"].null_count == 2
    assert [str(at) for at in table["z"].to_pylist()] == ["2026-01-02 03:04:05", "2026-01-02 01:04:05"]


def test_types_of_csv_are_settled_over_all_files(tmp_path: Path) -> None:
    files = [write(tmp_path, "a.csv", "k;v\n1;2\n"), write(tmp_path, "b.csv", "v;k\nx;3\n")]
    table = read_files(files, "csv")
    assert table.to_pydict() == {"k": [1, 3], "v": ["2", "x"]}


@pytest.mark.parametrize("form", ["json", "orc", "parquet"])
def test_other_formats_give_plain_types(tmp_path: Path, form: str) -> None:
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", None], "at": ["2026-01-01", "2026-01-02"], "f": [0.5, None]})
    path = tmp_path / f"x.{form}"
    if form == "json":
        path.write_text(frame.to_json(orient="records", lines=True))
    elif form == "orc":
        orc.write_table(pa.Table.from_pandas(frame.astype({"n": "int32"})), str(path))
    else:
        pq.write_table(pa.Table.from_pandas(frame.astype({"n": "int8", "s": "category"})), path)
    table = read_files([str(path)], form)
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "string", "double"]
    assert table["s"].to_pylist() == ["a", None]


def test_a_file_without_a_value_in_a_column_says_nothing_of_its_type(tmp_path: Path) -> None:
    lines = ('{"a": null, "b": 1}\n', '{"a": 2.5, "b": 2}\n', '{"a": 3, "b": null}\n')
    files = [write(tmp_path, f"{number}.jsonl", line) for number, line in enumerate(lines)]
    assert read_files(files, "json").to_pydict() == {"a": [None, 2.5, 3.0], "b": [1, 2, None]}


def test_compressed_json_and_csv(tmp_path: Path) -> None:
    for name, text in (("x.jsonl.gz", b'{"b": 1, "a": "t"}\n'), ("x.csv.gz", b"b,a\n1,t\n")):
        (tmp_path / name).write_bytes(gzip.compress(text))
        assert read_url(str(tmp_path / name), "json" if "json" in name else "csv").to_pydict() == {"b": [1], "a": ["t"]}
    assert json_names(str(tmp_path / "x.jsonl.gz")) == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("e.csv", "", "e.csv cannot be read as csv: it has no header line"),
        ("t.csv", "a,b,a\n1,2,3\n", "its header names 'a' more than once"),
        ("r.csv", "a,b\n1,2\n3\n", "r.csv cannot be read as csv: .*Expected 2 columns, got 1"),
        ("p.parquet", "PAR1 this is none", "p.parquet cannot be read as parquet"),
        ("o.orc", "no", "o.orc cannot be read as orc"),
        ("n.json", '{"a": {"b": 1}}\n', "n.json: column 'a' holds struct<b: int64>; a model takes numbers"),
        ("d.json", "[1, 2]", "d.json cannot be read as json"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_files([write(tmp_path, name, content)], name.rsplit(".", 1)[-1])


def test_columns_that_differ_between_files_are_named(tmp_path: Path) -> None:
    files = [write(tmp_path, "a.csv", "x,y\n1,2\n"), write(tmp_path, "b.csv", "x,z\n1,2\n")]
    with pytest.raises(DataError, match=r"b\.csv lacks 'y' and adds 'z' compared with .*a\.csv"):
        read_files(files, "csv")


def test_a_cell_that_does_not_read_as_the_first_file_does(tmp_path: Path) -> None:
    schema = read_url(write(tmp_path, "a.csv", "x,y\n1,2\n"), "csv").schema
    with pytest.raises(DataError, match=r"column 'y' reads as number in the first file, row 1 here has 'two'"):
        read_url(write(tmp_path, "b.csv", "x,y\n1,2\n1,two\n"), "csv", schema)


def test_size_decides_and_compressed_text_counts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymlops.data.files.SMALL_BYTES", 100)
    small, packed = write(tmp_path, "a.csv", "x" * 60), write(tmp_path, "b.csv.gz", "x" * 30)
    assert is_small([small], "csv")
    assert not is_small([small, small], "csv")
    assert not is_small([packed], "csv")


def test_a_header_with_a_byte_order_mark() -> None:
    assert header_of("\ufeffa;b\r\n1;2".encode(), ";") == ["a", "b"]
