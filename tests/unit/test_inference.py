"""The Open Inference Protocol: tensors in, tensors out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymlops.data.schema import Column, DataContract
from raymlops.errors import MalformedRequest, TooLarge, UnknownEndpoint
from raymlops.serving.inference import describe_model, format_infer, infer_error, parse_infer
from raymlops.testing.serving import small_contract


def tensor(name: str, shape: list[int], datatype: str, data: list[object]) -> dict[str, object]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def infer(*tensors: object, **fields: object) -> object:
    body = {"inputs": list(tensors), **fields}
    return parse_infer(json.dumps(body).encode(), ("a", "b"), 5)


def test_one_tensor_a_column() -> None:
    request = infer(
        tensor("b", [2, 1], "BYTES", [["x"], ["y"]]),
        tensor("a", [2], "FP32", [1.0, 2.0]),
        id="i1",
        parameters={"key": "k"},
    )
    assert list(request.rows) == [{"b": "x", "a": 1.0}, {"b": "y", "a": 2.0}]
    assert (request.request_id, request.key) == ("i1", "k")


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_one_tensor_for_all_columns(data: list[object]) -> None:
    request = infer(tensor("input-0", [2, 2], "FP64", data))
    assert list(request.rows) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ([], '"inputs" must be a list of tensors'),
        ([tensor("a", [2], "FP32", [1.0])], "shape [2] means 2 values, data holds 1."),
        ([tensor("a", [1], "FLOAT", [1.0])], "datatype 'FLOAT' is not one of the protocol's."),
        ([tensor("a", [-1], "FP32", [])], "shape must be a list of whole numbers"),
        ([tensor("a", [1, 2, 1], "FP32", [1, 2])], "Input 'a' has shape [1, 2, 1]"),
        ([tensor("a", [1], "FP32", [1]), tensor("a", [1], "FP32", [1])], "Input 'a' appears more than once."),
        ([tensor("a", [1], "FP32", [1]), tensor("b", [2], "FP32", [1, 2])], "differ in their number of rows: [1, 2]."),
        ([tensor("a", [1], "FP32", [[[1]]])], "nested deeper than rows of values."),
        ([{"name": "a"}], "shape must be a list"),
        ([3], "Input 0 is a number, not an object."),
    ],
)
def test_bad_tensors_are_refused(tensors: list[object], sentence: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        infer(*tensors)
    assert sentence in caught.value.message


def test_too_many_rows_in_tensors() -> None:
    with pytest.raises(TooLarge, match="holds 6 rows"):
        infer(tensor("a", [6], "FP32", [1.0] * 6))


def test_infer_answers_name_shapes_and_datatypes() -> None:
    body = format_infer("churn", 3, "i1", ["no", "yes"], [[0.9, 0.1], [0.2, 0.8]])
    assert body["model_version"] == "3"
    assert body["outputs"] == [
        {"name": "prediction", "shape": [2], "datatype": "BYTES", "data": ["no", "yes"]},
        {"name": "probability", "shape": [2, 2], "datatype": "FP64", "data": [0.9, 0.1, 0.2, 0.8]},
    ]
    assert format_infer("m", 1, "i", [1.5], None)["outputs"][0]["datatype"] == "FP64"
    assert format_infer("m", 1, "i", [True], None)["outputs"][0]["datatype"] == "BOOL"
    assert format_infer("m", 1, "i", [4], None)["outputs"][0]["datatype"] == "INT64"


def test_only_the_outputs_asked_for_are_answered() -> None:
    data = tensor("a", [1], "FP64", [1.0])
    assert infer(data, outputs=[{"name": "probability"}]).outputs == ("probability",)
    assert infer(data, outputs=[]).outputs is None
    body = format_infer("churn", 3, "i1", [1], [0.5], ("probability", "prediction"))
    assert [output["name"] for output in body["outputs"]] == ["probability", "prediction"]
    with pytest.raises(MalformedRequest, match="churn is a regression: it has no output 'probability'"):
        format_infer("churn", 3, "i1", [1.5], None, ("probability",))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"outputs": [{"name": "logits"}]}, "Output 0 is 'logits'; this endpoint has prediction and probability."),
        ({"outputs": [{"name": "prediction", "parameters": {"binary_data": True}}]}, "does not speak the binary"),
        ({"outputs": {"name": "prediction"}}, '"outputs" is an object'),
        ({"parameters": []}, '"parameters" is a list, not an object.'),
        ({"parameters": {"key": 3}}, '"key" must be a string'),
        ({"id": "a b"}, "A request id is"),
        ({"output": []}, "Did you mean 'outputs'?"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        infer(tensor("a", [1], "FP64", [1.0]), **fields)
    assert sentence in caught.value.message


def test_binary_tensors_are_refused() -> None:
    binary = {"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    with pytest.raises(MalformedRequest, match="does not speak the binary extension"):
        infer(binary)


def test_metadata_names_inputs_and_outputs() -> None:
    contract = small_contract()
    body = describe_model("churn", [3, 4], contract.columns, contract)
    assert [item["datatype"] for item in body["inputs"]] == ["FP64", "FP64", "BYTES"]
    assert body["outputs"] == [
        {"name": "prediction", "datatype": "INT64", "shape": [-1]},
        {"name": "probability", "datatype": "FP64", "shape": [-1]},
    ]
    assert body["versions"] == ["3", "4"]
    several = DataContract(columns=contract.columns, label="y", task="multiclass", classes=("a", "b", "c"))
    assert describe_model("m", [1], several.columns, several)["outputs"][1]["shape"] == [-1, 3]
    number = DataContract(
        columns=(Column(name="a", kind="integer", nullable=True, minimum=0, maximum=1),), label="y", task="regression"
    )
    assert describe_model("m", [1], number.columns, number)["outputs"] == [
        {"name": "prediction", "datatype": "FP64", "shape": [-1]}
    ]


def test_errors_are_one_sentence() -> None:
    assert infer_error(UnknownEndpoint("There is none.")) == b'{"error":"There is none."}'
