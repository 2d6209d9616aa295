"""Request and response formats: raymlops' own rows and labels, and the Open Inference Protocol v2.

Everything here turns bytes into values or refuses them with a sentence; nothing here knows a model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from raymlops.errors import (
    ContractViolation,
    MalformedRequest,
    RaymlopsError,
    Retryable,
    TooLarge,
    UnsupportedMedia,
    nearest,
)
from raymlops.store import LabelRow

Row = dict[str, Any]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_KEY = 256
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Rows to predict; ``key`` makes the choice of the variant sticky; ``request_id`` is the client's own, if any."""

    rows: list[Row]
    key: str | None = None
    request_id: str | None = None


def parse_json(body: bytes) -> Any:
    """The JSON value in ``body``.

    ``NaN``, ``Infinity`` and numbers too large for a double, which many writers emit, are read as what they mean, so
    that the contract can say which column they are in.

    Raises
    ------
    MalformedRequest : not JSON in UTF-8
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problem: Exception = error
    if b"NaN" in body or b"Infinity" in body or "infinity" in str(problem):
        try:
            return json.loads(body, parse_int=_whole)
        except (ValueError, RecursionError) as error:
            problem = error
    what = "is empty" if not body else f"is not JSON: {problem}"
    raise MalformedRequest(f"The body {what}. Send a JSON object in UTF-8.") from problem


def _whole(digits: str) -> float:
    """Python refuses, for good reason, to read whole numbers of thousands of digits; they are no doubles either."""
    return int(digits) if len(digits) < 400 else math.copysign(math.inf, -1.0 if digits[0] == "-" else 1.0)


def parse_rows(body: bytes, max_rows: int) -> PredictRequest:
    """``{"rows": [{column: value}], "key": str?, "request_id": str?}``.

    Raises
    ------
    MalformedRequest : not JSON, or not that shape
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows
    """
    content = parse_json(body)
    fields = _object(content, ("rows", "key", "request_id"), 'Send {"rows": [{column: value, …}, …]}.')
    if "rows" not in fields:
        raise MalformedRequest('The body has no "rows". Send {"rows": [{column: value, …}, …]}.')
    return PredictRequest(check_rows(fields["rows"], max_rows), _key(fields.get("key")), _own_id(fields))


def check_rows(rows: Any, max_rows: int) -> list[Row]:
    """A non-empty list of objects, at most ``max_rows`` long."""
    if type(rows) is not list:
        raise MalformedRequest(f'"rows" is {_kind(rows)}: send a list of objects, one a row.')
    if not rows:
        raise ContractViolation('"rows" is empty: send at least one row.')
    if len(rows) > max_rows:
        raise TooLarge(
            f"The request holds {len(rows)} rows; this endpoint takes at most {max_rows} a request. Send fewer.",
            {"rows": len(rows), "max_rows": max_rows},
        )
    for index, row in enumerate(rows):
        if type(row) is not dict:
            raise MalformedRequest(f"Row {index} is {_kind(row)}: each row is an object of column names and values.")
    return rows


def parse_labels(body: bytes, max_rows: int) -> list[LabelRow]:
    """``{"labels": [{"request_id": str, "row": int = 0, "label": scalar}]}``, or one such label by itself.

    The labels' values are not judged here: that takes a contract.

    Raises
    ------
    MalformedRequest : not JSON, or not that shape
    TooLarge : more than ``max_rows`` labels
    """
    content = parse_json(body)
    shape = 'Send {"labels": [{"request_id": …, "row": 0, "label": …}, …]}.'
    single = isinstance(content, dict) and "labels" not in content
    labels = [content] if single else _object(content, ("labels",), shape)["labels"]
    if type(labels) is not list or not labels:
        raise MalformedRequest(f'"labels" is {_kind(labels) if labels != [] else "empty"}. {shape}')
    if len(labels) > max_rows:
        raise TooLarge(f"The request holds {len(labels)} labels; at most {max_rows} are taken at once. Send fewer.")
    return [_label(index, item, shape) for index, item in enumerate(labels)]


def _label(index: int, item: Any, shape: str) -> LabelRow:
    where = f"Label {index}"
    fields = _object(item, ("request_id", "row", "label"), shape, where)
    for name in ("request_id", "label"):
        if name not in fields:
            raise MalformedRequest(f'{where} has no "{name}". {shape}')
    request_id, row, value = fields["request_id"], fields.get("row", 0), fields["label"]
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        raise MalformedRequest(f'{where}: "request_id" must be the id of a prediction, got {_show(request_id)}.')
    if type(row) is not int or not 0 <= row < 2**31:
        raise MalformedRequest(f'{where}: "row" must be the index of a row in its request, from 0, got {_show(row)}.')
    if not isinstance(value, (str, int, float, bool)):
        raise MalformedRequest(f'{where}: "label" must be a number, a string or a boolean, got {_kind(value)}.')
    return LabelRow(request_id=request_id, row_index=row, value=value)


def request_id_of(given: bytes | None) -> str | None:
    """The client's id in a header, when it is one that can be kept."""
    if given is None:
        return None
    text = given.decode("latin-1")
    return text if _REQUEST_ID.fullmatch(text) else None


def check_media(headers: Mapping[bytes, bytes]) -> None:
    """Refuse bodies that say they are something else than JSON in UTF-8; saying nothing is taken as JSON.

    Raises
    ------
    UnsupportedMedia
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise UnsupportedMedia(f"The body is compressed ({_text(encoding)}): send it as it is.")
    media = headers.get(b"content-type", b"application/json")
    if media == b"application/json":
        return
    kind, _, parameters = media.lower().partition(b";")
    kind = kind.strip()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise UnsupportedMedia(f"The body is {_text(kind) or 'of no type'}: send application/json.")
    charset = re.search(rb'charset\s*=\s*"?([^";\s]+)', parameters)
    if charset and charset[1] not in (b"utf-8", b"utf8", b"us-ascii"):
        raise UnsupportedMedia(f"The body's charset is {_text(charset[1])}: send UTF-8.")


def dump(content: Any) -> bytes:
    """JSON bytes; NaN and infinities become null."""
    return orjson.dumps(content, option=_NUMPY)


def error_body(error: RaymlopsError) -> bytes:
    """``{"error": {"code", "message", "details"}}``."""
    body = {"code": error.code, "message": error.message, "details": error.details}
    return orjson.dumps({"error": body}, default=str, option=_NUMPY)


def error_status(error: RaymlopsError) -> int:
    """The HTTP status; trying again later is 503 unless the error says something more precise."""
    return 503 if isinstance(error, Retryable) and error.http_status == 500 else error.http_status


# --- Open Inference Protocol v2 ----------------------------------------------------------------------

_FLOATS = ("FP16", "FP32", "FP64")
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_DATATYPES = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "category": "BYTES"}


def parse_infer(body: bytes, columns: Sequence[str], max_rows: int) -> PredictRequest:
    """An inference request as rows: one tensor a column, of shape [n] or [n, 1]; or one of shape [n, columns].

    Raises
    ------
    MalformedRequest : not JSON, not the protocol's shape, or shapes that do not fit their data
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows
    """
    known = ("id", "parameters", "inputs", "outputs")
    fields = _object(parse_json(body), known, 'Send {"inputs": [{"name", "shape", "datatype", "data"}, …]}.')
    tensors = fields.get("inputs")
    if type(tensors) is not list or not tensors:
        raise MalformedRequest('"inputs" must be a list of tensors, each with name, shape, datatype and data.')
    read = [_tensor(index, tensor) for index, tensor in enumerate(tensors)]
    if len(read) == 1 and len(read[0][1]) == 2 and read[0][1][1] == len(columns) and (len(columns) > 1):
        _, (count, width), data = read[0]
        _limit(count, max_rows)
        rows = [dict(zip(columns, data[i * width : (i + 1) * width], strict=True)) for i in range(count)]
    else:
        rows = _rows_of_columns(read, max_rows)
    parameters = fields.get("parameters") or {}
    key = _key(parameters.get("key")) if isinstance(parameters, dict) else None
    return PredictRequest(check_rows(rows, max_rows), key, _own_id({"request_id": fields.get("id")}))


def _rows_of_columns(read: list[tuple[str, list[int], list[Any]]], max_rows: int) -> list[Row]:
    names = [name for name, _, _ in read]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise MalformedRequest(f"Input {repeated[0]!r} appears more than once.")
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
    _limit(count, max_rows)
    return [dict(zip(names, values, strict=True)) for values in zip(*(data for _, _, data in read), strict=True)]


def _tensor(index: int, tensor: Any) -> tuple[str, list[int], list[Any]]:
    fields = _object(tensor, ("name", "shape", "datatype", "parameters", "data"), "", f"Input {index}")
    name, shape, datatype, data = (fields.get(field) for field in ("name", "shape", "datatype", "data"))
    if not isinstance(name, str):
        raise MalformedRequest(f'Input {index} has no "name".')
    if type(shape) is not list or not shape or any(type(size) is not int or size < 0 for size in shape):
        raise MalformedRequest(f"Input {name!r}: shape must be a list of whole numbers, got {_show(shape)}.")
    if datatype not in (*_FLOATS, *_INTEGERS, "BOOL", "BYTES"):
        raise MalformedRequest(f"Input {name!r}: datatype {_show(datatype)} is not one of the protocol's.")
    flat = _flat(name, data)
    if len(flat) != math.prod(shape):
        raise MalformedRequest(
            f"Input {name!r}: shape {shape} means {math.prod(shape)} values, data holds {len(flat)}."
        )
    return name, shape, flat


def _flat(name: str, data: Any) -> list[Any]:
    if type(data) is not list:
        raise MalformedRequest(f"Input {name!r}: data must be a list, got {_kind(data)}.")
    if data and type(data[0]) is list:
        if any(type(part) is not list for part in data):
            raise MalformedRequest(f"Input {name!r}: data mixes lists and values.")
        data = [value for part in data for value in part]
    if any(type(value) in (list, dict) for value in data):
        raise MalformedRequest(f"Input {name!r}: data is nested deeper than rows of values.")
    return list(data)


def format_infer(
    endpoint: str, version: int, request_id: str, predictions: list[Any], probabilities: list[Any] | None
) -> dict[str, Any]:
    """The answer: ``prediction`` of shape [n], and ``probability`` of shape [n] or [n, classes] for classes."""
    outputs = [
        {"name": "prediction", "shape": [len(predictions)], "datatype": _datatype(predictions), "data": predictions}
    ]
    if probabilities is not None:
        shape, data = [len(probabilities)], probabilities
        if probabilities and isinstance(probabilities[0], (list, tuple)):
            shape = [len(probabilities), len(probabilities[0])]
            data = [value for row in probabilities for value in row]
        outputs.append({"name": "probability", "shape": shape, "datatype": "FP64", "data": data})
    return {"model_name": endpoint, "model_version": str(version), "id": request_id, "outputs": outputs}


def describe_model(
    endpoint: str, versions: Sequence[int], columns: Sequence[tuple[str, str]], task: str
) -> dict[str, Any]:
    """The protocol's model metadata; ``columns`` are names and kinds of the contract."""
    outputs: list[dict[str, Any]] = [
        {"name": "prediction", "datatype": "FP64" if task == "regression" else "BYTES", "shape": [-1]}
    ]
    if task != "regression":
        outputs.append({"name": "probability", "datatype": "FP64", "shape": [-1] if task == "binary" else [-1, -1]})
    return {
        "name": endpoint,
        "versions": [str(version) for version in versions],
        "platform": "raymlops",
        "inputs": [{"name": name, "datatype": _DATATYPES[kind], "shape": [-1]} for name, kind in columns],
        "outputs": outputs,
    }


def _datatype(values: list[Any]) -> str:
    if all(isinstance(value, bool) for value in values):
        return "BOOL"
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return "INT64"
    return "BYTES" if any(isinstance(value, str) for value in values) else "FP64"


# --- small checks -------------------------------------------------------------------------------------


def _object(content: Any, known: tuple[str, ...], shape: str, where: str = "The body") -> dict[str, Any]:
    if type(content) is not dict:
        raise MalformedRequest(f"{where} is {_kind(content)}, not an object. {shape}".rstrip())
    for name in content:
        if name not in known:
            raise MalformedRequest(f"{where} has an unknown field {_show(name)}.{nearest(name, known)}")
    return content


def _key(key: Any) -> str | None:
    if key is not None and (not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY):
        raise MalformedRequest(f'"key" must be a string of 1 to {_MAX_KEY} characters, got {_show(key)}.')
    return key


def _own_id(fields: Mapping[str, Any]) -> str | None:
    given = fields.get("request_id")
    if given is not None and (not isinstance(given, str) or not _REQUEST_ID.fullmatch(given)):
        raise MalformedRequest(f"A request id is 1 to 64 letters, digits, '.', '_' or '-', got {_show(given)}.")
    return given


def _limit(count: int, max_rows: int) -> None:
    if count > max_rows:
        raise TooLarge(f"The request holds {count} rows; this endpoint takes at most {max_rows} a request.")


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _text(value: bytes) -> str:
    return value[:60].decode("latin-1")
