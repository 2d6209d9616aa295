"""The gateway's own listener: uvicorn, with the limits it leaves to a proxy in front of it.

uvicorn bounds neither the time nor the size of a request's head. Here a head has 16 KiB and ``header_timeout_s``, a body
has the endpoint's deadline, and a client that does not read its answer is dropped. There is one look at all connections
each half second and no timer a request.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import uuid
from typing import Any

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from raymlops.errors import ConfigError
from raymlops.serving.spec import Serving

log = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024
MAX_TARGET = 4096
KEEP_ALIVE_S = 75
DRAIN_S = 5
_SWEEP_TICKS = 5  # uvicorn ticks ten times a second
_LINGER_S = 2.0
_GRACE_S = 1.0  # the gateway refuses a late body in its own words first

_REFUSALS = {
    400: ("malformed", "The request is not HTTP/1.1."),
    408: ("request_timeout", "The request's headers were not complete in time: send them faster."),
    414: ("target_too_long", f"The request's path and query are longer than {MAX_TARGET} bytes."),
    431: ("headers_too_large", f"The request's headers are larger than {MAX_HEAD} bytes."),
}


class _Refused(Exception):
    """Raised in a parser callback to end the parsing."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Refusals that happen before there is a request are typed errors too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._since: float | None = None  # when the request that is being received began
        self._answering: float | None = None  # when the last request was complete
        self._in_head = True
        self._head = 0
        self._silent = True
        self._again = False  # the head of the present request is being fed once more
        self._refused: float | None = None
        self._status = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:
            return
        self._silent = False
        if self._since is None and self._in_head:
            self._since = time.monotonic()
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.refuse(self._status)
            return
        if self._in_head and self._since is not None:
            # The parser holds a header back until it is whole, so what came is counted here.
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.refuse(431)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # No upgrade is taken here, but the parser has left what follows to the other protocol: it is a body as ever.
            self.parser = httptools.HttpRequestParser(self)
            framing = [item for item in self.headers if item[0] in (b"content-length", b"transfer-encoding")]
            if framing:
                self.cycle.more_body, self._since, self._in_head, self._again = True, time.monotonic(), False, True
                self.parser.feed_data(
                    b"POST / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % item for item in framing) + b"\r\n"
                )
                self._again = False
            rest = data[offer.args[0] :]
            if rest:
                self._feed(rest)

    def on_message_begin(self) -> None:
        if self._again:
            return
        super().on_message_begin()
        self._since, self._in_head, self._head = time.monotonic(), True, 0

    def on_url(self, url: bytes) -> None:
        if self._again:
            return
        super().on_url(url)
        if len(self.url) > MAX_TARGET:
            self._end(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._again:
            return
        self._head += len(name) + len(value) + 4
        if self._head > MAX_HEAD:
            self._end(431)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._again:
            return
        self._in_head, self._head = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._since, self._in_head, self._head = None, True, 0
        self._answering = time.monotonic()

    def _end(self, status: int) -> None:
        self._status = status
        raise _Refused

    def refuse(self, status: int) -> None:
        """Answer with a typed error, unless an answer is under way already, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            code, message = _REFUSALS[status]
            body = orjson.dumps({"error": {"code": code, "message": message, "details": {}}})
            head = (
                b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
                b"x-request-id: %s\r\nx-raymlops-error: %s\r\n\r\n"
            ) % (len(body), uuid.uuid4().hex.encode(), code.encode())
            self.transport.write(STATUS_LINE[status] + head + body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever still reads this request is told that nobody waits for its answer
            self.cycle.message_event.set()
        # Closed at once, what the client still sends would be answered by a reset, which can overtake the answer.
        self._refused = time.monotonic()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def look(self, now: float, head_s: float, answer_s: float) -> None:
        """Close the connection when its client is too slow; ``now`` and limits in seconds of the monotonic clock."""
        answered = self.cycle is None or self.cycle.response_complete
        if self._refused is not None:
            if now - self._refused > _LINGER_S:
                self.transport.abort()
        elif self._since is not None and not self.flow.read_paused and not self.transport.is_closing():
            if now - self._since > (head_s if self._in_head else answer_s):
                if self._silent:  # it may be a connection kept for later: it is told nothing
                    self.transport.close()
                else:
                    self.refuse(408)
        elif (
            (self.transport.is_closing() or not answered)
            and self._answering is not None
            and now - self._answering > 2 * answer_s
        ):
            # Closing waits until what was written is read, which may be never.
            self.transport.abort()


class Listener(uvicorn.Server):
    """uvicorn's server, with a look at all connections twice a second."""

    def __init__(self, application: Any, limits: Serving) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=GuardedProtocol,
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
        )
        self._limits = limits

    async def on_tick(self, counter: int) -> bool:
        if counter % _SWEEP_TICKS == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.look(now, self._limits.header_timeout, self._limits.deadline + _GRACE_S)
        return await super().on_tick(counter)


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
