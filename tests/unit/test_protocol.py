from __future__ import annotations

import json

import pytest

from raymlops.errors import ContractViolation, MalformedRequest, NotReady, StoreError, TooLarge, UnsupportedMedia
from raymlops.serving.protocol import (
    check_media,
    error_body,
    error_status,
    parse_labels,
    parse_rows,
    request_id_of,
)
from raymlops.store import LabelRow


def rows(body: object, max_rows: int = 10) -> list[dict[str, object]]:
    return parse_rows(json.dumps(body).encode(), max_rows).rows


def test_rows_key_and_request_id_are_read() -> None:
    request = parse_rows(b'{"rows": [{"a": 1}], "key": "user-7", "request_id": "r.1"}', 10)
    assert (request.rows, request.key, request.request_id) == ([{"a": 1}], "user-7", "r.1")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "The body is empty. Send a JSON object in UTF-8."),
        (b"{", "The body is not JSON"),
        (b'{"rows": [{"a": 1}]} x', "The body is not JSON"),
        (b"\xff\xfe{\x00", "The body is not JSON"),
        (b'{"rows": [{"a": "\xff"}]}', "The body is not JSON"),
        (b'{"rows": [{"a": "\\ud800"}]}', "The body is not JSON"),
        (b"[" * 60_000, "The body is not JSON"),
        (b'{"a": NaN' + b"[" * 60_000, "The body is not JSON"),
        (b"[]", "The body is a list, not an object."),
        (b"null", "The body is null, not an object."),
        (b"7", "The body is a number, not an object."),
        (b"{}", 'The body has no "rows".'),
        (b'{"row": []}', "The body has an unknown field 'row'. Did you mean 'rows'?"),
        (b'{"rows": {"a": 1}}', '"rows" is an object: send a list of objects, one a row.'),
        (b'{"rows": [1]}', "Row 0 is a number: each row is an object of column names and values."),
        (b'{"rows": [{}, [1]]}', "Row 1 is a list"),
        (b'{"rows": [{}], "key": 5}', '"key" must be a string of 1 to 256 characters, got 5.'),
        (b'{"rows": [{}], "request_id": "a b"}', "A request id is 1 to 64 letters, digits"),
    ],
)
def test_what_is_not_the_documented_shape_is_malformed(body: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse_rows(body, 10)
    assert sentence in caught.value.message
    assert caught.value.http_status == 400


def test_no_rows_and_too_many_rows() -> None:
    with pytest.raises(ContractViolation, match='"rows" is empty: send at least one row'):
        rows({"rows": []})
    with pytest.raises(TooLarge, match="The request holds 11 rows; this endpoint takes at most 10 a request"):
        rows({"rows": [{}] * 11})


def test_nan_is_read_so_that_the_contract_can_name_the_column() -> None:
    (row,) = parse_rows(b'{"rows": [{"a": NaN, "b": -Infinity}]}', 10).rows
    assert row["a"] != row["a"]
    assert row["b"] == float("-inf")


def test_labels_in_a_list_or_alone() -> None:
    expected = [LabelRow(request_id="r1", row_index=0, value=1)]
    assert parse_labels(b'{"labels": [{"request_id": "r1", "row": 0, "label": 1}]}', 10) == expected
    assert parse_labels(b'{"request_id": "r1", "label": 1}', 10) == expected


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[]", "not an object"),
        (b'{"labels": []}', '"labels" is empty.'),
        (b'{"labels": {}}', '"labels" is an object.'),
        (b'{"labels": [1]}', "Label 0 is a number, not an object."),
        (b'{"labels": [{"label": 1}]}', 'Label 0 has no "request_id".'),
        (b'{"labels": [{"request_id": "r"}]}', 'Label 0 has no "label".'),
        (
            b'{"labels": [{"request_id": "r", "label": null}]}',
            '"label" must be a number, a string or a boolean, got null.',
        ),
        (b'{"labels": [{"request_id": "r", "label": 1, "row": -1}]}', '"row" must be the index of a row'),
        (b'{"labels": [{"request_id": "r", "label": 1, "row": true}]}', '"row" must be the index of a row'),
        (b'{"labels": [{"request_id": 3, "label": 1}]}', '"request_id" must be the id of a prediction, got 3.'),
        (b'{"labels": [{"request_id": "r", "lable": 1}]}', "Did you mean 'label'?"),
    ],
)
def test_bad_labels_are_refused(body: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse_labels(body, 10)
    assert sentence in caught.value.message


def test_too_many_labels() -> None:
    body = json.dumps({"labels": [{"request_id": "r", "label": 1}] * 3}).encode()
    with pytest.raises(TooLarge, match="holds 3 labels"):
        parse_labels(body, 2)


def test_request_ids_that_cannot_be_kept_are_replaced() -> None:
    assert request_id_of("order-17") == "order-17"
    for bad in (None, "", "a" * 65, "a b", "a\n", "ä"):
        assert request_id_of(bad) != bad
        assert len(request_id_of(bad)) == 32


@pytest.mark.parametrize(
    "headers", [{}, {b"content-type": b"application/json; charset=UTF-8"}, {b"content-type": b"application/vnd.x+json"}]
)
def test_json_media_are_taken(headers: dict[bytes, bytes]) -> None:
    check_media(headers)


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({b"content-type": b"text/csv"}, "The body is text/csv: send application/json."),
        ({b"content-type": b"application/json; charset=utf-16"}, "The body's charset is utf-16: send UTF-8."),
        ({b"content-encoding": b"gzip"}, "The body is compressed (gzip): send it as it is."),
        ({b"content-type": b"multipart/form-data; boundary=" + b"-" * 10_000}, "The body is multipart/form-data"),
    ],
)
def test_other_media_are_refused(headers: dict[bytes, bytes], sentence: str) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        check_media(headers)
    assert sentence in caught.value.message


def test_errors_as_json() -> None:
    error = ContractViolation("column 'a': missing", {"failures": ["a"]})
    assert json.loads(error_body(error)) == {
        "error": {"code": "contract", "message": "column 'a': missing", "details": {"failures": ["a"]}}
    }
    assert [error_status(item) for item in (error, NotReady("x"), StoreError("x"))] == [422, 503, 503]
