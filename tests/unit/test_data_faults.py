"""Every data input that is known to break pipelines, and the sentence it gets: from the assessment, the split or a reader."""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.cli_target import read_frame
from raymlops.data.assess import assess
from raymlops.data.assess.spec import CHECKS, QUICK_MODELS
from raymlops.data.contract import Declared
from raymlops.data.schema import Others, learn_contract
from raymlops.errors import ContractViolation, DataError
from raymlops.testing.faulty_tables import FAULTS
from raymlops.testing.tables import NOW, Case, mixed

# What each faulty table's message says. What quick models find is in tests/property/test_assess_tables.py.
SENTENCES = {
    "no_rows": "There are 0 rows; at least 200 are needed",
    "one_row": "There are 1 rows; at least 200 are needed",
    "few_rows": "There are 120 rows; at least 200 are needed",
    "one_class": "The label 'y' holds one class only: 1",
    "rare_class": "Class 1 of 'y' has 8 rows; at least 20 of each class are needed",
    "imbalance": r"Class 1 of 'y' is 0\.\d+% of the rows",
    "class_spelt_twice": "Classes of 'y' differ only by case or blanks: 'ash', 'ash '",
    "label_missing": "The label 'y' is missing in 40 rows",
    "label_infinite": "The label 'y' holds values that are not finite numbers in 5 rows",
    "empty_column": "Column 'note' is empty",
    "mostly_missing": r"Column 'rating' is missing in 7\d\.\d% of the rows",
    "constant_column": "These columns are constant: 'currency'",
    "one_key_99_percent": r"Column 'shop' is 'unknown' in 99\.\d+% of the rows",
    "skewed_key": r"Key 'customer' has \d+ values; 0 has 99\.\d% of the rows",
    "infinities": "Column 'price' is infinite in 8 rows",
    "enormous": r"Column 'price' holds 8 values larger than a float32 takes \(3.4e38\), up to 1e\+308",
    "slipped_unit": "Column 'size' has 15 values far outside: all others lie between",
    "code_for_missing": r"Column 'rating' is -999 in \d\.\d% of the rows, far from all other values",
    "negative_durations": "Column 'duration_minutes' is negative in 40 rows",
    "end_before_start": "Column 'trip_end' lies before 'trip_start' in 60 rows: a negative duration",
    "mixed_types": r"Column 'price' mixes types \(3960 float, 40 str\); for example 'n/a'",
    "numbers_as_text": r"Column 'price' is text, but 99\.0% of its values are numbers: all but 'unknown'",
    "wrong_encoding": "Column 'city' holds texts decoded with the wrong character set in 3 of its 6 values",
    "spelt_in_several_ways": "Values of column 'city' differ only by case or blanks: ",
    "category_explosion": r"Column 'item' holds \d{4} distinct texts in 4000 rows",
    "identifier": "Column 'order_id' has a value of its own in each of the 4000 rows: it names the row",
    "more_columns_than_rows_can_tell": "There are 205 input columns for 500 rows",
    "duplicated_rows": r"2\d\.\d% of the rows repeat another row",
    "test_rows_in_train": r"\d\d\.\d% of the rows a split would test on are in train too",
    "duplicated_ids": "Identifier 'order_id' is repeated in 40 of 4000 rows",
    "duplicated_column": "These columns hold the same values: 'price' and 'net_price'",
    "label_copied": "Column 'refunded' alone predicts the label 'y' .*: it leaks the answer",
    "label_in_other_units": "Column 'log_tax' alone predicts the label 'y' .*: it leaks the answer",
    "label_in_parts": "The label 'y' is a sum of 'land', 'building'",
    "known_only_later": r"'case_closed_at' lies after the row's time 'at' in 100\.0% of the rows",
    "dates_in_the_future": "'at' lies in the future in 12 rows, up to 2026",
    "clock_changes": "'at' repeats or skips an hour on 2025-10-26: local time without a zone",
    "mixed_offsets": r"'at' mixes offsets from UTC: \+00:00, \+01:00",
    "month_missing": r"The longest time without a row is 3\d days, from 2025-11-(09|10)",
    "stale": "The newest row is of 2025-11-.*at most 7 days is asked for",
    "unit_changed": r"Column 'price' moved: its newest quarter is 0\.\d+ away from its older rows",
    "label_counted_otherwise": r"The label's newest quarter is 0\.\d+ away from its older rows",
    "no_longer_filled_in": r"Column 'rating' stops being filled in: missing in \d+% of the oldest and 100% of the newest",
    "slices_too_small": r"\d slices of 'country' have fewer than 30 expected test rows: 'country=",
}
MODELLED = ("filled_after_the_outcome", "nothing_to_learn", "mostly_unrelated", "more_rows_would_help")


def test_every_faulty_table_has_its_sentence() -> None:
    assert set(SENTENCES) | set(MODELLED) == set(FAULTS)
    assert not set(SENTENCES) & set(MODELLED)


def said(case: Case) -> str:
    """What the check that should name the fault says, the others being off."""
    kept = {str(case.check).partition(":")[0], "label"}
    spec = case.spec.without(*(name for name in CHECKS if name not in kept))
    found = assess(case.frame, case.label, case.time, case.task, spec=spec, now=NOW)
    assert case.check is not None
    hits = [
        check for check in found.checks if check.verdict in ("warn", "fail") and case.check in (check.name, check.check)
    ]
    assert hits, [check.name for check in found.checks if check.verdict in ("warn", "fail")]
    assert all(check.advice for check in hits)
    return " ".join(check.message for check in hits)


def made(name: str, seed: int = 11) -> Case:
    return FAULTS[name](np.random.default_rng((seed, list(FAULTS).index(name))))


@pytest.mark.parametrize("name", SENTENCES)
def test_a_fault_is_named(name: str) -> None:
    assert_says(said(made(name)), SENTENCES[name])


def assert_says(message: str, sentence: str) -> None:
    assert re.search(sentence, message), message


# --- columns between then and now -----------------------------------------------------------------------


def test_repeated_and_absent_columns() -> None:
    frame = mixed(np.random.default_rng(0), 300)
    twice = pd.concat([frame, frame[["price"]]], axis=1)
    assert "Columns 'price' appear more than once" in assess(twice, "y").failures[0].message
    with pytest.raises(DataError, match=r"no label column 'z'\. Known: city, days"):
        assess(frame, "z")
    assert "no column besides 'y'" in assess(frame[["y"]], "y").failures[0].message


CHANGES: Mapping[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "removed": (lambda f: f.drop(columns="price"), r"column 'price': expected to be there, got no such column\."),
    "renamed": (
        lambda f: f.rename(columns={"price": "prices"}),
        "column 'price': .*no such column.* Did you mean 'prices'",
    ),
    "retyped": (lambda f: f.assign(price=f.price.astype(str)), r"column 'price': expected number, got '\d"),
    "added": (lambda f: f.assign(coupon=1.0), "column 'coupon'"),
    "missing now": (
        lambda f: f.assign(price=f.price.where(f.index != 5)),
        r"column 'price': expected no nulls, got nan",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_column_that_is_not_what_it_was(change: str) -> None:
    """Against the contract of the first data set, which is enforced on the next; the order of columns says nothing."""
    frame = mixed(np.random.default_rng(0), 300)
    others: Others = "refuse" if change == "added" else "learn"
    kept = replace(Declared.of(learn_contract(frame, "y")), others=others)
    make, sentence = CHANGES[change]
    with pytest.raises(ContractViolation, match=sentence):
        kept.over(make(frame), "y", time=None, now=NOW)
    again, _ = kept.over(frame[frame.columns[::-1]], "y", time=None, now=NOW)
    first = learn_contract(frame, "y")
    by_name = [again.names.index(name) for name in first.names]
    np.testing.assert_array_equal(again.encode(frame)[:, by_name], first.encode(frame))


def test_types_that_no_model_takes() -> None:
    frame = mixed(np.random.default_rng(0), 300)
    odd = frame.assign(tags=[["a"]] * 300, raw=[b"x"] * 300, paid=pd.Timestamp("2026-01-01"), took=pd.Timedelta("1h"))
    found = {check.name: check for check in assess(odd, "y", now=NOW).checks}
    assert found["types:tags"].verdict == "fail"
    assert found["types:tags"].message == "Column 'tags' holds values of type list, which models do not take."
    assert found["types:raw"].verdict == "fail"
    assert (found["types:paid"].verdict, found["types:took"].verdict) == ("warn", "warn")


# --- readers --------------------------------------------------------------------------------------------


def read(path: Path | str) -> pd.DataFrame:
    return read_frame(str(path), "y", None, ())


@pytest.fixture
def table() -> pa.Table:
    return pa.table({"x": [1.0, 2.0, 3.0], "name": ["æ", "b", "c"], "y": [0, 1, 0]})


def corrupt_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-60:-8] = b"\0" * 52
    path.write_bytes(bytes(content))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


BROKEN: Mapping[str, Callable[[Path], None]] = {"footer": corrupt_footer, "truncated": truncated, "empty": empty}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_parquet_file_is_named(tmp_path: Path, table: pa.Table, how: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    BROKEN[how](tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet: "):
        read(tmp_path)


def test_a_file_that_vanishes_between_listing_and_reading(
    tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymlops.data.sources import FileSource

    for name in ("a", "b"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    listed = FileSource(str(tmp_path), label="y").expand()
    (tmp_path / "b.parquet").unlink()
    monkeypatch.setattr(FileSource, "expand", lambda self: listed)
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet: .*(No such file|not found)"):
        read(tmp_path)


def test_files_of_different_columns_or_types(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.drop_columns(["name"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet"):
        read(tmp_path)
    pq.write_table(table.set_column(0, "x", pa.array(["1", "two", "3"])), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: column 'x' holds string, and double in .*a\.parquet"):
        read(tmp_path)


def test_decimals_and_old_timestamps(tmp_path: Path) -> None:
    at = pd.Timestamp("2026-01-01 12:34:56")
    given = pa.table({"amount": pa.array([decimal.Decimal("1.25"), None]), "at": pa.array([at, at]), "y": [0, 1]})
    pq.write_table(given, tmp_path / "old.parquet", use_deprecated_int96_timestamps=True)
    frame = read(tmp_path / "old.parquet")
    assert frame["amount"].dtype == np.float64
    assert frame["amount"].iloc[0] == 1.25
    assert frame["at"].iloc[0] == at


@pytest.mark.parametrize(
    "name", ["with space.parquet", "Ålesund ø.parquet", "数据.parquet", "a#b%20c.parquet", "quote'.parquet"]
)
def test_names_with_spaces_and_letters_of_all_kinds(tmp_path: Path, table: pa.Table, name: str) -> None:
    folder = tmp_path / "dir with space é"
    folder.mkdir()
    pq.write_table(table, folder / name)
    assert read(folder / name)["name"].tolist() == ["æ", "b", "c"]


def test_partitions_without_files_and_folders_of_nothing(tmp_path: Path, table: pa.Table) -> None:
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        (tmp_path / f"day={day}").mkdir()
    pq.write_table(table, tmp_path / "day=2026-01-02" / "part-0.parquet")
    (tmp_path / "day=2026-01-03" / "_SUCCESS").write_bytes(b"")
    assert len(read(tmp_path)) == 3
    with pytest.raises(DataError, match="No file matches"):
        read(tmp_path / "day=2026-01-01")


def test_csv_of_the_wrong_encoding_and_ragged_rows(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("name,y\nTromsø,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv.*(is not UTF-8|invalid UTF)"):
        read(tmp_path / "latin.csv")
    (tmp_path / "ragged.csv").write_text("a,y\n1,2\n3\n")
    with pytest.raises(DataError, match=r"ragged\.csv cannot be read as csv: .*Expected 2 columns, got 1"):
        read(tmp_path / "ragged.csv")


def test_the_verdict_does_not_depend_on_the_order_of_rows_without_a_time() -> None:
    frame = mixed(np.random.default_rng(3), 800)
    spec = replace(made("stale").spec, max_age=None).without(*QUICK_MODELS, "leak", "suspicious", "overlap")
    first = assess(frame, "y", spec=spec, now=NOW)
    again = assess(frame.sample(frac=1, random_state=1).reset_index(drop=True), "y", spec=spec, now=NOW)
    assert [(c.name, c.verdict, c.value) for c in first.checks] == [(c.name, c.verdict, c.value) for c in again.checks]
