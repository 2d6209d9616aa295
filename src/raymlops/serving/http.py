"""The little of HTTP a gateway needs on top of ASGI: bodies with a limit, answers, a deadline."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from raymlops.errors import (
    DeadlineExceeded,
    HeadersTooLarge,
    MalformedRequest,
    RaymlopsError,
    RequestTimeout,
    Retryable,
    TargetTooLong,
    TooLarge,
)
from raymlops.serving.protocol import dump, error_body, error_status

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
CLOSE: Header = (b"connection", b"close")
MAX_HEAD = 16 * 1024
MAX_TARGET = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body has been read; header names are lower case.

    Attributes
    ----------
    media : what the body is, where a handler takes more than JSON
    version : the version its path asks for
    """

    headers: dict[bytes, bytes]
    body: bytes
    media: bytes = b""
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """Status, the body's bytes, headers besides content type and length, and what the body is."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    media: bytes = b"application/json"


class ClientGone(Exception):
    """The client closed the connection before its request was complete: there is nobody to answer."""


def json_response(content: Any, status: int = 200, headers: tuple[Header, ...] = ()) -> Response:
    return Response(status, dump(content), headers)


def error_response(
    error: RaymlopsError, headers: tuple[Header, ...] = (), body: Callable[[RaymlopsError], bytes] = error_body
) -> Response:
    """The error as ``body`` words it, and its code in a header; what may succeed later says when to try again."""
    status = error_status(error)
    if isinstance(error, Retryable) and status in (429, 503):
        headers = (*headers, (b"retry-after", b"1"))
    if isinstance(error, (TooLarge, RequestTimeout)):
        headers = (*headers, CLOSE)  # the rest of the body is not read
    return Response(status, body(error), (*headers, (b"x-raymlops-error", error.code.encode())))


def rows_response(
    request_id: str, version: int, variant: str, predictions: list[Any], probabilities: list[Any] | None
) -> Response:
    """What a client that sent rows reads."""
    body = {
        "request_id": request_id,
        "version": version,
        "variant": variant,
        "predictions": predictions,
        "probabilities": probabilities,
    }
    return Response(200, dump(body), served_headers(request_id, version, variant))


def with_id(response: Response, given: str | None) -> Response:
    """The response with a request id on it, the client's or a new one, when it has none."""
    if response.headers and response.headers[0][0] == b"x-request-id":
        return response
    own = (b"x-request-id", (given or uuid.uuid4().hex).encode())
    return replace(response, headers=(own, *response.headers))


def served_headers(request_id: str, version: int, variant: str) -> tuple[Header, ...]:
    """Who answered, on every answer."""
    return ((b"x-request-id", request_id.encode()), *version_headers(version, variant))


def version_headers(version: int, variant: str) -> tuple[Header, ...]:
    return ((b"x-raymlops-version", b"%d" % version), (b"x-raymlops-variant", variant.encode()))


async def respond(send: Send, response: Response) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [
                (b"content-type", response.media),
                (b"content-length", b"%d" % len(response.body)),
                *response.headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": response.body})


def check_head(scope: Scope) -> None:
    """The limits on heads, for requests that another server has read.

    Raises
    ------
    TargetTooLong, HeadersTooLarge
    """
    target = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    if target > MAX_TARGET:
        raise TargetTooLong(f"The request's path and query are longer than {MAX_TARGET} bytes.")
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEAD:
        raise HeadersTooLarge(f"The request's headers are larger than {MAX_HEAD} bytes.")


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises
    ------
    TooLarge : more than ``limit`` bytes, announced or sent
    MalformedRequest : a Content-Length that is not a number
    ClientGone
    """
    announced = headers.get(b"content-length")
    if announced is not None:
        if not announced.isdigit():
            raise MalformedRequest("Content-Length is not a number of bytes.")
        if len(announced) > 18 or int(announced) > limit:
            raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes, the most this endpoint takes. Send fewer rows a request.")


class Deadline:
    """Cancels the work inside it after ``seconds`` and raises :class:`DeadlineExceeded` in its place.

    A timer and no extra task: ``asyncio.wait_for`` costs every request a task, ``asyncio.timeout`` needs Python 3.11.
    """

    __slots__ = ("_expired", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds, self._expired = seconds, False

    async def __aenter__(self) -> Deadline:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        return self

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError:
            uncancel = getattr(self._task, "uncancel", None)  # from Python 3.11
            if uncancel is not None:
                uncancel()
            raise DeadlineExceeded(
                f"No answer within {self._seconds:g} s. Send fewer rows a request, or try again later."
            ) from error
