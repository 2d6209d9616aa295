"""The endpoint's own OpenAPI 3.1 document, made from its data contract."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Any

from raymlops.data.schema import Class, Column, DataContract
from raymlops.serving.arrow import MEDIA
from raymlops.serving.checks import MAX_KEY, REQUEST_ID
from raymlops.serving.spec import Serving
from raymlops.serving.strict import MAX_STRING

_FLOAT32_MAX = 3.4028234663852886e38
_JSON = "application/json"


def document(
    endpoint: str, version: int, columns: Sequence[Column], contract: DataContract, limits: Serving
) -> dict[str, Any]:
    """All routes of an endpoint, with the schema of its rows.

    Parameters
    ----------
    version : the champion's; another version may have another schema
    columns : what a request row holds
    """
    rows = [_example(columns)]
    text, binary = {"schema": {"type": "string"}}, {"schema": {"type": "string", "format": "binary"}}
    predict = {
        _JSON: {"schema": _ref("PredictRequest"), "examples": {"row": {"value": {"rows": rows}}}},
        MEDIA.decode(): binary,
    }
    invocations = {
        _JSON: {
            "schema": _ref("InvocationsRequest"),
            "examples": {"records": {"value": {"dataframe_records": rows}}},
        },
        "text/csv": text,
    }
    answered = {_JSON: {"schema": _ref("PredictResponse")}, MEDIA.decode(): binary}
    model = f"/v2/models/{endpoint}"
    paths = {
        f"/{endpoint}/predict": {"post": _operation("predict", "Predictions for rows", answered, predict)},
        f"/{endpoint}/explain": {
            "post": _operation(
                "explain", "How much each column moved the prediction of each row", "ExplainResponse", "PredictRequest"
            )
        },
        f"/{endpoint}/versions/{{version}}/explain": {
            "post": {
                **_operation(
                    "explain_version",
                    "The same by the champion or the challenger, by number",
                    "ExplainResponse",
                    "PredictRequest",
                ),
                "parameters": [
                    {"name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}
                ],
            },
        },
        f"/{endpoint}/feedback": {
            "post": _operation("feedback", "Labels, durable when answered", "FeedbackResponse", "FeedbackRequest")
        },
        f"/{endpoint}/invocations": {
            "post": _operation("invocations", "MLflow's scoring protocol", "InvocationsResponse", invocations)
        },
        f"/{endpoint}/status": {"get": _operation("status", "What serves, and how", "Anything")},
        f"/{endpoint}/health/live": {"get": _operation("live", "The process answers", "Anything")},
        f"/{endpoint}/health/ready": {"get": _operation("ready", "A champion answers; 503 while draining", "Anything")},
        f"{model}": {"get": _operation("model_metadata", "Open Inference Protocol v2: metadata", "Anything")},
        f"{model}/ready": {"get": _operation("model_ready", "Open Inference Protocol v2: ready", "Anything")},
        f"{model}/infer": {
            "post": _operation("infer", "Open Inference Protocol v2: inference", "InferResponse", "InferRequest")
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": endpoint,
            "version": str(version),
            "description": f"A {contract.task} endpoint of raymlops {version_of('raymlops')}; schemas are version {version}'s.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(columns, contract, limits)},
    }


def row_schema(columns: Sequence[Column]) -> dict[str, Any]:
    """JSON Schema 2020-12 of one row. It takes what the endpoint takes: values outside the range seen in training, and
    categories unseen in it, are taken, so those are told and not enforced; limits that a person stated are.
    """
    return {
        "type": "object",
        "properties": {column.name: _column(column) for column in columns},
        "required": [column.name for column in columns],
        "additionalProperties": False,
    }


def _column(column: Column) -> dict[str, Any]:
    if column.kind == "category":
        schema: dict[str, Any] = {"type": "string", "maxLength": MAX_STRING}
        if column.categories:
            known = {"enum": list(column.categories)}
            unseen = {**schema, "description": "Not seen in training: taken as missing."}
            schema = known if column.closed else {"anyOf": [known, unseen]}
    elif column.kind == "boolean":
        schema = {"type": "boolean"}
    else:
        most = 2**63 - 1 if column.kind == "integer" else _FLOAT32_MAX
        low, high = (limit if given is None else given for limit, given in ((-most, column.low), (most, column.high)))
        schema = {"type": column.kind, "minimum": low, "maximum": high}
        if column.minimum is not None:
            schema["description"] = f"From {column.minimum:g} to {column.maximum:g} in training."
            schema["x-raymlops-seen"] = {"minimum": column.minimum, "maximum": column.maximum}
    if column.nullable:
        schema = {"anyOf": [*(schema.pop("anyOf", None) or [schema]), {"type": "null"}]}
    return schema | {"examples": [_value(column)]}


def _value(column: Column) -> Any:
    if column.kind == "category":
        return column.categories[0] if column.categories else "text"
    if column.kind == "boolean":
        return True
    middle = 0.0 if column.minimum is None or column.maximum is None else (column.minimum + column.maximum) / 2
    middle = max(middle, middle if column.low is None else column.low)
    middle = min(middle, middle if column.high is None else column.high)
    return int(middle) if column.kind == "integer" else middle


def _example(columns: Sequence[Column]) -> dict[str, Any]:
    return {column.name: _value(column) for column in columns}


def _schemas(columns: Sequence[Column], contract: DataContract, limits: Serving) -> dict[str, Any]:
    label = _label(contract)
    predictions = {"type": "array", "items": label}
    probability: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
    if contract.task == "multiclass":
        k = len(contract.classes)
        probability = {"type": "array", "items": probability, "minItems": k, "maxItems": k}
    probabilities = {"type": "null"} if contract.task == "regression" else {"type": "array", "items": probability}
    request_id = {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"}
    key = {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_KEY}
    rows = {"type": "array", "items": _ref("Row"), "minItems": 1, "maxItems": limits.max_rows}
    matrix = {"type": "array", "items": {"type": "array"}, "minItems": 1, "maxItems": limits.max_rows}
    split = {"columns": {"type": "array", "items": {"type": "string"}}, "data": matrix, "index": {"type": "array"}}
    lists = {"type": "object", "additionalProperties": {"type": "array"}}
    label_item = _object({"request_id": request_id, "row": {"type": "integer", "minimum": 0}, "label": label})
    label_item["required"] = ["request_id", "label"]
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    tensor = _object(
        {"name": {"type": "string"}, "shape": shape, "datatype": {"type": "string"}, "data": {"type": "array"}}
    )
    error = _object({"code": {"type": "string"}, "message": {"type": "string"}, "details": {"type": "object"}})
    return {
        "Row": row_schema(columns),
        "PredictRequest": {
            **_object({"rows": rows, "key": key, "request_id": {"anyOf": [request_id, {"type": "null"}]}}),
            "required": ["rows"],
        },
        "PredictResponse": _object(
            {
                "request_id": request_id,
                "version": {"type": "integer"},
                "variant": {"type": "string"},
                "predictions": predictions,
                "probabilities": probabilities,
            }
        ),
        "ExplainResponse": _explained(label, probabilities),
        "FeedbackRequest": {
            "anyOf": [_object({"labels": {"type": "array", "items": label_item, "minItems": 1}}), label_item]
        },
        "FeedbackResponse": _object({"stored": {"type": "integer"}, "duplicate": {"type": "integer"}}),
        "InvocationsRequest": {
            "oneOf": [
                _object({"dataframe_records": rows}),
                _object({"dataframe_split": {**_object(split), "required": ["columns", "data"]}}),
                _object({"instances": {"anyOf": [rows, matrix, lists]}}),
                _object({"inputs": {"anyOf": [rows, matrix, lists]}}),
            ]
        },
        "InvocationsResponse": _object({"predictions": predictions}),
        "InferRequest": {
            "type": "object",
            "properties": {
                "id": request_id,
                "parameters": {"type": "object"},
                "inputs": {"type": "array", "items": {**tensor, "additionalProperties": True}, "minItems": 1},
                "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
            },
            "required": ["inputs"],
            "additionalProperties": False,
        },
        "InferResponse": _object(
            {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": request_id,
                "outputs": {"type": "array", "items": tensor},
            }
        ),
        "Error": {
            "description": "Open Inference Protocol and MLflow routes word their errors as those protocols do.",
            "anyOf": [
                _object({"error": error}),
                _object({"error": {"type": "string"}}),
                _object({"error_code": {"type": "string"}, "message": {"type": "string"}}),
            ],
        },
        "Anything": {"type": "object"},
    }


def _explained(label: dict[str, Any], probabilities: dict[str, Any]) -> dict[str, Any]:
    """Contributions name the columns that the model takes, which a ``features`` function may have made."""
    number = {"type": ["number", "array"], "items": {"type": "number"}}
    by_column = {"type": "object", "additionalProperties": number}
    row = _object(
        {
            "prediction": label,
            "probability": probabilities.get("items", {"type": "null"}),
            "base": number,
            "output": number,
            "contributions": by_column,
            "standard_errors": {"anyOf": [by_column, {"type": "null"}]},
        }
    )
    return _object(
        {
            "request_id": {"type": "string"},
            "version": {"type": "integer"},
            "method": {"enum": ["tree_shap", "linear", "sampled_shapley"]},
            "units": {"enum": ["log-odds", "score", "probability", "value"]},
            "classes": {"type": ["array", "null"]},
            "rows": {"type": "array", "items": row},
        }
    )


def _label(contract: DataContract) -> dict[str, Any]:
    if contract.task == "regression":
        return {"type": "number"}
    classes: list[Class] = list(contract.classes)
    return {"enum": classes}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Every property is there, and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(
    name: str, summary: str, answer: str | dict[str, Any], request: str | dict[str, Any] | None = None
) -> dict[str, Any]:
    headers = {
        "x-request-id": {"schema": {"type": "string"}},
        "x-raymlops-version": {"schema": {"type": "integer"}},
        "x-raymlops-variant": {"schema": {"type": "string"}},
    }
    content = {_JSON: {"schema": _ref(answer)}} if isinstance(answer, str) else answer
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "The answer", "headers": headers, "content": content},
            "default": {
                "description": "A typed error; x-raymlops-error names its kind",
                "content": {_JSON: {"schema": _ref("Error")}},
            },
        },
    }
    if request is not None:
        body = {_JSON: {"schema": _ref(request)}} if isinstance(request, str) else request
        operation["requestBody"] = {"required": True, "content": body}
    return operation
