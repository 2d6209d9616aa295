"""The Open Inference Protocol v2 in JSON: requests as rows, answers and metadata as tensors.

Source: the protocol's REST specification, https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from itertools import chain
from typing import Any

import orjson

from raymlops.data.rows import FlatRows
from raymlops.data.schema import Column, DataContract
from raymlops.errors import MalformedRequest, RaymlopsError
from raymlops.serving.checks import as_object, check_count, check_key, check_own_id, check_rows, kind_of, show
from raymlops.serving.protocol import PredictRequest
from raymlops.serving.strict import parse_json

MAX_DIMENSIONS = 8
_FLOATS = ("FP16", "FP32", "FP64")
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_DATATYPES = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "category": "BYTES"}


_OUTPUTS = ("prediction", "probability")
_NO_BINARY = "this endpoint does not speak the binary extension: send numbers in data."


@dataclass(frozen=True, slots=True)
class InferRequest(PredictRequest):
    """Rows to predict, and the names of the outputs that were asked for; ``None`` asks for all."""

    outputs: tuple[str, ...] | None = None


def parse_infer(body: bytes, columns: Sequence[str], max_rows: int) -> InferRequest:
    """An inference request as rows: one tensor a column, of shape [n] or [n, 1]; or one of shape [n, columns].

    Of the request's ``parameters``, ``key`` makes the choice of the variant sticky; others mean nothing here.

    Raises
    ------
    MalformedRequest : not JSON, not the protocol's shape, shapes that do not fit their data, an unknown output
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows
    """
    known = ("id", "parameters", "inputs", "outputs")
    content = parse_json(body, max_rows, len(columns))
    fields = as_object(content, known, 'Send {"inputs": [{"name", "shape", "datatype", "data"}, …]}.')
    tensors = fields.get("inputs")
    if type(tensors) is not list or not tensors:
        raise MalformedRequest('"inputs" must be a list of tensors, each with name, shape, datatype and data.')
    # The body, the list, and of each tensor the object, its shape and its data: no more brackets, no lists in the data.
    shallow = body.count(b"{") + body.count(b"[") == 2 + 3 * len(tensors)
    read = [_tensor(index, tensor, shallow) for index, tensor in enumerate(tensors)]
    if len(read) == 1 and len(read[0][1]) == 2 and read[0][1][1] == len(columns) and (len(columns) > 1):
        _, (count, _), data = read[0]
        check_count(count, max_rows)
        rows = FlatRows(tuple(columns), data)
    else:
        rows = _rows_of_columns(read, max_rows)
    if not len(rows):
        check_rows([], max_rows)
    parameters = fields.get("parameters")
    if parameters is not None and type(parameters) is not dict:
        raise MalformedRequest(f'"parameters" is {kind_of(parameters)}, not an object.')
    return InferRequest(
        rows=rows,
        key=check_key((parameters or {}).get("key")),
        request_id=check_own_id({"request_id": fields.get("id")}),
        outputs=_wanted(fields.get("outputs")),
    )


def _wanted(outputs: Any) -> tuple[str, ...] | None:
    if outputs is None or outputs == []:
        return None
    if type(outputs) is not list:
        raise MalformedRequest(f'"outputs" is {kind_of(outputs)}: send a list of {{"name": …}}.')
    names = []
    for index, item in enumerate(outputs):
        fields = as_object(item, ("name", "parameters"), "", f"Output {index}")
        if fields.get("name") not in _OUTPUTS:
            raise MalformedRequest(
                f"Output {index} is {show(fields.get('name'))}; this endpoint has {' and '.join(_OUTPUTS)}."
            )
        if type(fields.get("parameters")) is dict and fields["parameters"].get("binary_data"):
            raise MalformedRequest(f"Output {index} is asked for in binary: {_NO_BINARY}")
        names.append(fields["name"])
    return tuple(names)


def _rows_of_columns(read: list[tuple[str, list[int], list[Any]]], max_rows: int) -> FlatRows:
    names = [name for name, _, _ in read]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise MalformedRequest(f"Input {name[:60]!r} appears more than once.")
    for name, shape, _ in read:
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise MalformedRequest(
                f"Input {name!r} has shape {shape}: send one tensor a column, of shape [n] or [n, 1], or a single one "
                "of shape [n, number of columns]."
            )
    counts = {shape[0] for _, shape, _ in read}
    if len(counts) != 1:
        raise MalformedRequest(f"The inputs differ in their number of rows: {sorted(counts)}.")
    count = counts.pop()
    check_count(count, max_rows)
    return FlatRows(tuple(names), list(chain.from_iterable(zip(*(data for _, _, data in read), strict=True))))


def _tensor(index: int, tensor: Any, shallow: bool) -> tuple[str, list[int], list[Any]]:
    fields = as_object(tensor, ("name", "shape", "datatype", "parameters", "data"), "", f"Input {index}")
    name, shape, datatype, data = (fields.get(field) for field in ("name", "shape", "datatype", "data"))
    if not isinstance(name, str):
        raise MalformedRequest(f'Input {index} has no "name".')
    if type(fields.get("parameters")) is dict and "binary_data_size" in fields["parameters"]:
        raise MalformedRequest(f"Input {show(name)} is sent in binary: {_NO_BINARY}")
    if (
        type(shape) is not list
        or not 0 < len(shape) <= MAX_DIMENSIONS
        or any(type(size) is not int or not 0 <= size < 2**31 for size in shape)
    ):
        raise MalformedRequest(f"Input {name!r}: shape must be a list of whole numbers, got {show(shape)}.")
    if datatype not in (*_FLOATS, *_INTEGERS, "BOOL", "BYTES"):
        raise MalformedRequest(f"Input {name!r}: datatype {show(datatype)} is not one of the protocol's.")
    flat = data if shallow and type(data) is list else _flat(name, data)
    if len(flat) != math.prod(shape):
        raise MalformedRequest(
            f"Input {name!r}: shape {shape} means {math.prod(shape)} values, data holds {len(flat)}."
        )
    return name, shape, flat


def _flat(name: str, data: Any) -> list[Any]:
    if type(data) is not list:
        raise MalformedRequest(f"Input {name!r}: data must be a list, got {kind_of(data)}.")
    if data and type(data[0]) is list:
        if set(map(type, data)) != {list}:
            raise MalformedRequest(f"Input {name!r}: data mixes lists and values.")
        data = list(chain.from_iterable(data))
    if not {list, dict}.isdisjoint(map(type, data)):
        raise MalformedRequest(f"Input {name!r}: data is nested deeper than rows of values.")
    return data


def format_infer(
    endpoint: str,
    version: int,
    request_id: str,
    predictions: list[Any],
    probabilities: list[Any] | None,
    wanted: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The answer: ``prediction`` of shape [n], and ``probability`` of shape [n] or [n, classes] for classes.

    Raises
    ------
    MalformedRequest : ``wanted`` names the probability of a regression
    """
    outputs = {
        "prediction": {
            "name": "prediction",
            "shape": [len(predictions)],
            "datatype": _datatype(predictions),
            "data": predictions,
        }
    }
    if probabilities is not None:
        shape, data = [len(probabilities)], probabilities
        if probabilities and isinstance(probabilities[0], (list, tuple)):
            shape = [len(probabilities), len(probabilities[0])]
            data = [value for row in probabilities for value in row]
        outputs["probability"] = {"name": "probability", "shape": shape, "datatype": "FP64", "data": data}
    missing = [name for name in wanted or () if name not in outputs]
    if missing:
        raise MalformedRequest(f"{endpoint} is a regression: it has no output {missing[0]!r}.")
    return {
        "model_name": endpoint,
        "model_version": str(version),
        "id": request_id,
        "outputs": [outputs[name] for name in wanted] if wanted else list(outputs.values()),
    }


def describe_server() -> dict[str, Any]:
    """The protocol's server metadata."""
    return {"name": "raymlops", "version": version_of("raymlops"), "extensions": []}


def describe_model(
    endpoint: str, versions: Sequence[int], columns: Sequence[Column], contract: DataContract
) -> dict[str, Any]:
    """The protocol's model metadata; ``columns`` are what a request holds."""
    classes = contract.task != "regression"
    outputs: list[dict[str, Any]] = [
        {"name": "prediction", "datatype": _datatype(list(contract.classes)) if classes else "FP64", "shape": [-1]}
    ]
    if classes:
        shape = [-1] if contract.task == "binary" else [-1, len(contract.classes)]
        outputs.append({"name": "probability", "datatype": "FP64", "shape": shape})
    return {
        "name": endpoint,
        "versions": [str(version) for version in versions],
        "platform": "raymlops",
        "inputs": [{"name": column.name, "datatype": _DATATYPES[column.kind], "shape": [-1]} for column in columns],
        "outputs": outputs,
    }


def infer_error(error: RaymlopsError) -> bytes:
    """``{"error": sentence}``: the protocol's errors are text."""
    return orjson.dumps({"error": error.message})


def _datatype(values: list[Any]) -> str:
    if values and all(isinstance(value, bool) for value in values):
        return "BOOL"
    if values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return "INT64"
    return "BYTES" if any(isinstance(value, str) for value in values) else "FP64"
