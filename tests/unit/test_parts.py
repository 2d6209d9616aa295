"""Input in parts: every row in exactly one part, whatever the cuts, and files that cannot be read in words."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.data.parts import BLOCK_ROWS, inferred_schema, plan_input, read_part
from raymlops.errors import DataError


def write(path: Path, rows: int, groups: int = 100, first: int = 0) -> Path:
    table = pa.table({"id": range(first, first + rows), "a": [value / 2 for value in range(rows)]})
    pq.write_table(table, path, row_group_size=groups)
    return path


def read(pattern: str | Path, block_rows: int = BLOCK_ROWS, **limits: int) -> tuple[list[list[Any]], Any]:
    source = plan_input([str(pattern)], **limits)
    return [
        [value for table in read_part(part, source, block_rows) for value in table.column(0).to_pylist()]
        for part in source.parts
    ], source


def test_row_groups_are_gathered_into_parts_in_order(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", 1000)
    write(tmp_path / "2.parquet", 250, first=1000)
    found, source = read(tmp_path / "*.parquet", part_rows=300, block_rows=70)
    assert [len(part) for part in found] == [300, 300, 300, 100, 250]
    assert [value for part in found for value in part] == list(range(1250))
    assert [part.rows for part in source.parts] == [300, 300, 300, 100, 250]
    assert sum(part.share for part in source.parts) == pytest.approx(1.0)


def test_blocks_are_never_larger_than_asked_for(tmp_path: Path) -> None:
    source = plan_input([str(write(tmp_path / "1.parquet", 1000, groups=1000))])
    assert max(len(table) for table in read_part(source.parts[0], source, block_rows=64)) == 64


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters='\r\n",'), max_size=6), max_size=30),
    st.integers(1, 40),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_line_is_in_exactly_one_part(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], part_bytes: int, ending: str, ended: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / "lines.csv"
    lines = ["id,word", *(f"{number},{word}" for number, word in enumerate(words))]
    path.write_bytes((ending.join(lines) + ending * ended).encode())
    found, _ = read(path, part_bytes=part_bytes)
    assert [int(value) for part in found for value in part] == list(range(len(words)))


def test_cells_stay_text_and_the_first_lines_tell_their_types(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('id;a;w\n1;0.5;"x; y"\n2;;z\n')
    source = plan_input([str(path)])
    table = next(read_part(source.parts[0], source))
    assert table.to_pylist() == [{"id": "1", "a": "0.5", "w": "x; y"}, {"id": "2", "a": "", "w": "z"}]
    assert [str(field.type) for field in inferred_schema(source)] == ["int64", "double", "string"]


def test_a_compressed_csv_is_one_part(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"id,a\n" + b"".join(b"%d,1\n" % number for number in range(500))))
    found, _ = read(path, part_bytes=10, block_rows=100)
    assert [len(part) for part in found] == [500]


def test_an_empty_parquet_file_has_no_part(tmp_path: Path) -> None:
    found, source = read(write(tmp_path / "none.parquet", 0))
    assert sum(map(len, found)) == 0
    assert source.files[0].rows == 0


def test_no_file_matches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No file matches .*nothing-\*\.parquet"):
        plan_input([str(tmp_path / "nothing-*.parquet")])


def test_an_unreadable_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(DataError, match=r"torn\.parquet cannot be read as parquet: "):
        plan_input([str(tmp_path / "torn.parquet")])


def test_a_damaged_row_group_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.parquet", 1000)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as parquet"):
        read(path)


def test_files_of_other_columns_are_refused_with_the_difference(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", 10)
    pq.write_table(pa.table({"id": [1], "b": [1.0]}), tmp_path / "2.parquet")
    with pytest.raises(
        DataError, match=r"2\.parquet does not have the columns of .*: it lacks 'a' and has 'b' besides"
    ):
        plan_input([str(tmp_path / "*.parquet")])


def test_csv_that_is_empty_or_ragged_or_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv is empty: its first line must name the columns"):
        plan_input([str(tmp_path / "empty.csv")])
    (tmp_path / "ragged.csv").write_text("id,a\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match=r"ragged\.csv cannot be read as csv: .*Expected 2 columns, got 3"):
        read(tmp_path / "ragged.csv")
    (tmp_path / "latin.csv").write_bytes(b"id,a\n1,caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.csv cannot be read as csv"):
        read(tmp_path / "latin.csv")
    (tmp_path / "twice.csv").write_text("id,id\n1,2\n")
    with pytest.raises(DataError, match=r"twice\.csv has 'id' more than once"):
        plan_input([str(tmp_path / "twice.csv")])


def test_a_changed_file_has_another_print(tmp_path: Path) -> None:
    before = plan_input([str(write(tmp_path / "1.parquet", 10))]).files[0]
    after = plan_input([str(write(tmp_path / "1.parquet", 10, first=1))]).files[0]
    assert before.name == after.name
    assert before.print != after.print
