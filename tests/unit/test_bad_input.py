"""Whatever a client sends is answered by a typed 4xx, by nothing that helps an attacker, and within the memory it was given."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from raymlops.serving.gateway import Gateway
from raymlops.serving.lane import Lane
from raymlops.serving.listener import bind, make_server
from raymlops.serving.spec import Serving
from raymlops.testing.serving import fake_gateway

ROW = b'{"a": 0.5, "b": 0.25, "c": "x"}'
LIMIT = 8 * 1024 * 1024
LEAKS = re.compile(rb"Traceback|\.py\b|site-packages|/home|/usr|/tmp|0x[0-9a-f]{8}|<class")


def rows(*texts: bytes) -> bytes:
    return b'{"rows": [' + b", ".join(texts) + b"]}"


def a(value: bytes) -> bytes:
    return rows(b'{"a": %s, "b": 0.25, "c": "x"}' % value)


def b(value: bytes) -> bytes:
    return rows(b'{"a": 0.5, "b": %s, "c": "x"}' % value)


def c(value: bytes) -> bytes:
    return rows(b'{"a": 0.5, "b": 0.25, "c": %s}' % value)


JSON: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "malformed"),
    "not json": (b"rows", 400, "malformed"),
    "truncated": (rows(ROW)[:-3], 400, "malformed"),
    "trailing garbage": (rows(ROW) + b"x", 400, "malformed"),
    "two bodies": (rows(ROW) * 2, 400, "malformed"),
    "byte order mark": (b"\xef\xbb\xbf" + rows(ROW), 400, "malformed"),
    "byte order mark and nan": (b"\xef\xbb\xbf" + a(b"NaN"), 400, "malformed"),
    "utf-16": (rows(ROW).decode().encode("utf-16"), 400, "malformed"),
    "utf-16 without a mark": (rows(ROW).decode().encode("utf-16-le"), 400, "malformed"),
    "utf-32": (rows(ROW).decode().encode("utf-32"), 400, "malformed"),
    "latin-1": (c(b'"\xe4"'), 400, "malformed"),
    "overlong utf-8": (c(b'"\xc0\x80"'), 400, "malformed"),
    "lone surrogate": (c(b'"\\ud800"'), 400, "malformed"),
    "lone surrogate and nan": (rows(b'{"a": NaN, "b": 1, "c": "\\udc00"}'), 400, "malformed"),
    "surrogate as bytes": (c(b'"\xed\xa0\x80"'), 400, "malformed"),
    "nul": (c(b'"\\u0000"'), 400, "malformed"),
    "raw nul": (c(b'"\0"'), 400, "malformed"),
    "control character": (c(b'"\x01"'), 400, "malformed"),
    "comment": (rows(ROW) + b"// x", 400, "malformed"),
    "single quotes": (b"{'rows': []}", 400, "malformed"),
    "trailing comma": (rows(ROW + b","), 400, "malformed"),
    "leading zero": (a(b"01"), 400, "malformed"),
    "hex": (a(b"0x1"), 400, "malformed"),
    "plus": (a(b"+1"), 400, "malformed"),
    "half a number": (a(b"1e"), 400, "malformed"),
    "nested 100k": (b"[" * 100_000, 400, "malformed"),
    "nested 100k objects": (b'{"a":' * 100_000, 400, "malformed"),
    "nested 100k and nan": (b"[NaN" + b"[" * 100_000, 400, "malformed"),
    "nested 17": (c(b"[" * 15 + b"]" * 15), 400, "malformed"),
    "name twice": (b'{"rows": [], "rows": [' + ROW + b"]}", 400, "malformed"),
    "column twice": (rows(b'{"a": 1, "a": 2, "b": 1, "c": "x"}'), 400, "malformed"),
    "column twice, once escaped": (rows(b'{"a": 1, "\\u0061": 2, "b": 1, "c": "x"}'), 400, "malformed"),
    "column twice and nan": (rows(b'{"a": 1, "a": NaN, "b": 1, "c": "x"}'), 400, "malformed"),
    "list for object": (b"[" + ROW + b"]", 400, "malformed"),
    "scalar": (b"1", 400, "malformed"),
    "null": (b"null", 400, "malformed"),
    "text": (b'"rows"', 400, "malformed"),
    "empty object": (b"{}", 400, "malformed"),
    "object for list": (b'{"rows": ' + ROW + b"}", 400, "malformed"),
    "rows null": (b'{"rows": null}', 400, "malformed"),
    "row a list": (rows(b"[0.5, 0.25]"), 400, "malformed"),
    "ragged": (rows(ROW, b"[]"), 400, "malformed"),
    "unknown field": (b'{"rows": [' + ROW + b'], "model": "x"}', 400, "malformed"),
    "key a number": (b'{"rows": [' + ROW + b'], "key": 1}', 400, "malformed"),
    "key empty": (b'{"rows": [' + ROW + b'], "key": ""}', 400, "malformed"),
    "key long": (b'{"rows": [' + ROW + b'], "key": "' + b"k" * 257 + b'"}', 400, "malformed"),
    "request id with a path": (b'{"rows": [' + ROW + b'], "request_id": "../x"}', 400, "malformed"),
    "request id with a line end": (b'{"rows": [' + ROW + b'], "request_id": "a\\r\\nb"}', 400, "malformed"),
    "no rows": (rows(), 422, "contract"),
    "empty row": (rows(b"{}"), 422, "contract"),
    "missing column": (rows(b'{"a": 1, "b": 1}'), 422, "contract"),
    "unknown column": (rows(ROW[:-1] + b', "d": 1}'), 422, "contract"),
    "look-alike": (rows('{"а": 0.5, "b": 0.25, "c": "x"}'.encode()), 422, "contract"),
    "name with spaces": (rows(b'{" a": 0.5, "b": 0.25, "c": "x"}'), 422, "contract"),
    "rows of different length": (rows(ROW, b'{"a": 1}'), 422, "contract"),
    "text for a number": (a(b'"1"'), 422, "contract"),
    "boolean for a number": (a(b"true"), 422, "contract"),
    "null for a number": (a(b"null"), 422, "contract"),
    "list for a number": (a(b"[1]"), 422, "contract"),
    "object for a number": (a(b'{"x": 1}'), 422, "contract"),
    "date for a number": (a(b'"2026-13-45"'), 422, "contract"),
    "number for text": (c(b"1"), 422, "contract"),
    "boolean for text": (c(b"false"), 422, "contract"),
    "null for text": (c(b"null"), 422, "contract"),
    "list for text": (c(b'["x"]'), 422, "contract"),
    "nan": (a(b"NaN"), 422, "contract"),
    "infinity": (a(b"Infinity"), 422, "out_of_range"),
    "minus infinity": (a(b"-Infinity"), 422, "out_of_range"),
    "1e999": (a(b"1e999"), 422, "out_of_range"),
    "1e300": (a(b"1e300"), 422, "out_of_range"),
    "5000 digits": (a(b"9" * 5000), 422, "out_of_range"),
    "minus 5000 digits": (b(b"-" + b"9" * 5000), 422, "out_of_range"),
    "2**53 + 1": (a(b"9007199254740993"), 422, "out_of_range"),
    "2**64": (b(b"18446744073709551616.0e1"), 200, ""),
    "beyond int64": (a(b"9223372036854775808"), 422, "out_of_range"),
    "long text": (c(b'"' + b"x" * 5000 + b'"'), 413, "too_large"),
    "long text of escapes": (c(b'"' + b'\\"' * 5000 + b'"'), 413, "too_large"),
    "a name of 1 MB": (rows(b'{"' + b"n" * 2**20 + b'": 1}'), 413, "too_large"),
    "a text of 1 MB": (c(b'"' + b"n" * 2**20 + b'"'), 413, "too_large"),
    "10**6 names": (rows(b"{" + b",".join(b'"%d":1' % i for i in range(10**6)) + b"}"), 413, "too_large"),
    "10**6 elements": (b'{"rows": [' + b"0," * 10**6 + b"0]}", 413, "too_large"),
    "10**6 lists": (b'{"rows": [' + b"[]," * 10**6 + b"0]}", 413, "too_large"),
    "10**6 empty rows": (b'{"rows": [' + b"{}," * 10**6 + b"{}]}", 413, "too_large"),
    "a list of 10**6 in a row": (a(b"[" + b"0," * 10**6 + b"0]"), 413, "too_large"),
    "20 unknown columns a row": (
        rows(*[b"{" + b",".join(b'"k%d":1' % i for i in range(20)) + b"}"] * 10_000),
        413,
        "too_large",
    ),
    "12 unknown columns a row": (
        rows(*[b"{" + b",".join(b'"k%d":1' % i for i in range(12)) + b"}"] * 3000),
        422,
        "contract",
    ),
    "one row too many": (rows(*[ROW] * 10_001), 413, "too_large"),
    "larger than the limit": (b" " * (LIMIT + 1), 413, "too_large"),
    # and what only looks bad
    "minus zero": (a(b"-0.0"), 200, ""),
    "denormal": (a(b"5e-324"), 200, ""),
    "2**53": (a(b"9007199254740992"), 200, ""),
    "missing where it may be": (b(b"null"), 200, ""),
    "nan where it may be missing": (b(b"NaN"), 200, ""),
    "category never seen": (c(b'"z"'), 200, ""),
    "other order": (rows(b'{"c": "x", "b": 1, "a": 0}'), 200, ""),
    "full of what is counted": (c(rb'"::{{[[,,\"\"\\"'), 200, ""),
    "as many rows as may be": (rows(*[ROW] * 10_000), 200, ""),
}

HEADERS: dict[str, tuple[dict[str, str], bytes, int]] = {
    "csv": ({"content-type": "text/csv"}, rows(ROW), 415),
    "form": ({"content-type": "application/x-www-form-urlencoded"}, rows(ROW), 415),
    "multipart": ({"content-type": "multipart/form-data; boundary=" + "-" * 10_000}, rows(ROW), 415),
    "empty type": ({"content-type": ""}, rows(ROW), 415),
    "utf-16": ({"content-type": "application/json; charset=utf-16"}, rows(ROW), 415),
    "arrow that is none": ({"content-type": "application/vnd.apache.arrow.stream"}, rows(ROW), 400),
    "gzip": ({"content-encoding": "gzip"}, gzip.compress(rows(ROW)), 415),
    "gzip bomb": ({"content-encoding": "gzip"}, gzip.compress(b" " * 10**8), 415),
    "deflate": ({"content-encoding": "deflate"}, rows(ROW), 415),
    "brotli": ({"content-encoding": "br"}, rows(ROW), 415),
    "several codings": ({"content-encoding": "identity, gzip"}, rows(ROW), 415),
    "no type": ({}, rows(ROW), 200),
    "quoted charset": ({"content-type": 'application/json; charset="UTF-8"'}, rows(ROW), 200),
    "deadline 0": ({"x-request-timeout-seconds": "0"}, rows(ROW), 200),
    "deadline -1": ({"x-request-timeout-seconds": "-1"}, rows(ROW), 200),
    "deadline nan": ({"x-request-timeout-seconds": "nan"}, rows(ROW), 200),
    "no disconnect": ({"x-request-disconnect-disabled": "?1"}, rows(ROW), 200),
    "spoofed version": ({"x-raymlops-version": "99", "x-raymlops-variant": "challenger"}, rows(ROW), 200),
    "spoofed request id": ({"x-request-id": "../../etc/passwd"}, rows(ROW), 200),
    "long request id": ({"x-request-id": "i" * 65}, rows(ROW), 200),
    "accepts nothing we have": ({"accept": "image/png"}, rows(ROW), 200),
}

LABELS: dict[str, tuple[bytes, int]] = {
    "unknown id": (b'{"request_id": "nobody", "label": 1}', 404),
    "no label": (b'{"request_id": "r"}', 400),
    "null": (b'{"request_id": "r", "label": null}', 400),
    "object": (b'{"request_id": "r", "label": {}}', 400),
    "nan": (b'{"request_id": "r", "label": NaN}', 422),
    "class that is none": (b'{"request_id": "r", "label": 2}', 422),
    "boolean": (b'{"request_id": "r", "label": true}', 422),
    "text": (b'{"request_id": "r", "label": "1"}', 422),
    "5000 digits": (b'{"request_id": "r", "label": ' + b"9" * 5000 + b"}", 422),
    "row -1": (b'{"request_id": "r", "label": 1, "row": -1}', 400),
    "row 2**70": (b'{"request_id": "r", "label": 1, "row": 1180591620717411303424}', 400),
    "label twice": (b'{"request_id": "r", "label": 1, "label": 0}', 400),
    "10**6 labels": (b'{"labels": [' + b"{}," * 10**6 + b"{}]}", 413),
    "10**5 empty labels": (b'{"labels": [' + b"{}," * 9000 + b"{}]}", 400),
}

PATHS: dict[str, tuple[str, str, int]] = {
    "wrong method": ("GET", "/churn/predict", 405),
    "trace": ("TRACE", "/churn/predict", 405),
    "delete": ("DELETE", "/churn/status", 405),
    "head": ("HEAD", "/churn/status", 405),
    "own word for a method": ("BREW", "/churn/predict", 405),
    "upwards": ("GET", "/churn/../../etc/passwd", 404),
    "escaped upwards": ("GET", "/churn/%2e%2e%2fetc/passwd", 404),
    "twice escaped": ("GET", "/churn/%252e%252e%252f", 404),
    "backslash": ("GET", "/churn/\\..\\..\\windows", 404),
    "double slash": ("GET", "//churn//status", 404),
    "nul": ("GET", "/churn/status%00.json", 404),
    "slash at the end": ("GET", "/churn/status/", 404),
    "upper case": ("GET", "/CHURN/status", 404),
    "8 KB": ("GET", "/churn/" + "x" * 8192, 414),
    "another endpoint": ("POST", "/other/predict", 404),
    "another model": ("GET", "/v2/models/other", 404),
    "version that is none": ("GET", "/v2/models/churn/versions/2", 404),
    "version zero": ("GET", "/v2/models/churn/versions/0/ready", 404),
    "version by a name": ("GET", "/v2/models/churn/versions/latest", 404),
    "version V": ("GET", "/v2/models/churn/versions/V", 404),
    "version upwards": ("GET", "/v2/models/churn/versions/..", 404),
    "version of many digits": ("GET", "/v2/models/churn/versions/" + "9" * 400, 404),
    "negative version": ("GET", "/v2/models/churn/versions/-1", 404),
}

Case = tuple[str, str, dict[str, str], bytes, int, str]


def ask(cases: list[Case], check: Callable[[Gateway], None] = lambda _: None) -> list[httpx.Response]:
    """Below the level of any client, which would tidy paths and headers up; paths are unquoted once, as servers do."""

    async def main() -> list[httpx.Response]:
        gateway, answers = await fake_gateway(limits=Serving(max_body_bytes=LIMIT)), []
        for method, path, headers, body, _, _ in cases:
            inbox, sent = [{"type": "http.request", "body": body, "more_body": False}], []

            async def receive(inbox: list[Any] = inbox) -> Any:
                return inbox.pop()

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            given = [(name.encode(), value.encode()) for name, value in headers.items()]
            await gateway({"type": "http", "method": method, "path": unquote(path), "headers": given}, receive, send)
            answers.append(httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=sent[1]["body"]))
        check(gateway)
        await gateway.close()
        return answers

    return asyncio.run(main())


CASES: dict[str, Case] = {
    **{f"json: {n}": ("POST", "/churn/predict", {}, body, s, e) for n, (body, s, e) in JSON.items()},
    **{f"header: {n}": ("POST", "/churn/predict", h, body, s, "") for n, (h, body, s) in HEADERS.items()},
    **{f"label: {n}": ("POST", "/churn/feedback", {}, body, s, "") for n, (body, s) in LABELS.items()},
    **{f"path: {n}": (method, path, {}, b"", s, "") for n, (method, path, s) in PATHS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_typed_words(name: str) -> None:
    case = CASES[name]

    def nothing_is_held_against_the_model(gateway: Gateway) -> None:
        assert gateway.status()["errors"] == 0
        assert gateway.status()["requests"] == (case[4] == 200)

    (answer,) = ask([case], nothing_is_held_against_the_model)
    assert answer.status_code == case[4], answer.text[:300]
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])
    assert answer.headers["x-request-id"] not in ("../../etc/passwd", "i" * 65)
    assert not LEAKS.search(answer.content)
    assert len(answer.content) < 8192 or case[4] == 200
    if case[0] == "HEAD":
        return
    if answer.status_code == 200:
        assert (answer.headers["x-raymlops-version"], answer.headers["x-raymlops-variant"]) == ("1", "champion")
        return
    assert answer.headers["x-raymlops-error"]
    error = answer.json()["error"]
    if not case[1].startswith("/v2"):
        assert error["code"] == answer.headers["x-raymlops-error"]
        assert error["message"][-1] in ".)'}…" or error["message"]
    if case[5]:
        assert error["code"] == case[5]


OTHER_FORMATS = {
    "/v2/models/churn/infer": b'{"inputs": %s}',
    "/churn/invocations": b'{"dataframe_records": %s}',
}


@pytest.mark.parametrize("path", OTHER_FORMATS)
def test_other_formats_refuse_as_strictly(path: str) -> None:
    """Each body of the table, and its core in this format's own frame; what is no valid request of the format is a 4xx."""
    cases: list[Case] = []
    for name, (body, _, _) in JSON.items():
        if name == "list for object":
            continue  # in MLflow's frame it is what it should be
        framed = OTHER_FORMATS[path] % (body[len(b'{"rows": ') : -1] if body.startswith(b'{"rows": ') else body)
        cases += [("POST", path, {}, body, 0, name), ("POST", path, {}, framed, 0, name)]
    for case, answer in zip(cases, ask(cases), strict=True):
        expected = JSON[case[5]][1]
        assert 400 <= answer.status_code < 500 or answer.status_code == 200 == expected, (case[5], answer.text[:200])
        assert answer.headers["x-request-id"]
        assert not LEAKS.search(answer.content)
        if answer.status_code != 200:
            assert set(answer.json()) == ({"error"} if path.startswith("/v2") else {"error_code", "message"})


def test_the_short_way_of_the_gateways_own_listener_refuses_as_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each body of the table over a socket, with nothing in its headers that would send it the usual way."""
    taken: list[object] = []
    submit = Lane.submit
    monkeypatch.setattr(Lane, "submit", lambda lane, call: (taken.append(call), submit(lane, call)))

    async def main() -> dict[str, tuple[int, str]]:
        gateway = await fake_gateway(limits=Serving(max_body_bytes=LIMIT))
        server, socket = make_server(gateway, "/churn/predict"), bind("127.0.0.1", 0)
        serving = asyncio.ensure_future(server._serve([socket]))
        while not server.started:
            await asyncio.sleep(0.005)
        found = {}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}", timeout=20) as client:
            for name, (body, _, _) in JSON.items():
                if len(body) <= LIMIT:  # a larger one may be cut off by a reset before its answer is read
                    answer = await client.post("/churn/predict", content=body)
                    assert answer.headers["x-request-id"]
                    assert not LEAKS.search(answer.content)
                    found[name] = answer.status_code, answer.headers.get("x-raymlops-error", "")
        assert gateway.status()["errors"] == 0
        server.should_exit = True
        await serving
        await gateway.close()
        return found

    found = asyncio.run(main())
    assert found == {name: (status, code) for name, (body, status, code) in JSON.items() if len(body) <= LIMIT}
    assert len(taken) > 50


def test_hostile_bodies_do_not_grow_the_process_beyond_twice_the_limit() -> None:
    """Python's own allocations, body included, from the request's first byte to its answer."""
    large = {name: case for name, case in CASES.items() if len(case[3]) > 500_000 and case[4] != 200}
    assert len(large) >= 8

    async def main() -> dict[str, int]:
        gateway = await fake_gateway(limits=Serving(max_body_bytes=LIMIT))
        grown = {}
        for name, (method, path, _, body, status, _) in large.items():
            parts = [body[at : at + 65536] for at in range(0, len(body), 65536)]

            async def receive(parts: list[bytes] = parts) -> dict[str, Any]:
                part = parts.pop(0)
                # A copy, as if it had come from a socket.
                return {"type": "http.request", "body": bytes(bytearray(part)), "more_body": bool(parts)}

            sent: list[Any] = []

            async def send(message: Any, sent: list[Any] = sent) -> None:
                sent.append(message)

            tracemalloc.start()
            await gateway({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
            grown[name] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert sent[0]["status"] == status
        await gateway.close()
        return grown

    grown = asyncio.run(main())
    assert {name: size for name, size in grown.items() if size > 2 * LIMIT} == {}


@pytest.mark.parametrize("path", ["/churn/predict", "/v2/models/churn/infer", "/churn/invocations"])
def test_a_head_that_another_server_has_read_is_bounded_here(path: str) -> None:
    """Ray Serve's proxy takes heads of any size."""
    large = {"x": "y" * 17_000}
    many = {f"x-{i}": "y" for i in range(2000)}
    answers = ask(
        [
            ("POST", path, large, rows(ROW), 431, ""),
            ("POST", path, many, rows(ROW), 431, ""),
            ("POST", f"{path}?{'x' * 5000}", {}, rows(ROW), 414, ""),
        ]
    )
    assert [answer.status_code for answer in answers] == [431, 431, 414]
    assert [answer.headers["x-raymlops-error"] for answer in answers] == [
        *("headers_too_large", "headers_too_large", "target_too_long")
    ]


def test_the_table_is_as_long_as_it_says() -> None:
    assert len(CASES) + 2 * 2 * len(JSON) >= 200


def test_a_refusal_says_what_to_do_without_saying_it_forever() -> None:
    many = rows(*[b"{" + b",".join(b'"k%d":1' % i for i in range(20)) + b"}"] * 100)
    (answer,) = ask([("POST", "/churn/predict", {}, many, 422, "")])
    error = answer.json()["error"]
    assert len(error["details"]["failures"]) == 10
    assert error["message"].endswith("and at least 93 more")
    assert json.loads(answer.content)["error"]["code"] == "contract"
