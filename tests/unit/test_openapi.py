"""The OpenAPI document: its row schema takes what the contract takes, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlops.data.schema import Column, DataContract
from raymlops.errors import ContractViolation
from raymlops.serving.openapi import document, row_schema
from raymlops.serving.spec import Serving
from raymlops.testing.serving import small_contract

COLUMNS = (
    Column(name="n", kind="number", nullable=False, minimum=-1.5, maximum=2.5),
    Column(name="m", kind="number", nullable=True, minimum=None, maximum=None),
    Column(name="i", kind="integer", nullable=False, minimum=0.0, maximum=9.0),
    Column(name="t", kind="boolean", nullable=True, minimum=0.0, maximum=1.0),
    Column(name="c", kind="category", nullable=False, minimum=None, maximum=None, categories=("x", "y")),
    Column(name="d", kind="category", nullable=True, minimum=None, maximum=None, categories=("z",)),
)
CONTRACT = DataContract(columns=COLUMNS, label="y", task="multiclass", classes=("a", "b", "c"))
PAGE = document("churn", 3, COLUMNS, CONTRACT, Serving(max_rows=5))
FINE = {"n": 1.0, "m": None, "i": 3, "t": True, "c": "x", "d": "new"}


def validator(name: str, page: dict[str, Any] = PAGE) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**page, "$ref": f"#/components/schemas/{name}"})


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    schemas = PAGE["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(PAGE)
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used == set(schemas)
    assert PAGE["openapi"] == "3.1.0"
    names = [operation["operationId"] for path in PAGE["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-5, 5).map(float),
    st.sampled_from(["x", "y", "z", "new", "1", ""]),
    st.lists(st.integers(), max_size=1),
    st.just({}),
)


@given(st.dictionaries(st.sampled_from("nmitcd"), VALUES), st.sampled_from([[], [], ["n"], ["other"]]))
def test_a_row_is_valid_exactly_when_the_contract_takes_it(changes: dict[str, Any], odd: list[str]) -> None:
    row = {**FINE, **changes}
    for name in odd:
        row.pop(name) if name in row else row.update({name: 1})
    if any(isinstance(row.get(name), float) and abs(row[name]) > 3.4e38 for name in "nmi"):
        return  # beyond a float32 a column takes a value as missing, or not; a schema cannot say that
    try:
        CONTRACT.encode_rows([row])
        taken = True
    except ContractViolation:
        taken = False
    assert validator("Row").is_valid(row) is taken


def test_examples_are_valid_requests() -> None:
    page = document("churn", 1, small_contract().columns, small_contract(), Serving())
    for path, schema in (("predict", "PredictRequest"), ("invocations", "InvocationsRequest")):
        content = page["paths"][f"/churn/{path}"]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}
        for example in content["examples"].values():
            validator(schema, page).validate(example["value"])
    for column in PAGE["components"]["schemas"]["Row"]["properties"].values():
        for example in column["examples"]:
            jsonschema.validate(example, column)


@pytest.mark.parametrize(
    ("schema", "body", "valid"),
    [
        ("PredictRequest", {"rows": [FINE]}, True),
        ("PredictRequest", {"rows": [FINE], "key": "u1", "request_id": "r.1"}, True),
        ("PredictRequest", {"rows": []}, False),
        ("PredictRequest", {"rows": [FINE] * 6}, False),
        ("PredictRequest", {"row": [FINE]}, False),
        ("PredictRequest", {"rows": [FINE], "request_id": "a b"}, False),
        ("FeedbackRequest", {"labels": [{"request_id": "r1", "label": "a"}]}, True),
        ("FeedbackRequest", {"request_id": "r1", "row": 0, "label": "c"}, True),
        ("FeedbackRequest", {"request_id": "r1", "label": "d"}, False),
        ("InvocationsRequest", {"dataframe_records": [FINE]}, True),
        ("InvocationsRequest", {"dataframe_split": {"columns": ["n"], "data": [[1]]}}, True),
        ("InvocationsRequest", {"inputs": {"n": [1, 2]}}, True),
        ("InvocationsRequest", {"inputs": {"n": [1]}, "instances": [[1]]}, False),
        ("InferRequest", {"inputs": [{"name": "n", "shape": [1], "datatype": "FP64", "data": [1]}]}, True),
        ("InferRequest", {"inputs": []}, False),
    ],
)
def test_request_schemas(schema: str, body: Any, valid: bool) -> None:
    assert validator(schema).is_valid(body) is valid


def test_limits_that_a_person_stated_are_in_the_schema_and_kept_by_the_examples() -> None:
    plain = {"nullable": False, "minimum": 0.0, "maximum": 1.0}
    columns = (
        Column(name="age", kind="integer", low=18.0, high=99.0, **plain),
        Column(name="rate", kind="number", high=-1.0, **plain),
        Column(
            name="city", kind="category", nullable=False, minimum=None, maximum=None, categories=("Oslo",), closed=True
        ),
    )
    schema = row_schema(columns)["properties"]
    assert (schema["age"]["minimum"], schema["age"]["maximum"], schema["age"]["examples"]) == (18.0, 99.0, [18])
    assert (schema["rate"]["maximum"], schema["rate"]["examples"]) == (-1.0, [-1.0])
    assert schema["city"] == {"enum": ["Oslo"], "examples": ["Oslo"]}
