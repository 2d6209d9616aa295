"""A writer in a process of its own: what writing holds of the interpreter, the event loop of the gateway does not wait for.

The gateway only lays served rows into arrays and sends them over a socket; :mod:`raymlops.serving.scribe_process` stores, logs and
counts them, and hands the monitor's batches back, which the gateway sends on. Rows leave the gateway's account when
they are in the log, so that one bound holds for both processes. A scribe that dies is replaced; rows that it had and that were
not logged are counted as dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from raymlops.errors import NotReady
from raymlops.serving.analysis import VariantStats
from raymlops.serving.frames import Frames
from raymlops.serving.logfile import Served
from raymlops.serving.sheets import sheets
from raymlops.serving.telling import Sink
from raymlops.serving.writing import Settle, Settled, Writer
from raymlops.sketch.histogram import Bins
from raymlops.store import ShadowRow

log = logging.getLogger(__name__)

SHEET_ROWS = 1_000
"""Rows that are sent together: more would hold up the event loop, fewer cost more each."""
START_S = 60.0
SIGN_S = 5.0
"""How often a scribe says that it is there, whatever the store and the lake do."""
STUCK_S = 120.0
"""A scribe that owes an answer and says nothing at all for longer is killed and replaced; one that waits for a slow store is not."""
STOP_S = 10.0
PAUSE_S = 0.5
MOST_PAUSE_S = 30.0
_STEADY_S = 10.0  # a scribe that lived so long did not die of how it was started
_SEND_BUFFER = 4 * 2**20
_PROGRAM = ("-m", "raymlops.serving.scribe_process")


class ScribeLost(NotReady):
    """The scribe is gone, and what it had not logged with it."""


class ScribeStuck(NotReady):
    """The scribe is there and does not answer."""


class _Process:
    """One scribe: its socket, and what is owed by it."""

    def __init__(self, told: Callable[[_Process, int, bytes], None], lost: Callable[[_Process], None]) -> None:
        self.frames = Frames(self._got, lambda: lost(self))
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls: dict[int, asyncio.Future[None]] = {}
        self.owed = Settled()
        self.began = self.heard = time.monotonic()
        self.closing = self.gone = False
        self.popen: subprocess.Popen[bytes] | None = None
        self.settle: Settle = lambda _: None
        self._told, self._number = told, 0

    def start(self) -> socket.socket:
        """Start the process; our end of the socket. Runs in a thread."""
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            ours.setblocking(False)
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            command = [sys.executable, *_PROGRAM, str(theirs.fileno())]
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=environ, start_new_session=True
            )
        return ours

    def _got(self, message: tuple[Any, ...]) -> None:
        self.heard = time.monotonic()
        kind = message[0]
        if kind == "settled":
            done: Settled = message[1]
            self.owed = _less(self.owed, done)
            self.settle(done)
        elif kind == "done":
            future = self.calls.pop(message[1])
            if future.done():
                return
            if message[2] is None:
                future.set_result(None)
            else:
                future.set_exception(message[2])
        elif kind == "tell":
            self._told(self, message[1], message[2])
        elif kind == "ready" and not self.ready.done():
            self.ready.set_result(None)

    async def call(self, kind: str, *arguments: Any) -> None:
        """Have it do something, however long it takes; raises what it raised, :class:`ScribeLost` or :class:`ScribeStuck`."""
        self._number += 1
        future = self.calls[self._number] = asyncio.get_running_loop().create_future()
        self.frames.send((kind, self._number, *arguments))
        asked = time.monotonic()
        while not future.done():
            await asyncio.wait({future}, timeout=SIGN_S)
            if not future.done() and time.monotonic() - max(asked, self.heard) > STUCK_S:
                raise ScribeStuck(f"The process that writes the log says nothing for {STUCK_S:.0f} s.")
        future.result()

    def fail(self) -> None:
        self.gone = True
        for future in (self.ready, *self.calls.values()):
            if not future.done():
                future.set_exception(ScribeLost("The process that writes the log has ended."))
                future.exception()  # nobody may be waiting
        self.calls.clear()

    def end(self) -> bool:
        """Wait for the process, and kill it when it does not end; whether it wrote all it had. Runs in a thread."""
        if self.popen is None:
            return False
        try:
            return self.popen.wait(STOP_S) == 0
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            return False


class Scribe:
    """A :class:`raymlops.serving.writing.Writer`. Its process is started by the first call of :meth:`store`.

    Parameters
    ----------
    store, lake : URLs, opened by the process
    sink : is asked in a thread of ``executor``
    """

    def __init__(
        self,
        endpoint: str,
        series: str,
        store: str,
        lake: str,
        sink: Sink,
        executor: Executor,
        every_s: float,
        settle: Settle,
    ) -> None:
        self._endpoint, self._sink, self._executor, self._settle = endpoint, sink, executor, settle
        self._arguments = {"endpoint": endpoint, "series": series, "store": store, "lake": lake, "every_s": every_s}
        self._closed = False
        self._watched: tuple[int, Bins] | None = None
        self._pending: list[Served] = []
        self._pending_rows = 0
        self._stats: dict[int, VariantStats] = {}
        self._shadows: list[ShadowRow] = []
        self._since: float | None = None
        self._process: _Process | None = None
        self._starting = asyncio.Lock()
        self._pause, self._not_before = PAUSE_S, 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return None if process is None or process.popen is None else process.popen.pid

    @property
    def may_start(self) -> bool:
        """No process has died so recently that a new one has to wait."""
        return time.monotonic() >= self._not_before

    @property
    def _idle(self) -> bool:
        """There is no process, and nothing to give to one."""
        return self._process is None and not (self._pending or self._stats or self._shadows)

    def watch(self, version: int, bins: Bins) -> None:
        # What was served before belongs to what was watched before.
        self._send()
        self._watched = version, bins
        if self._process is not None:
            self._process.frames.send(("watch", version, bins))

    def take(self, item: Served) -> None:
        self._pending.append(item)
        self._pending_rows += len(item.answer.scores)
        if self._pending_rows >= SHEET_ROWS:
            self._send()

    async def store(
        self, stats: dict[int, VariantStats], shadows: Sequence[ShadowRow], since: float = 0.0, *, last: bool = False
    ) -> None:
        for version, figures in stats.items():
            self._stats[version] = self._stats.get(version, VariantStats()) + figures
        self._shadows += shadows
        self._since = since if self._since is None else min(self._since, since)
        if last and self._idle:
            return
        process = await self._running(last)  # or what is to be told waits for the next call
        self._send()
        figures_due, self._stats = self._stats, {}
        copies, self._shadows = self._shadows, []
        began, self._since = self._since, None
        process.owed = _more(process.owed, Settled(shadows=len(copies)))
        await self._call(process, "store", figures_due, copies, began, last)

    async def log(self, *, last: bool = False) -> None:
        if not (last and self._idle):
            await self._call(await self._running(last), "log", last)

    async def close(self) -> None:
        """Let the process end; none is started from now on. What it was not given, and what it did not write, is counted as lost."""
        async with self._starting:  # one that is about to be there has to be let go as well
            self._closed = True
            process, self._process = self._process, None
        left = _owed(self._pending)
        self._pending, self._pending_rows = [], 0
        if process is not None:
            process.closing = True
            process.frames.close()
            if not await asyncio.get_running_loop().run_in_executor(None, process.end):
                left, process.owed = _more(left, process.owed), Settled()
        if left.rows:
            log.error("%s: the gateway ends, and up to %d rows are lost to the log.", self._endpoint, left.rows)
            self._settle(replace(left, lost=True))

    def _send(self) -> None:
        """Hand over what waits, if there is somebody to take it."""
        process = self._process
        if process is None or not self._pending:
            return
        served, self._pending = self._pending, []
        self._pending_rows = 0
        process.owed = _more(process.owed, _owed(served))
        process.frames.send(("rows", sheets(served)))

    async def _call(self, process: _Process, kind: str, *arguments: Any) -> None:
        try:
            await process.call(kind, *arguments)
        except ScribeLost:
            return  # counted and said; nothing is left to wait for
        except ScribeStuck as error:
            if process.popen is not None:
                log.error("%s: %s Process %d is killed.", self._endpoint, error, process.popen.pid)
                process.popen.kill()
            raise

    async def _running(self, last: bool = False) -> _Process:
        """The process; a new one when there is none, for the ``last`` call when its time has come.

        Raises
        ------
        NotReady : the last one died a moment ago, this one did not start, or there shall be none any more
        """
        async with self._starting:
            if self._process is not None:
                return self._process
            if self._closed:
                raise NotReady("The gateway has ended: nothing more is written to its log. Ask another one.")
            if not self.may_start:
                if not last:
                    raise NotReady("The process that writes the log has ended and is started again in a moment.")
                await asyncio.sleep(self._not_before - time.monotonic())
            process = _Process(self._asked, self._lost)
            process.settle = self._settle
            loop = asyncio.get_running_loop()
            ours = await loop.run_in_executor(self._executor, process.start)
            await loop.create_connection(lambda: process.frames, sock=ours)
            process.frames.send(("begin", {**self._arguments, "sign_s": SIGN_S}))
            done, _ = await asyncio.wait({process.ready}, timeout=START_S)
            if not done:
                if process.popen is not None:
                    process.popen.kill()  # its closed socket says so, and the next one waits its turn
                raise ScribeStuck(f"The process that writes the log did not start within {START_S:.0f} s.")
            process.ready.result()
            if process.gone:
                raise ScribeLost("The process that writes the log ended as soon as it was started.")
            self._process = process
            if self._watched is not None:
                process.frames.send(("watch", *self._watched))
            return process

    def _lost(self, process: _Process) -> None:
        process.fail()
        if process.closing:
            return
        if process is self._process:
            self._process = None
        if time.monotonic() - process.began > _STEADY_S:
            self._pause = PAUSE_S
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2.0 * self._pause, MOST_PAUSE_S)
        owed, process.owed = process.owed, Settled()
        log.error(
            "%s: the writer of the log (pid %s) has ended; %d rows are lost to the log. A new one is started.",
            self._endpoint,
            None if process.popen is None else process.popen.pid,
            owed.rows,
        )
        self._settle(replace(owed, lost=True))
        self._background(self._bury(process))

    async def _bury(self, process: _Process) -> None:
        await asyncio.get_running_loop().run_in_executor(None, process.end)

    def _asked(self, process: _Process, number: int, batch: bytes) -> None:
        self._background(self._tell(process, number, batch))

    async def _tell(self, process: _Process, number: int, batch: bytes) -> None:
        def observe() -> str | None:
            try:
                self._sink.observe(pickle.loads(batch))
            except Exception as error:
                return str(error) or type(error).__name__
            return None

        said = await asyncio.get_running_loop().run_in_executor(self._executor, observe)
        process.frames.send(("told", number, said))

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def scribe(
    endpoint: str, store: str, lake: str, sink: Sink, executor: Executor
) -> Callable[[str, float, Settle], Writer]:
    """Makes the writer of a gateway, see :data:`raymlops.serving.recorder.MakeWriter`."""
    return lambda series, every_s, settle: Scribe(endpoint, series, store, lake, sink, executor, every_s, settle)


def _owed(served: Sequence[Served]) -> Settled:
    """What whoever is given this has to account for."""
    rows = sum(len(item.answer.scores) for item in served)
    return Settled(rows=rows, values=sum(item.answer.x.size for item in served))


def _more(one: Settled, other: Settled) -> Settled:
    return Settled(rows=one.rows + other.rows, values=one.values + other.values, shadows=one.shadows + other.shadows)


def _less(one: Settled, other: Settled) -> Settled:
    return Settled(rows=one.rows - other.rows, values=one.values - other.values, shadows=one.shadows - other.shadows)
