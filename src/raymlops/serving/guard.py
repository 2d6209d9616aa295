"""uvicorn's connection with the limits it leaves to a proxy in front of it.

uvicorn bounds neither the time nor the size of a request's head. Here a head has 16 KiB and ``header_timeout_s``, a body
has the endpoint's deadline, and a client that does not read its answer is dropped. There is one look at all connections
each half second and no timer a request.
"""

from __future__ import annotations

import uuid
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from raymlops.serving.http import MAX_HEAD, MAX_TARGET

_LINGER_S = 2.0

_REFUSALS = {
    400: ("malformed", "The request is not HTTP/1.1."),
    408: ("request_timeout", "The request's headers were not complete in time: send them faster."),
    414: ("target_too_long", f"The request's path and query are longer than {MAX_TARGET} bytes."),
    431: ("headers_too_large", f"The request's headers are larger than {MAX_HEAD} bytes."),
}


IDLE, HEAD, BODY = 0, 1, 2


class _Refused(Exception):
    """Raised in a parser callback to end the parsing."""


class _BodyOnly:
    """What a parser tells of the body of a request whose head another parser has read."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self._done = False

    def on_message_begin(self) -> None:
        if self._done:
            raise _Refused  # nobody may send a request behind an upgrade it offers

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._done = True
        self._protocol.on_message_complete()


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Refusals that happen before there is a request are typed errors too.

    No clock is read for a request: :meth:`look` compares what it sees with what it saw before.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refused = False
        self._stage = IDLE
        self._complete = 0  # messages
        self._head = 0  # bytes of a head that came in several reads
        self._large = False  # the present head may be over its limit
        self._status = 400
        self._seen: tuple[int, str] = (0, "")
        self._seen_at = 0.0

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        self._unset_keepalive_if_required()
        complete, self._large = self._complete, self._head > 0 or len(data) > MAX_HEAD
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.refuse(self._status)
            return
        if self._stage == HEAD and complete == self._complete:
            # The parser holds a header back until it is whole, so what came of this head alone is counted here.
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.refuse(431)

    def _decline(self, rest: bytes) -> None:
        """No upgrade is taken, but the parser has left what follows to the other protocol: it is a body as ever."""
        framing = [item for item in self.headers if item[0] in (b"content-length", b"transfer-encoding")]
        if not framing:
            self.parser = httptools.HttpRequestParser(self)
            if rest:
                self.data_received(rest)
            return
        self.parser = httptools.HttpRequestParser(_BodyOnly(self))
        self.cycle.more_body, self._stage = True, BODY
        head = b"POST / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % item for item in framing) + b"\r\n"
        try:
            self.parser.feed_data(head + rest)
        except httptools.HttpParserError:
            self.refuse(400)
        if self._stage == IDLE:
            self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage = HEAD

    def on_headers_complete(self) -> None:
        if len(self.url) > MAX_TARGET:
            self._end(414)
        self.head_ends()
        super().on_headers_complete()

    def head_ends(self) -> None:
        """The head is whole; too large a one ends here."""
        if self._large and sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            self._end(431)
        self._stage, self._head = BODY, 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stage = IDLE
        self._complete += 1

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
        self.refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def look(self, now: float, head_s: float, answer_s: float) -> None:
        """Close the connection when its client is too slow; called now and then.

        Parameters
        ----------
        now : seconds of the monotonic clock
        head_s, answer_s : how long a head may take, and a body or an answer
        """
        doing = self._doing()
        if self._seen != (self._complete, doing):
            self._seen, self._seen_at = (self._complete, doing), now
        took = now - self._seen_at
        if (doing == "lingering" and took > _LINGER_S) or (doing in ("closing", "answering") and took > 2 * answer_s):
            self.transport.abort()
        elif doing == "silent" and took > head_s:
            self.transport.close()  # it may be a connection kept for later: it is told nothing
        elif (doing == "head" and took > head_s) or (doing == "body" and took > answer_s):
            self.refuse(408)

    def _doing(self) -> str:
        if self.refused:
            return "lingering"
        if self.transport.is_closing():
            return "closing"  # waits until what was written is read, which may be never
        if self._stage == HEAD:
            return "head"
        if self._stage == BODY and not self.flow.read_paused:
            return "body"
        if self.cycle is not None and not self.cycle.response_complete:
            return "answering"
        if self.timeout_keep_alive_task is None:
            return "silent" if self.headers is None else "head"
        return ""
