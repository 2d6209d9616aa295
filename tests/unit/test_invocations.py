"""MLflow's scoring protocol in all its shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymlops.data.schema import Column
from raymlops.errors import ContractViolation, MalformedRequest, NotReady, RaymlopsError, TooLarge
from raymlops.serving.invocations import invocations_error, mlflow_version, parse_csv, parse_invocations

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
COLUMNS = (
    Column(name="a", kind="number", nullable=True, minimum=None, maximum=None),
    Column(name="b", kind="category", nullable=True, minimum=None, maximum=None),
    Column(name="n", kind="integer", nullable=True, minimum=None, maximum=None),
    Column(name="t", kind="boolean", nullable=True, minimum=None, maximum=None),
)


def rows(body: Any, max_rows: int = 10) -> Any:
    return parse_invocations(json.dumps(body).encode(), ("a", "b"), max_rows).rows


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}},
        {"dataframe_split": {"index": [7, 8], "columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}},
        {"dataframe_records": ROWS},
        {"dataframe_records": ROWS, "params": {}},
        {"instances": ROWS},
        {"instances": [[1, "x"], [2, "y"]]},
        {"instances": {"a": [1, 2], "b": ["x", "y"]}},
        {"inputs": {"a": [1, 2], "b": ["x", "y"]}},
        {"inputs": [[1, "x"], [2, "y"]]},
    ],
)
def test_every_shape_gives_the_same_rows(body: dict[str, Any]) -> None:
    assert rows(body) == ROWS


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([], "not an object"),
        ({}, "The body has no rows. Send one of dataframe_split"),
        ({"dataframe_records": ROWS, "inputs": {}}, "The body has dataframe_records and inputs."),
        ({"dataframe_record": ROWS}, "Did you mean 'dataframe_records'?"),
        ({"dataframe_records": {"a": 1}}, '"rows" is an object'),
        ({"dataframe_records": ROWS, "params": {"x": 1}}, '"params" must be empty'),
        ({"dataframe_split": {"data": [[1]]}}, '"columns" of "dataframe_split" must be a list of names'),
        ({"dataframe_split": {"columns": ["a", 3], "data": []}}, "must be a list of names"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, "Column 'a' appears more than once."),
        ({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, "Row 0 is a list of 2 values: send 1 values"),
        ({"dataframe_split": {"columns": ["a"], "data": [1]}}, "Row 0 is a number"),
        ({"dataframe_split": {"columns": ["a"], "data": None}}, "The rows are null"),
        ({"instances": [[1]]}, "Row 0 is a list of 1 values: send 2 values, one for each column."),
        ({"instances": "x"}, "The rows are a string"),
        ({"inputs": {"a": 1}}, "Column 'a' of \"inputs\" is a number"),
        ({"inputs": {"a": [1], "b": []}}, "differ in their number of values: [0, 1]."),
    ],
)
def test_what_is_none_of_the_shapes_is_malformed(body: Any, sentence: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        rows(body)
    assert sentence in caught.value.message


@pytest.mark.parametrize("body", [{"dataframe_records": []}, {"inputs": {}}, {"instances": []}])
def test_no_rows(body: Any) -> None:
    with pytest.raises(ContractViolation, match='"rows" is empty'):
        rows(body)


@pytest.mark.parametrize(
    "body", [{"instances": [[1, "x"]] * 3}, {"inputs": {"a": [1] * 3}}, {"dataframe_records": ROWS * 2}]
)
def test_too_many_rows(body: Any) -> None:
    with pytest.raises(TooLarge, match="at most 2 a request"):
        rows(body, max_rows=2)


def csv(text: str, max_rows: int = 10) -> Any:
    return parse_csv(text.encode(), COLUMNS, max_rows).rows


def test_csv_is_read_by_the_kinds_of_its_columns() -> None:
    expected = [{"a": 1.5, "b": "1.5", "n": 3, "t": True}, {"a": None, "b": "x,\ny", "n": -4, "t": False}]
    assert csv('a,b,n,t\n1.5,1.5,3,true\n,"x,\ny",-4,0\n\n') == expected
    assert csv("\ufeffb,a\r\nx,1e3\r\n") == [{"b": "x", "a": 1000.0}]


def test_csv_values_that_are_no_such_thing_stay_text_for_the_contract_to_refuse() -> None:
    assert csv("a,n,t,other\n1_000,1.5,maybe,z") == [{"a": "1_000", "n": "1.5", "t": "maybe", "other": "z"}]


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("", ContractViolation, "empty"),
        ("a,b", ContractViolation, "empty"),
        ("a,b\n1", MalformedRequest, "Row 0 has 1 values, the header 2 names."),
        ("a,a\n1,2", MalformedRequest, "Column 'a' appears more than once."),
        ('a\n"x"y', MalformedRequest, "The body is not CSV"),
        ("a\n\0", MalformedRequest, "NUL"),
        ("b\n" + "x" * 5000, TooLarge, "holds a text of 5000 characters"),
        ("b\n" + "x" * 200_000, MalformedRequest, "The body is not CSV"),
        ("a\n" + "1\n" * 11, TooLarge, "at most 10"),
    ],
)
def test_bad_csv(text: str, kind: type[RaymlopsError], sentence: str) -> None:
    with pytest.raises(kind) as caught:
        csv(text)
    assert sentence in caught.value.message


def test_csv_must_be_utf8() -> None:
    with pytest.raises(MalformedRequest, match="not UTF-8"):
        parse_csv(b"b\n\xff", COLUMNS, 10)


def test_errors_use_mlflows_words() -> None:
    for error, code in (
        (MalformedRequest("m"), "BAD_REQUEST"),
        (ContractViolation("m"), "INVALID_PARAMETER_VALUE"),
        (NotReady("m"), "TEMPORARILY_UNAVAILABLE"),
        (RaymlopsError("m"), "INTERNAL_ERROR"),
    ):
        assert json.loads(invocations_error(error)) == {"error_code": code, "message": "m"}
    assert mlflow_version().startswith("3.")
