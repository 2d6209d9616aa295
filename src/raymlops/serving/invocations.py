"""MLflow's scoring protocol: ``/invocations`` in its four JSON shapes and as CSV, answered as MLflow's own server does.

Source: MLflow's documentation of its inference server specification, version 2 of the protocol.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Any

import orjson

from raymlops.data.schema import Column
from raymlops.errors import MalformedRequest, RaymlopsError, TooLarge
from raymlops.serving.checks import as_object, check_count, check_rows, kind_of, show
from raymlops.serving.protocol import PredictRequest, Row, error_status
from raymlops.serving.strict import MAX_STRING, parse_json

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SHAPE = (
    "Send one of dataframe_split ({columns, data}), dataframe_records ([{column: value}]), instances (a list of rows) "
    "or inputs ({column: [value]})."
)
_ERROR_CODES = {
    404: "RESOURCE_DOES_NOT_EXIST",
    422: "INVALID_PARAMETER_VALUE",
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def parse_invocations(body: bytes, columns: Sequence[str], max_rows: int) -> PredictRequest:
    """Rows from any of :data:`FORMATS`. Rows without names take ``columns`` in their order.

    ``params`` is read by no model of ours: it may be there, and be empty.

    Raises
    ------
    MalformedRequest : not JSON, none or several of the formats, rows that do not fit their columns, parameters
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows
    """
    fields = as_object(parse_json(body, max_rows, len(columns)), (*FORMATS, "params"), _SHAPE)
    if fields.get("params"):
        raise MalformedRequest('"params" must be empty: this endpoint takes no parameters.')
    given = [name for name in FORMATS if name in fields]
    if len(given) != 1:
        raise MalformedRequest(f"The body has {' and '.join(given) or 'no rows'}. {_SHAPE}")
    content = fields[given[0]]
    if given[0] == "dataframe_split":
        split = as_object(content, ("columns", "data", "index"), _SHAPE, '"dataframe_split"')
        rows = _named(split.get("data"), _names(split.get("columns")), max_rows)
    elif given[0] == "dataframe_records" or (type(content) is list and content and type(content[0]) is dict):
        rows = content
    elif type(content) is dict:
        rows = _of_columns(content, max_rows)
    else:
        rows = _named(content, columns, max_rows)
    return PredictRequest(check_rows(rows, max_rows))


def _names(columns: Any) -> list[str]:
    if type(columns) is not list or any(type(name) is not str for name in columns):
        raise MalformedRequest('"columns" of "dataframe_split" must be a list of names.')
    if len(set(columns)) < len(columns):
        twice = Counter(columns).most_common(1)[0][0]
        raise MalformedRequest(f"Column {twice[:60]!r} appears more than once.")
    return columns


def _named(data: Any, columns: Sequence[str], max_rows: int) -> list[Row]:
    if type(data) is not list:
        raise MalformedRequest(f"The rows are {kind_of(data)}: send a list of rows, each a list of values.")
    check_count(len(data), max_rows)
    for index, row in enumerate(data):
        if type(row) is not list or len(row) != len(columns):
            what = f"a list of {len(row)} values" if type(row) is list else kind_of(row)
            raise MalformedRequest(f"Row {index} is {what}: send {len(columns)} values, one for each column.")
    return [dict(zip(columns, row, strict=True)) for row in data]


def _of_columns(content: dict[str, Any], max_rows: int) -> list[Row]:
    for name, values in content.items():
        if type(values) is not list:
            raise MalformedRequest(f'Column {show(name)} of "inputs" is {kind_of(values)}: send a list of its values.')
    counts = {len(values) for values in content.values()}
    if len(counts) > 1:
        raise MalformedRequest(f'The columns of "inputs" differ in their number of values: {sorted(counts)[:10]}.')
    check_count(counts.pop() if counts else 0, max_rows)
    return [dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)]


def parse_csv(body: bytes, columns: Sequence[Column], max_rows: int) -> PredictRequest:
    """Rows from CSV with a header, in UTF-8. CSV has no types: each value is read as its column's kind; empty is missing.

    Raises
    ------
    MalformedRequest : not UTF-8, no header, a row of another length, a name twice, a value that is not of its column's kind
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows
    """
    if b"\0" in body:
        raise MalformedRequest("The body holds a NUL character, which nothing can store: leave it out.")
    # Decoded as it is read: the whole text at once would take four times the body's size.
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(body), "utf-8-sig", newline=""), strict=True)
    kinds = {column.name: column.kind for column in columns}
    rows: list[Row] = []
    try:
        header = _names(next(reader, []))
        for number, values in enumerate(reader):
            if not values:
                continue
            check_count(len(rows) + 1, max_rows)
            if len(values) != len(header):
                raise MalformedRequest(f"Row {number} has {len(values)} values, the header {len(header)} names.")
            rows.append(
                {name: _value(name, kinds.get(name), value) for name, value in zip(header, values, strict=True)}
            )
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"The body is not UTF-8: {error.reason}.") from error
    except csv.Error as error:
        raise MalformedRequest(f"The body is not CSV: {error}, line {reader.line_num}.") from error
    return PredictRequest(check_rows(rows, max_rows))


def _value(name: str, kind: str | None, text: str) -> Any:
    if text == "":
        return None
    if len(text) > MAX_STRING:
        raise TooLarge(f"Column {name[:60]!r} holds a text of {len(text)} characters; at most {MAX_STRING} are taken.")
    if "_" in text and kind in ("number", "integer"):
        return text  # Python would read 1_000 as a number
    try:
        if kind == "number":
            return float(text)
        if kind == "integer":
            return int(text)
        if kind == "boolean":
            return _BOOLEANS[text.lower()]
    except (ValueError, KeyError):
        return text  # the contract says what is wrong with it
    return text


def format_invocations(predictions: list[Any]) -> dict[str, Any]:
    """``{"predictions": [...]}``."""
    return {"predictions": predictions}


def invocations_error(error: RaymlopsError) -> bytes:
    """``{"error_code": one of MLflow's words, "message": sentence}``."""
    return orjson.dumps({"error_code": _ERROR_CODES.get(error_status(error), "BAD_REQUEST"), "message": error.message})


def mlflow_version() -> str:
    """The version of the MLflow whose protocol this is, as its own ``/version`` answers."""
    return version_of("mlflow")
