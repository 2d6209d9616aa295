"""The short way to an isolated version on the same node: a Unix socket, one message a turn of the gateway's event loop.

Serve's handle is the way to find the socket, and the way to ask when there is none or when it broke. Rows travel as
the matrix the gateway made of them where both versions make the same of a row (:attr:`raymlops.serving.batching.Model.layout`),
else as they were sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.data.schema import Sent
from raymlops.errors import NotReady, RaymlopsError
from raymlops.serving.batching import Answer, Model, answer_matrix, answer_rows, as_answer, as_dict
from raymlops.serving.frames import Frames, framed
from raymlops.serving.protocol import Row

log = logging.getLogger(__name__)

MOST_UNANSWERED = 256
"""Questions on their way; a version that has so many before it is asked the other way."""
SILENT_S = 10.0
"""A version whose oldest question waits longer is let go of: no question takes that long, so nobody is there to answer."""
AGAIN_S = 1.0
ELSEWHERE_S = 30.0
"""A version without a socket on this node is looked for so often: it may be started again, and here."""
_OLD_S = 60.0
OPEN_S = 5.0
_READ = 256 * 1024
Got = Callable[["Answer | Exception"], None]


class LinkLost(NotReady):
    """The version at the other end is gone; asking again another way is safe."""


class Link:
    """A gateway's connection to one replica of a version.

    Attributes
    ----------
    layout : of the version's matrix, ``None`` when it takes rows only
    """

    def __init__(self, end: socket.socket) -> None:
        self.layout: str | None = None
        self.alive = True
        self._end, self._loop = end, asyncio.get_running_loop()
        self._frames = Frames(self._answered, lambda: None)
        self._unsent = bytearray()
        self._asked: dict[int, tuple[Got, Any, Sent | None]] = {}
        self._number = 0
        self._unanswered: deque[float] = deque()  # when each was asked; answers come in the order of the questions
        self._hello: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(cls, path: str) -> Link:
        """Connect to a socket that :func:`serve_directly` made.

        Raises
        ------
        OSError, LinkLost : nobody is there
        """
        end = socket.socket(socket.AF_UNIX)
        end.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(end, path)
        except BaseException:
            end.close()
            raise
        link = cls(end)
        link._loop.add_reader(end, link._readable)
        try:
            await link._hello
        except BaseException:
            link.close()
            raise
        return link

    @property
    def busy(self) -> bool:
        return len(self._unanswered) >= MOST_UNANSWERED

    @property
    def silent_s(self) -> float:
        """Seconds since the oldest question that has no answer, also if nobody waits for it any more."""
        return time.monotonic() - self._unanswered[0] if self._unanswered else 0.0

    def ask(self, content: NDArray[np.float32] | Sequence[Row], got: Got, sent: Sent | None = None) -> int:
        """Ask about a matrix ``(n, n_features)`` of this :attr:`layout`, or about rows; ``got`` is called on the event loop.

        ``sent`` is what the matrix was made of, for the answer. The number that is returned is what :meth:`forget` takes.
        """
        self._number += 1
        if not self.alive:
            self._loop.call_soon(got, LinkLost("The version's replica is gone."))
            return self._number
        self._unanswered.append(time.monotonic())
        self._asked[self._number] = got, content, sent
        self._send(framed((self._number, content)))
        return self._number

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._asked.pop(number, None)

    async def predict(self, rows: Sequence[Row]) -> Answer:
        """As :meth:`raymlops.serving.variants.Challengers.predict`.

        Raises
        ------
        LinkLost : the version is gone
        whatever the version raised
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def got(answer: Answer | Exception) -> None:
            if future.done():
                return
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        number = self.ask(rows, got)
        try:
            return await future
        finally:
            self.forget(number)

    def close(self) -> None:
        """Let go; who waits for an answer is told."""
        if self.alive:
            self.alive = False
            self._loop.remove_reader(self._end)
            self._loop.remove_writer(self._end)
            self._end.close()
            self._loop.call_soon(self._lost)

    def _send(self, data: bytes) -> None:
        """At once, and not when the loop comes to its writes: the version works while this turn goes on."""
        sent = 0
        if not self._unsent:
            try:
                sent = self._end.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent < len(data):
                self._loop.add_writer(self._end, self._writable)
        self._unsent += data[sent:]

    def _writable(self) -> None:
        try:
            del self._unsent[: self._end.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self._loop.remove_writer(self._end)

    def _readable(self) -> None:
        try:
            data = self._end.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if data:
                self._frames.data_received(data)
        except Exception:
            log.exception("what a version said cannot be used; its socket is let go of")
            data = b""
        if not data:
            self.close()

    def _answered(self, message: tuple[int, Any]) -> None:
        number, body = message
        if not number:
            self.layout = body
            if not self._hello.done():
                self._hello.set_result(None)
            return
        self._unanswered.popleft()
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        got, content, sent = asked
        if type(body) is tuple:
            scores, finite, predictions, probabilities, work_ms = body
            if finite is None:
                finite = np.ones(len(scores), dtype=np.bool_)
            got(Answer(content, scores, finite, predictions, probabilities, sent, work_ms))
        else:
            got(body if isinstance(body, Exception) else as_answer(body))

    def _lost(self) -> None:
        lost = LinkLost("The version's replica is gone.")
        if not self._hello.done():
            self._hello.set_exception(lost)
            self._hello.exception()  # nobody may be waiting
        asked, self._asked = self._asked, {}
        for got, _, _ in asked.values():
            got(lost)


class Links:
    """Connections to isolated versions, found and opened beside what asks.

    Parameters
    ----------
    find : the socket of a version's replica on this node, ``None`` when there is none
    """

    def __init__(self, find: Callable[[int], Awaitable[str | None]]) -> None:
        self._find = find
        self._links: dict[int, Link] = {}
        self._next_try: dict[int, float] = {}
        self._wanted: int | None = None
        self._opening: set[asyncio.Task[None]] = set()

    def get(self, version: int) -> Link | None:
        """The connection to a version, if there is one that is free; else one is looked for, at most each :data:`AGAIN_S`."""
        self._wanted = version
        link = self._links.get(version)
        if link is not None and link.alive and link.silent_s > SILENT_S:
            log.warning("version %d does not answer at its socket, and is asked the other way", version)
            link.close()
        if link is not None and link.alive:
            return None if link.busy else link
        now = time.monotonic()
        if now >= self._next_try.get(version, 0.0):
            self._next_try[version] = now + AGAIN_S
            task = asyncio.ensure_future(self._open(version))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return None

    async def _open(self, version: int) -> None:
        try:
            path = await asyncio.wait_for(self._find(version), OPEN_S)
            if path is None:
                self._next_try[version] = time.monotonic() + ELSEWHERE_S
                return
            link = await asyncio.wait_for(Link.open(path), OPEN_S)
        except Exception as error:
            log.debug("no short way to version %d: %s", version, error)
            return
        known_now = self._links.get(version)
        if version != self._wanted or (known_now is not None and known_now.alive):
            link.close()  # finding it took so long that another version is asked now, or that it was found twice
            return
        for other in [known for known in self._links if known != version]:
            self._links.pop(other).close()
            self._next_try.pop(other, None)
        self._links[version] = link


class _Desk:
    """A version's end of one connection."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.frames = _Greeting(self._asked, lambda: None, (0, model.layout))

    def _asked(self, message: tuple[int, Any]) -> None:
        number, content = message
        if isinstance(content, np.ndarray):
            self.frames.send((number, _of_matrix(self._model, content)))
        else:
            self.frames.send((number, answered(self._model, content)))


def _of_matrix(model: Model, x: NDArray[np.float32]) -> tuple[Any, ...] | RaymlopsError:
    """A version's answer without the rows, which who asks has; no word of ``finite`` where all is."""
    began = time.perf_counter()
    answer = _shielded(answer_matrix, model, x)
    if isinstance(answer, RaymlopsError):
        return answer
    finite = None if answer.finite.all() else answer.finite
    work_ms = (time.perf_counter() - began) * 1000.0
    return answer.scores, finite, answer.predictions, answer.probabilities, work_ms


class _Greeting(Frames):
    def __init__(self, got: Callable[[Any], None], lost: Callable[[], None], greeting: Any) -> None:
        super().__init__(got, lost)
        self._greeting = greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send(self._greeting)


def answered(model: Model, rows: Sequence[Row]) -> dict[str, Any] | RaymlopsError:
    """A version's answer to rows as a dictionary with ``work_ms``, or the error to raise: so it arrives whole."""
    began = time.perf_counter()
    answer = _shielded(answer_rows, model, rows)
    if isinstance(answer, RaymlopsError):
        return answer
    return as_dict(answer) | {"work_ms": (time.perf_counter() - began) * 1000.0}


def _shielded(work: Callable[[Model, Any], Answer], model: Model, content: Any) -> Answer | RaymlopsError:
    try:
        return work(model, content)
    except RaymlopsError as error:
        return error
    except Exception as error:
        log.exception("the version failed")
        return RaymlopsError(f"{type(error).__name__}: {error}")


def serve_directly(model: Model, folder: Path | None = None) -> str:
    """Answer at a new Unix socket that only this user reaches, in a thread of this process until it ends; the socket's path.

    Raises
    ------
    OSError : no socket can be made
    PermissionError : the folder is somebody else's, or none
    """
    place = folder or _private_folder()
    _sweep(place)
    path = str(place / f"{uuid.uuid4().hex[:16]}.sock")
    started: list[OSError] = []
    up = threading.Event()

    async def listen() -> None:
        try:
            server = await asyncio.get_running_loop().create_unix_server(lambda: _Desk(model).frames, path)
        except OSError as error:
            started.append(error)
            return
        finally:
            up.set()
        async with server:
            await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(listen()), name="direct", daemon=True).start()
    up.wait(OPEN_S)
    if started:
        raise started[0]
    return path


async def greets(path: str, within_s: float = OPEN_S) -> bool:
    """Whether the thread behind a socket of :func:`serve_directly` is free to take a question, within some time."""
    try:
        link = await asyncio.wait_for(Link.open(path), within_s)
    except (OSError, LinkLost, asyncio.TimeoutError):
        return False
    link.close()
    return True


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"raymlops-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # a link would be somebody's word for where to go
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{folder} is no folder but a link or a file: remove it.")
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} can be reached by others: remove it, or chmod 700 what is yours.")
    return folder


def _sweep(folder: Path) -> None:
    """Remove the sockets of versions that have ended: a file outlives its listener. One that was just made may have none yet."""
    for path in folder.glob("*.sock"):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime < _OLD_S:
                continue
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0.1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # full or slow is not ended
