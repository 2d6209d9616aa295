"""The gateway's own listener: uvicorn, with a shorter way for plain requests (:mod:`raymlops.serving.lane`).

HTTP stays in uvicorn's and httptools' hands: parsing, keep-alive, pipelining, draining. Only the step from a parsed request
to the application is another one, and only when the whole request came at once, be it in a few reads, and asks for nothing
special. Sizes and times of what comes are bounded by :mod:`raymlops.serving.guard` on both ways.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from raymlops.errors import ConfigError
from raymlops.serving.arrow import MEDIA
from raymlops.serving.guard import HEAD, GuardedProtocol
from raymlops.serving.http import Response, Scope, Send, with_id
from raymlops.serving.lane import Lane
from raymlops.serving.protocol import PredictRequest, request_id_of

if TYPE_CHECKING:
    from raymlops.serving.gateway import Gateway

KEEP_ALIVE_S = 75
DRAIN_S = 5
_SWEEP_TICKS = 5  # uvicorn ticks ten times a second
_HOLD_S = 0.05  # a body that comes in several reads is whole by then, or the usual way waits for it
_HOLD_BYTES = 1024 * 1024
_GRACE_S = 1.0  # the gateway refuses a late body in its own words first

# Headers that ask nothing of the gateway. A request with any other one goes the usual way, which looks at all of them.
_PLAIN = frozenset(
    (
        b"host",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"forwarded",
        b"traceparent",
        b"tracestate",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
    )
)


class _Call:
    """One request on the short way. To uvicorn's connection it is a cycle like its own."""

    __slots__ = (
        "_protocol",
        "body",
        "disconnected",
        "infer",
        "keep_alive",
        "message_event",
        "more_body",
        "request_id",
        "response_complete",
        "waiting",
    )

    def __init__(self, protocol: FastProtocol, request_id: str | None, infer: bool) -> None:
        self._protocol, self.request_id, self.infer = protocol, request_id, infer
        self.body = b""
        self.waiting: asyncio.TimerHandle | None = None
        self.more_body = self.keep_alive = True
        self.response_complete = self.disconnected = False
        self.message_event = protocol.nobody_waits

    @property
    def response_started(self) -> bool:
        return self.response_complete

    def answer(self, response: Response) -> None:
        """Write the response; once."""
        if not self.response_complete:
            self.response_complete = True
            self._protocol.write_response(self, response)

    def detour(self, parsed: PredictRequest, challenger: int | None) -> None:
        self._protocol.detour(self, parsed, challenger)


class FastProtocol(GuardedProtocol):
    """uvicorn's connection with the lane beside it."""

    lane: Lane
    gateway: Gateway
    urls: dict[bytes, bool]
    nobody_waits: asyncio.Event

    def on_message_begin(self) -> None:
        # uvicorn makes the scope here; the short way needs none.
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._stage = HEAD

    def on_headers_complete(self) -> None:
        cycle: Any = self.cycle
        if (self.url in self.urls) and (cycle is None or cycle.response_complete):
            call: Any = self._plain()  # stands in for uvicorn's own cycle
            if call is not None:
                self.head_ends()
                self.cycle = call
                return
        self._usual_way()

    def _usual_way(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()

    def _plain(self) -> _Call | None:
        """The call, when nothing about the request is special."""
        parser = self.parser
        if parser.get_method() != b"POST" or parser.should_upgrade() or not parser.should_keep_alive():
            return None
        if self.expect_100_continue or parser.get_http_version() != "1.1":
            return None
        request_id = None
        for name, value in self.headers:
            if name in _PLAIN:
                if name == b"accept" and MEDIA in value:
                    return None
                continue
            if name == b"content-type":
                if value != b"application/json":
                    return None
            elif name == b"content-length":
                if len(value) > 18 or int(value) > min(self.lane.limits.max_body_bytes, _HOLD_BYTES):
                    return None
            elif name == b"x-request-id":
                request_id = request_id_of(value)
            else:
                return None
        return _Call(self, request_id, self.urls[self.url])

    def on_body(self, body: bytes) -> None:
        call: Any = self.cycle
        if type(call) is _Call:
            # No more than _HOLD_BYTES will come, so reading goes on where uvicorn would hold it up.
            call.body = call.body + body if call.body else body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        call: Any = self.cycle
        if type(call) is _Call and not call.response_complete:
            if call.waiting is not None:
                call.waiting.cancel()
            self.lane.submit(call)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        call: Any = self.cycle
        if type(call) is _Call and call.more_body and call.waiting is None:
            call.waiting = self.loop.call_later(_HOLD_S, self._slow, call)

    def _slow(self, call: _Call) -> None:
        """The rest of the body comes later, or never: the usual way waits for it, under its deadline and limits."""
        current: Any = self.cycle
        if current is call and call.more_body and self.parser is not None and self._open():
            none: Any = None  # as before a first request, which uvicorn's type leaves out
            self.cycle = none
            self._usual_way()
            self.on_body(call.body)

    def _open(self) -> bool:
        return not self.refused and not self.transport.is_closing()

    def write_response(self, call: _Call, response: Response) -> None:
        """One write a response; then what uvicorn does after one."""
        transport = self.transport
        if not self._open():
            return
        response = with_id(response, call.request_id)
        if self.gateway.draining:
            call.keep_alive = False
        parts = [STATUS_LINE[response.status]]
        for name, value in (*self.server_state.default_headers, *response.headers):
            parts += (name, b": ", value, b"\r\n")
        if not call.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(response.body))
        parts.append(response.body)
        transport.write(b"".join(parts))
        if not call.keep_alive or (b"connection", b"close") in response.headers:
            transport.close()
        self.on_response_complete()

    def detour(self, call: _Call, parsed: PredictRequest, challenger: int | None) -> None:
        task = self.loop.create_task(self._detour(call, parsed, challenger))
        self.tasks.add(task)  # uvicorn waits for them when it drains
        task.add_done_callback(self.tasks.discard)

    async def _detour(self, call: _Call, parsed: PredictRequest, challenger: int | None) -> None:
        call.answer(await self.gateway.answer_parsed(parsed, call.request_id, challenger))


class Listener(uvicorn.Server):
    """uvicorn's server, with a look at all connections twice a second."""

    def __init__(self, config: uvicorn.Config, head_s: float, answer_s: float) -> None:
        super().__init__(config)
        self._head_s, self._answer_s = head_s, answer_s

    async def on_tick(self, counter: int) -> bool:
        if counter % _SWEEP_TICKS == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.look(now, self._head_s, self._answer_s)
        return await super().on_tick(counter)


def make_server(gateway: Gateway, path: str) -> Listener:
    """A uvicorn server for a gateway, to be run with ``serve(sockets=…)`` on the gateway's own event loop.

    ``path`` is where the endpoint takes rows; ``/predict`` does as well.
    """
    protocol = type(
        "GatewayProtocol",
        (FastProtocol,),
        {
            "lane": gateway.lane,
            "gateway": gateway,
            "urls": {path.encode(): False, b"/predict": False, f"/v2/models/{gateway.endpoint}/infer".encode(): True},
            "nobody_waits": asyncio.Event(),
        },
    )

    # uvicorn tells ASGI 3 from ASGI 2 by looking at functions only.
    async def application(scope: Scope, receive: Any, send: Send) -> None:
        await gateway(scope, receive, send)

    config = uvicorn.Config(
        application,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=2048,
    )
    return Listener(config, gateway.limits.header_timeout, gateway.limits.deadline + _GRACE_S)


def bind(host: str, port: int) -> socket.socket:
    """A socket that all gateways of a node share.

    Raises
    ------
    ConfigError : somebody else has the port
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"The gateway cannot listen on {host}:{port}: {error}. Give port=0.") from error
    return listener
