"""The data contract: what it learns, what it takes, and the sentences it refuses with."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from raymlops.data.schema import DataContract, infer_task, learn_contract
from raymlops.errors import ContractViolation, DataError


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [31, 45, 22, 60],
            "spend": [1.5, np.nan, 3.0, 4.5],
            "score": [0.1, 0.2, 0.3, 0.4],
            "member": [True, False, True, True],
            "city": ["Oslo", "Bergen", "Oslo", "Tromsø"],
            "left": ["yes", "no", "no", "yes"],
        }
    )


@pytest.fixture
def contract(frame: pd.DataFrame) -> DataContract:
    return learn_contract(frame, "left")


ROW = {"age": 31, "spend": 1.5, "score": 0.1, "member": True, "city": "Oslo"}


def test_learns_kinds_ranges_and_categories(contract: DataContract) -> None:
    kinds = {column.name: (column.kind, column.nullable) for column in contract.columns}
    assert kinds == {
        "age": ("integer", False),
        "spend": ("number", True),
        "score": ("number", False),
        "member": ("boolean", False),
        "city": ("category", False),
    }
    assert (contract.columns[0].minimum, contract.columns[0].maximum) == (22.0, 60.0)
    assert contract.columns[4].categories == ("Bergen", "Oslo", "Tromsø")
    assert contract.task == "binary"
    assert contract.classes == ("no", "yes")
    assert contract.categorical == [4]


def test_survives_json(contract: DataContract) -> None:
    assert DataContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


def test_frame_and_rows_encode_alike(contract: DataContract, frame: pd.DataFrame) -> None:
    encoded = contract.encode(frame)
    rows = frame.drop(columns="left").replace({np.nan: None}).to_dict("records")
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, contract.encode_rows(rows))
    np.testing.assert_array_equal(encoded[0], np.array([31, 1.5, 0.1, 1, 1], dtype=np.float32))


def test_an_unseen_category_is_missing_and_not_an_error(contract: DataContract) -> None:
    assert np.isnan(contract.encode_rows([{**ROW, "city": "Paris"}])[0, 4])
    assert np.isnan(contract.encode(pd.DataFrame([{**ROW, "city": "Paris"}]))[0, 4])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"score": "abc"}, "column 'score': expected number, got 'abc' (row 0)"),
        ({"score": "1"}, "column 'score': expected number, got '1' (row 0)"),
        ({"score": True}, "column 'score': expected number, got True (row 0)"),
        ({"score": None}, "column 'score': expected number, got null (row 0)"),
        ({"score": float("nan")}, "column 'score': expected number, got nan (row 0)"),
        ({"score": float("inf")}, "column 'score': expected number within ±3.403e+38, got inf (row 0)"),
        ({"score": 1e300}, "column 'score': expected number within ±3.403e+38, got 1e+300 (row 0)"),
        ({"age": 2.5}, "column 'age': expected integer, got 2.5 (row 0)"),
        ({"age": 10**400}, "column 'age': expected integer within ±9.223e+18, got a number of more"),
        ({"member": 1}, "column 'member': expected boolean, got 1 (row 0)"),
        ({"city": 5}, "column 'city': expected category (text), got 5 (row 0)"),
        ({"city": None}, "column 'city': expected category (text), got null (row 0)"),
        ({"scores": 1.0}, "column 'scores': not in the contract (row 0). Did you mean 'score'?"),
    ],
)
def test_refused_values(contract: DataContract, change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        contract.encode_rows([{**ROW, **change}])
    assert sentence in str(caught.value)
    if not isinstance(change.get("age"), int) and "scores" not in change:
        with pytest.raises(ContractViolation) as again:
            contract.encode(pd.DataFrame([{**ROW, **change}]).astype(object))
        assert sentence in str(again.value)


def test_a_missing_column_names_the_one_that_was_probably_meant(contract: DataContract) -> None:
    row = {("scoer" if name == "score" else name): value for name, value in ROW.items()}
    with pytest.raises(ContractViolation, match=r"column 'score': missing\. Did you mean 'scoer'\? \(row 0\)"):
        contract.encode_rows([row])
    with pytest.raises(ContractViolation, match="column 'score': missing"):
        contract.encode(pd.DataFrame([ROW]).drop(columns="score"))


def test_accepts_what_json_and_numpy_give_for_a_number(contract: DataContract) -> None:
    rows = [
        {**ROW, "score": 1},
        {**ROW, "score": np.float32(1.0)},
        {**ROW, "age": 31.0, "score": 1.0},
        {**ROW, "member": np.bool_(True), "score": np.int64(1)},
    ]
    encoded = contract.encode_rows(rows)
    np.testing.assert_array_equal(encoded, np.tile(encoded[:1], (4, 1)))


def test_infinities_are_missing_where_missing_is_allowed(contract: DataContract) -> None:
    rows = [{**ROW, "spend": value} for value in (None, float("nan"), float("inf"), 1e300)]
    assert np.isnan(contract.encode_rows(rows)[:, 1]).all()
    assert np.isnan(contract.encode(pd.DataFrame(rows))[:, 1]).all()


def test_at_most_ten_failures_are_listed(contract: DataContract) -> None:
    with pytest.raises(ContractViolation, match="and 15 more") as caught:
        contract.encode_rows([{**ROW, "score": "x"}] * 25)
    assert len(caught.value.details["failures"]) == 10


def test_rows_that_are_no_objects(contract: DataContract) -> None:
    with pytest.raises(ContractViolation, match=r"row 1: expected an object of columns, got 5"):
        contract.encode_rows([ROW, 5])


def test_no_rows_give_an_empty_matrix(contract: DataContract, frame: pd.DataFrame) -> None:
    assert contract.encode_rows([]).shape == (0, 5)
    assert contract.encode(frame.iloc[:0]).shape == (0, 5)


def test_labels(contract: DataContract) -> None:
    np.testing.assert_array_equal(contract.encode_label(["yes", "no"]), [1.0, 0.0])
    assert contract.check_label("yes") == "yes"
    with pytest.raises(ContractViolation, match=r"label 'left': expected one of 'no', 'yes', got 'maybe' \(row 1\)"):
        contract.encode_label(["yes", "maybe"])
    with pytest.raises(ContractViolation, match="expected one of 'no', 'yes', got null"):
        contract.check_label(None)


def test_numeric_labels_take_their_float_form_but_not_booleans_or_text() -> None:
    contract = learn_contract(pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.0, 1.0, np.nan]}), "y")
    assert contract.classes == (0, 1)
    assert contract.check_label(1.0) == 1
    assert contract.check_label(np.int64(0)) == 0
    for wrong in (True, "1", 2):
        with pytest.raises(ContractViolation, match="expected one of 0, 1"):
            contract.check_label(wrong)


def test_regression_labels() -> None:
    contract = learn_contract(pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.5]}), "y")
    assert contract.task == "regression"
    assert contract.classes == ()
    assert contract.check_label(3) == 3.0
    with pytest.raises(ContractViolation, match="label 'y': expected a finite number, got nan"):
        contract.check_label(float("nan"))
    with pytest.raises(ContractViolation, match=r"expected a finite number, got 'a' \(row 1\)"):
        contract.encode_label([1.0, "a"])


def test_tasks() -> None:
    assert infer_task(pd.Series([0.5, 1.5, 0.5])) == "binary"
    assert infer_task(pd.Series(["a", "b", "c"])) == "multiclass"
    assert infer_task(pd.Series(range(20))) == "multiclass"
    assert infer_task(pd.Series(range(21))) == "regression"
    assert infer_task(pd.Series([0.1, 0.2, 0.3])) == "regression"
    with pytest.raises(DataError, match="The label 'name' holds 30 distinct texts"):
        infer_task(pd.Series([f"n{i}" for i in range(30)], name="name"))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"when": pd.date_range("2026", periods=3)}, "Column 'when' holds times"),
        ({"note": [["a"], ["b"], ["c"]]}, "Column 'note' mixes or holds values no model takes"),
        ({"mixed": ["a", 1, 2.0]}, "Column 'mixed' mixes or holds values no model takes \\(number, text"),
    ],
)
def test_columns_no_model_takes(columns: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        learn_contract(pd.DataFrame({**columns, "y": [0, 1, 0]}), "y")


def test_free_text_is_refused_with_advice() -> None:
    frame = pd.DataFrame({"id": [f"u{i}" for i in range(1001)], "y": [0, 1] * 500 + [0]})
    with pytest.raises(DataError, match=r"Column 'id' holds 1001 distinct texts \(at most 1000\)"):
        learn_contract(frame, "y")


def test_a_missing_label_column_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"The data has no label column 'labl'\. Did you mean 'label'\?"):
        learn_contract(pd.DataFrame({"x": [1], "label": [0]}), "labl")


def test_time_is_left_out_and_something_must_remain() -> None:
    frame = pd.DataFrame({"ts": pd.date_range("2026", periods=3), "x": [1, 2, 3], "y": [0, 1, 0]})
    assert learn_contract(frame, "y", drop=("ts",)).names == ("x",)
    with pytest.raises(DataError, match="there is nothing to learn from"):
        learn_contract(frame, "y", drop=("ts", "x"))


def test_objects_of_one_kind_are_understood() -> None:
    frame = pd.DataFrame({"flag": [True, None, False], "n": [1, 2, None], "y": [0, 1, 0]}, dtype=object)
    contract = learn_contract(frame.astype({"y": int}), "y")
    assert [(c.kind, c.nullable) for c in contract.columns] == [("boolean", True), ("integer", True)]
    assert np.isnan(contract.encode(frame)[1, 0])


def test_texts_that_differ_behind_a_nul_are_two_categories() -> None:
    frame = pd.DataFrame({"word": ["", "", "\x00", "a\x00b", "a\x00c"], "y": [0, 1, 0, 1, 0]})
    contract = learn_contract(frame, "y")
    assert contract.columns[0].categories == ("", "\x00", "a\x00b", "a\x00c")
    assert contract.encode(frame)[:, 0].tolist() == [0, 0, 1, 2, 3]
