"""The gateways' own listener, spoken to byte by byte: whatever comes, it answers in typed words or closes, and in time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from raymlops.errors import ConfigError
from raymlops.serving.gateway import Gateway
from raymlops.serving.http import MAX_HEAD
from raymlops.serving.listener import Listener, bind, make_server
from raymlops.serving.spec import Serving
from raymlops.testing.serving import FakeModel, fake_gateway

ROW = {"a": 0.5, "b": 0.25, "c": "x"}
BODY = json.dumps({"rows": [ROW]}).encode()
GOOD = b"POST /churn/predict HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
QUICK = Serving(deadline_s=0.4, header_timeout_s=0.4)


@asynccontextmanager
async def listening(
    limits: Serving = QUICK, model: FakeModel | None = None
) -> AsyncIterator[tuple[int, Gateway, Listener, asyncio.Task[None]]]:
    gateway = await fake_gateway(model, limits)
    listener, sock = make_server(gateway, "/churn/predict"), bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    task = asyncio.ensure_future(listener._serve([sock]))
    while not listener.started:
        await asyncio.sleep(0.005)
    try:
        yield port, gateway, listener, task
    finally:
        listener.should_exit = True
        await task
        await gateway.close()


def run(scenario: Callable[..., Awaitable[None]], *args: Any, **kwargs: Any) -> None:
    async def main() -> None:
        async with listening(*args, **kwargs) as world:
            await asyncio.wait_for(scenario(*world), 20)

    asyncio.run(main())


async def say(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that comes back until the other side closes, for bytes sent part by part."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def read(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


def request(head: bytes, body: bytes = b"") -> bytes:
    return head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body


BAD: dict[str, tuple[bytes, set[int]]] = {
    "length and chunks": (
        request(b"POST /churn/predict HTTP/1.1\nhost: h\ncontent-length: 6\ntransfer-encoding: chunked", b"0\r\n\r\nX"),
        {400},
    ),
    "two lengths": (request(b"POST /churn/predict HTTP/1.1\ncontent-length: 5\ncontent-length: 6", b"{}    "), {400}),
    "negative length": (request(b"POST /churn/predict HTTP/1.1\ncontent-length: -1"), {400}),
    "length in hex": (request(b"POST /churn/predict HTTP/1.1\ncontent-length: 0x5", b"{}   "), {400}),
    "huge length": (request(b"POST /churn/predict HTTP/1.1\ncontent-length: 99999999999999999"), {413}),
    "length past 2**64": (
        request(b"POST /churn/predict HTTP/1.1\ncontent-length: 99999999999999999999999"),
        {400, 413},
    ),
    "longer than it says": (request(b"POST /churn/predict HTTP/1.1\ncontent-length: 2", b"{}garbage"), {400}),
    "shorter than it says": (request(b"POST /churn/predict HTTP/1.1\ncontent-length: 50", b"{}"), {408}),
    "no length": (request(b"POST /churn/predict HTTP/1.1\nconnection: close"), {400}),
    "chunk of bad size": (request(b"POST /churn/predict HTTP/1.1\ntransfer-encoding: chunked", b"zz\r\n{}\r\n"), {400}),
    "chunk too long for its size": (
        request(b"POST /churn/predict HTTP/1.1\ntransfer-encoding: chunked", b"2\r\n{}{}\r\n0\r\n\r\n"),
        {400},
    ),
    "chunk of huge size": (
        request(b"POST /churn/predict HTTP/1.1\ntransfer-encoding: chunked", b"fffffffffffffffff\r\n{}"),
        {400},
    ),
    "chunks without end": (request(b"POST /churn/predict HTTP/1.1\ntransfer-encoding: chunked", b"2\r\n{}\r\n"), {408}),
    "unknown transfer coding": (
        request(b"POST /churn/predict HTTP/1.1\nconnection: close\ntransfer-encoding: bzip", b"{}"),
        {400},
    ),
    "expects a hundred and never follows": (
        request(b"POST /churn/predict HTTP/1.1\nexpect: 100-continue\ncontent-length: 5"),
        {408},
    ),
    "half a head": (b"POST /churn/predict HTTP/1.1\r\nhost: h\r\n", {408}),
    "half a name": (b"POST /churn/predict HTTP/1.1\r\ncontent-len", {408}),
    "large head": (request(b"GET /churn/status HTTP/1.1\nx: " + b"y" * 70_000), {431}),
    "large head that does not end": (b"GET /churn/status HTTP/1.1\r\nx: " + b"y" * 200_000, {431}),
    "many headers": (request(b"GET /churn/status HTTP/1.1" + b"\na: b" * 5000), {431}),
    "long target": (request(b"GET /churn/" + b"x" * 8192 + b" HTTP/1.1"), {414}),
    "long query": (request(b"GET /churn/status?" + b"x" * 70_000 + b" HTTP/1.1"), {414, 431}),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", {400}),
    "websocket": (
        request(
            b"GET /churn/predict HTTP/1.1\nhost: h\nconnection: upgrade, close\nupgrade: websocket\nsec-websocket-version: 13"
            b"\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
        ),
        {405},
    ),
    "trace": (request(b"TRACE /churn/predict HTTP/1.1\nconnection: close"), {405}),
    "connect": (request(b"CONNECT example.com:443 HTTP/1.1\nconnection: close"), {400, 404, 405}),
    "unknown method": (request(b"BREW /churn/predict HTTP/1.1"), {400}),
    "no method": (b"\0\1\2\3\4\5\r\n\r\n", {400}),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, {400}),
    "http/0.9": (b"GET /\r\n", {400, 408}),
    "http/3.0": (request(b"GET /churn/status HTTP/3.0"), {400}),
    "space in a name": (request(b"GET /churn/status HTTP/1.1\na b: c"), {400}),
    "nul in a value": (request(b"GET /churn/status HTTP/1.1\na: b\0c"), {400}),
    "return in a value": (request(b"GET /churn/status HTTP/1.1\na: b\rc: d"), {400}),
    "folded header": (request(b"GET /churn/status HTTP/1.1\na: b\n c"), {400}),
    "non-ascii target": (request("GET /ä HTTP/1.1".encode()), {400}),
    "path upwards": (request(b"GET /churn/../../etc/passwd HTTP/1.1\nconnection: close"), {404}),
    "escaped path upwards": (request(b"GET /churn/%2e%2e%2f%2e%2e%2fetc/passwd HTTP/1.1\nconnection: close"), {404}),
    "twice escaped": (request(b"GET /churn/%252e%252e/status HTTP/1.1\nconnection: close"), {404}),
    "nul in the path": (request(b"GET /churn/status%00 HTTP/1.1\nconnection: close"), {404}),
    "half an escape": (request(b"GET /churn/status%e HTTP/1.1\nconnection: close"), {404}),
    "a url for a target": (request(b"GET http://elsewhere/etc HTTP/1.1\nconnection: close"), {404}),
    "star for a target": (request(b"OPTIONS * HTTP/1.1\nconnection: close"), {400, 404}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_answered_by_a_typed_error_and_the_connection_closes(name: str) -> None:
    sent, expected = BAD[name]

    async def scenario(port: int, gateway: Gateway, *_: Any) -> None:
        status, headers, body = read((await say(port, sent)).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
        assert status in expected
        assert headers["connection"] == "close"
        assert headers["x-request-id"]
        error = json.loads(body[: int(headers["content-length"])])["error"]
        assert error["code"] == headers["x-raymlops-error"]
        assert not any(word in body for word in (b"Traceback", b".py", b"site-packages"))
        assert read(await say(port, GOOD.replace(b"host: h", b"connection: close")))[0] == 200
        assert gateway.status()["errors"] == 0

    run(scenario)


def test_what_drips_is_closed_within_its_limit_while_others_are_served() -> None:
    async def scenario(port: int, *_: Any) -> None:
        loop = asyncio.get_running_loop()

        async def drip(first: bytes) -> tuple[int, float]:
            began = loop.time()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            answer = asyncio.ensure_future(reader.read())
            while not answer.done():
                with suppress(ConnectionError):
                    writer.write(b"x")
                await asyncio.wait({answer}, timeout=0.1)
            writer.close()
            try:
                return read(answer.result())[0], loop.time() - began
            except ConnectionError:  # what was still on its way was answered by a reset
                return 408, loop.time() - began

        head = b"POST /churn/predict HTTP/1.1\r\na: "
        body = b"POST /churn/predict HTTP/1.1\r\ncontent-length: 1000\r\n\r\n"
        slow = asyncio.gather(*(drip(first) for first in [head, body] * 50))
        good = 0
        while not slow.done():
            assert read(await say(port, GOOD.replace(b"host: h", b"connection: close")))[0] == 200
            good += 1
        answers = await slow
        assert {status for status, _ in answers} == {408}
        assert max(took for _, took in answers) < 10
        assert good > 0

    run(scenario)


def test_a_client_that_says_nothing_is_closed_without_a_word() -> None:
    async def scenario(port: int, *_: Any) -> None:
        assert await say(port) == b""

    run(scenario)


def test_a_client_that_never_reads_is_dropped() -> None:
    class Chatty(FakeModel):
        def answer(self, prediction: Any) -> Any:
            return ["x" * 4000] * len(prediction), prediction.tolist()

    async def scenario(port: int, _: Gateway, listener: Listener, *__: Any) -> None:
        body = json.dumps({"rows": [ROW] * 5000}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(
            b"POST /churn/predict HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        while not listener.server_state.connections:
            await asyncio.sleep(0.01)
        while listener.server_state.connections:
            await asyncio.sleep(0.05)
        assert reader is not None
        writer.transport.abort()

    run(scenario, model=Chatty())


def test_a_kept_connection_answers_again_and_again_after_pauses() -> None:
    async def scenario(port: int, *_: Any) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(GOOD)
            head = await reader.readuntil(b"\r\n\r\n")
            assert read(head)[0] == 200
            await reader.readexactly(int(read(head)[1]["content-length"]))
            await asyncio.sleep(0.6)  # longer than the limit for headers: nothing has begun
        writer.write(GOOD + GOOD)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(read(head)[1]["content-length"]))
        writer.close()

    run(scenario)


def test_a_head_just_below_the_limit_is_taken() -> None:
    async def scenario(port: int, *_: Any) -> None:
        long = GOOD.replace(b"host: h", b"connection: close\r\nx: " + b"y" * (MAX_HEAD - 100))
        assert read(await say(port, long))[0] == 200

    run(scenario)


def test_what_came_before_a_head_in_the_same_read_is_not_counted_to_it() -> None:
    async def scenario(port: int, *_: Any) -> None:
        many = json.dumps({"rows": [ROW] * 1000}).encode()
        first = b"POST /churn/predict HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(many), many)
        assert len(many) > 2 * MAX_HEAD
        second = GOOD.replace(b"host: h", b"connection: close")
        answers = await say(port, first + second[:40], second[40:], pause=0.05)
        assert answers.count(b"HTTP/1.1 200 OK") == 2

    run(scenario, limits=Serving(deadline_s=5.0))


@pytest.mark.parametrize("part", [1, 7])
def test_a_request_in_small_parts_is_one_request(part: int) -> None:
    async def scenario(port: int, *_: Any) -> None:
        sent = GOOD.replace(b"host: h", b"connection: close")
        parts = [sent[i : i + part] for i in range(0, len(sent), part)]
        assert read(await say(port, *parts))[0] == 200

    run(scenario)


def test_an_upgrade_that_is_offered_is_declined_and_the_request_answered() -> None:
    async def scenario(port: int, *_: Any) -> None:
        offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GOOD.replace(b"host: h", offer))
        assert read(await reader.readuntil(b"\r\n\r\n"))[0] == 200
        writer.close()

    run(scenario)


def test_draining_finishes_what_is_in_flight_and_refuses_readiness() -> None:
    class Slow(FakeModel):
        def predict(self, x: Any) -> Any:
            if len(x) > 256:  # in a thread, as large requests are
                time.sleep(0.6)
            return super().predict(x)

    async def scenario(port: int, gateway: Gateway, listener: Listener, task: asyncio.Task[None]) -> None:
        many = json.dumps({"rows": [ROW] * 300}).encode()
        late = asyncio.ensure_future(
            say(port, b"POST /churn/predict HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(many), many))
        )
        kept_reader, kept_writer = await asyncio.open_connection("127.0.0.1", port)
        kept_writer.write(GOOD)
        assert read(await kept_reader.readuntil(b"\r\n\r\n"))[0] == 200
        await asyncio.sleep(0.1)
        gateway.drain()
        for path in (b"/churn/health/ready", b"/v2/health/ready", b"/v2/models/churn/ready", b"/ping"):
            status, headers, _ = read(await say(port, b"GET %s HTTP/1.1\r\n\r\n" % path))
            assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        assert read(await say(port, b"GET /churn/health/live HTTP/1.1\r\n\r\n"))[0] == 200
        status, headers, _ = read(await say(port, GOOD))  # not refused: its client has not heard yet
        assert (status, headers["connection"]) == (200, "close")
        listener.should_exit = True
        status, headers, body = read(await late)
        assert (status, headers["connection"]) == (200, "close")
        assert len(json.loads(body)["predictions"]) == 300
        await kept_reader.read()  # what is idle is closed
        await task
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        kept_writer.close()

    run(scenario, limits=Serving(deadline_s=5.0), model=Slow())


def test_a_port_that_is_taken_is_named() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: .* Give port=0\."):
            bind("127.0.0.1", other.getsockname()[1])
