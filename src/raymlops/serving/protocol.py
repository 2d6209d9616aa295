"""raymlops' own request and response formats: rows, labels, errors.

Everything here turns bytes into values or refuses them with a sentence; nothing here knows a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from raymlops.errors import MalformedRequest, RaymlopsError, Retryable, TooLarge, UnsupportedMedia
from raymlops.serving.checks import REQUEST_ID, as_object, check_key, check_own_id, check_rows, kind_of, show
from raymlops.serving.strict import parse_json
from raymlops.store import LabelRow

Row = dict[str, Any]

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Rows to predict; ``key`` makes the choice of the variant sticky; ``request_id`` is the client's own, if any."""

    rows: Sequence[Row]
    key: str | None = None
    request_id: str | None = None


def parse_rows(body: bytes, max_rows: int, columns: int = 64) -> PredictRequest:
    """``{"rows": [{column: value}], "key": str?, "request_id": str?}``.

    Parameters
    ----------
    columns : how many the endpoint takes; it only bounds what is worth parsing

    Raises
    ------
    MalformedRequest : not JSON, or not that shape
    TooLarge : more than ``max_rows`` rows
    ContractViolation : no rows
    """
    content = parse_json(body, max_rows, columns)
    fields = as_object(content, ("rows", "key", "request_id"), 'Send {"rows": [{column: value, …}, …]}.')
    if "rows" not in fields:
        raise MalformedRequest('The body has no "rows". Send {"rows": [{column: value, …}, …]}.')
    return PredictRequest(check_rows(fields["rows"], max_rows), check_key(fields.get("key")), check_own_id(fields))


def parse_labels(body: bytes, max_rows: int) -> list[LabelRow]:
    """``{"labels": [{"request_id": str, "row": int = 0, "label": scalar}]}``, or one such label by itself.

    The labels' values are not judged here: that takes a contract.

    Raises
    ------
    MalformedRequest : not JSON, or not that shape
    TooLarge : more than ``max_rows`` labels
    """
    content = parse_json(body, max_rows, 3)
    shape = 'Send {"labels": [{"request_id": …, "row": 0, "label": …}, …]}.'
    single = isinstance(content, dict) and "labels" not in content
    labels = [content] if single else as_object(content, ("labels",), shape)["labels"]
    if type(labels) is not list or not labels:
        raise MalformedRequest(f'"labels" is {kind_of(labels) if labels != [] else "empty"}. {shape}')
    if len(labels) > max_rows:
        raise TooLarge(f"The request holds {len(labels)} labels; at most {max_rows} are taken at once. Send fewer.")
    return [_label(index, item, shape) for index, item in enumerate(labels)]


def _label(index: int, item: Any, shape: str) -> LabelRow:
    where = f"Label {index}"
    fields = as_object(item, ("request_id", "row", "label"), shape, where)
    for name in ("request_id", "label"):
        if name not in fields:
            raise MalformedRequest(f'{where} has no "{name}". {shape}')
    request_id, row, value = fields["request_id"], fields.get("row", 0), fields["label"]
    if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
        raise MalformedRequest(f'{where}: "request_id" must be the id of a prediction, got {show(request_id)}.')
    if type(row) is not int or not 0 <= row < 2**31:
        raise MalformedRequest(f'{where}: "row" must be the index of a row in its request, from 0, got {show(row)}.')
    if not isinstance(value, (str, int, float, bool)):
        raise MalformedRequest(f'{where}: "label" must be a number, a string or a boolean, got {kind_of(value)}.')
    return LabelRow(request_id=request_id, row_index=row, value=value)


def request_id_of(given: bytes | None) -> str | None:
    """The client's id in a header, when it is one that can be kept."""
    if given is None:
        return None
    text = given.decode("latin-1")
    return text if REQUEST_ID.fullmatch(text) else None


def check_media(headers: Mapping[bytes, bytes], also: bytes = b"") -> bytes:
    """What the body says it is: ``application/json``, also for a body that says nothing, or the one other kind taken.

    Raises
    ------
    UnsupportedMedia
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise UnsupportedMedia(f"The body is compressed ({_text(encoding)}): send it as it is.")
    media = headers.get(b"content-type", b"application/json")
    if media == b"application/json":
        return media
    kind, _, parameters = media.lower().partition(b";")
    kind = kind.strip()
    if kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")):
        kind = b"application/json"
    elif kind != also or not also:
        taken = f"application/json or {_text(also)}" if also else "application/json"
        raise UnsupportedMedia(f"The body is {_text(kind) or 'of no type'}: send {taken}.")
    charset = re.search(rb'charset\s*=\s*"?([^";\s]+)', parameters)
    if charset and charset[1] not in (b"utf-8", b"utf8", b"us-ascii"):
        raise UnsupportedMedia(f"The body's charset is {_text(charset[1])}: send UTF-8.")
    return kind


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


def _text(value: bytes) -> str:
    return value[:60].decode("latin-1")
