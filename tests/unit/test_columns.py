"""Tables that do not fit, features that fail on some rows, and cells that do not read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raymlops.data.columns import encode_features, encode_frame, encode_table, encode_text, kinds_of, refuse_text
from raymlops.data.schema import learn_contract
from raymlops.errors import ContractViolation

CONTRACT = learn_contract(
    pd.DataFrame({"amount": [1.0, 2.0], "word": ["x", "y"], "count": [1, 2], "label": [0, 1]}), "label"
)


def table(**columns: list[object]) -> pa.Table:
    return pa.table({"amount": [1.0, 2.0, 3.0], "word": ["x", "y", "x"], "count": [1, 2, 3], **columns})


def test_good_rows_are_encoded_and_bad_ones_named_with_their_reason() -> None:
    encoded = encode_table(CONTRACT, table(amount=[1.5, None, float("nan")], id=["a", "b", "c"]))
    np.testing.assert_array_equal(encoded.x[0], [1.5, 0, 1])
    assert encoded.accepted().tolist() == [0]
    assert encoded.refused == {
        1: "column 'amount': expected number, got null",
        2: "column 'amount': expected number, got nan",
    }


def test_each_failing_column_of_a_row_is_in_its_reason() -> None:
    encoded = encode_table(CONTRACT, table(word=["x", None, "unseen"], count=[1.0, 2.5, 3.0]))
    assert encoded.refused == {
        1: "column 'word': expected category (text), got null; column 'count': expected integer, got 2.5"
    }
    assert np.isnan(encoded.x[2, 1])


def test_a_missing_column_is_the_tables_fault_and_names_the_nearest() -> None:
    wrong = table().rename_columns(["amuont", "word", "count"])
    for encode in (encode_table, encode_text):
        with pytest.raises(ContractViolation, match=r"'amount': missing\. Did you mean 'amuont'"):
            encode(CONTRACT, wrong)


def test_decimals_are_numbers_as_in_training() -> None:
    decimals = pa.array(["1.25", "2", "3"]).cast(pa.decimal128(8, 2))
    encoded = encode_table(CONTRACT, table(amount=decimals))
    assert encoded.x[:, 0].tolist() == [1.25, 2.0, 3.0]


def test_text_that_does_not_read_is_refused_as_it_is_written() -> None:
    cells = pa.table({"amount": ["1", "about 2"], "word": ["x", "y"], "count": ["1", "2"]})
    assert encode_text(CONTRACT, cells).refused == {1: "column 'amount': expected number, got 'about 2'"}


def fails_on_text(frame: pd.DataFrame) -> pd.DataFrame:
    if (frame.word == "bad").any():
        raise ValueError("no such word")
    return frame


def test_rows_that_the_features_fail_on_are_found_among_the_others() -> None:
    words = ["x"] * 1000
    words[3] = words[700] = "bad"
    big = pa.table({"amount": [1.0] * 1000, "word": words, "count": [1] * 1000})
    encoded = encode_features(CONTRACT, fails_on_text, big)
    assert list(encoded.refused) == [3, 700]
    assert encoded.refused[3] == "The features function failed: ValueError: no such word"
    assert len(encoded.accepted()) == 998


def test_features_that_fail_on_every_row_stop_the_run() -> None:
    big = pa.table({"amount": [1.0] * 1000, "word": ["bad"] * 1000, "count": [1] * 1000})
    with pytest.raises(ContractViolation, match=r"no such word The rows do not fit this endpoint"):
        encode_features(CONTRACT, fails_on_text, big)


def test_a_frame_of_mixed_values_is_judged_row_by_row() -> None:
    frame = pd.DataFrame({"amount": [1.0, 2.0], "word": ["x", 7], "count": [1, 2]})
    encoded = encode_frame(CONTRACT, frame)
    assert encoded.refused == {1: "column 'word': expected category (text), got 7"}


def test_features_see_text_cells_as_the_types_of_the_first_rows() -> None:
    schema = pa.schema([("n", pa.int64()), ("b", pa.bool_()), ("t", pa.timestamp("s")), ("w", pa.string())])
    cells = pa.table({"n": ["1", "x"], "b": ["true", ""], "t": ["2026-01-01", "soon"], "w": [" a ", "b"]})
    typed, refused = refuse_text(kinds_of(schema), cells)
    assert typed.schema.field("b").type == pa.bool_()
    assert typed.column("w").to_pylist() == ["a", "b"]
    assert refused == {1: "column 'n': expected number, got 'x'; column 't': expected time, got 'soon'"}
