"""The process beside a gateway that stores, logs and counts what was served: ``python -m raymlops.serving.scribe_process FD``.

It ends with the gateway: when the socket FD closes, what was handed over is written first. So it is after ``kill -9`` of the gateway; who
kills it and its children (Ray, when it forces an actor out) kills this too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

from raymlops.errors import NotReady, RaymlopsError, StoreError
from raymlops.lake import Lake
from raymlops.serving.frames import Frames
from raymlops.serving.sheets import unfolded
from raymlops.serving.writing import Settled, ThreadWriter
from raymlops.store import Store

log = logging.getLogger(__name__)

LAST_WORDS_S = 20.0
"""How long what runs, the last store and the last log may take each when the gateway is gone."""


class _Gateway:
    """The gateway as this process sees it: who orders, and whom the monitor's batches go through."""

    def __init__(self) -> None:
        self.frames = Frames(self._got, self._gone)
        self.ended = asyncio.Event()
        self._writer: ThreadWriter | None = None
        self._store: Store | None = None
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="scribe")
        self._telling: dict[int, Future[str | None]] = {}
        self._number = 0
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._signs: asyncio.Task[None] | None = None

    def _got(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "begin":
            self._begin(**rest[0])
            return
        writer = self._writer
        assert writer is not None, "the gateway begins with what there is to write"
        if kind == "rows":
            for item in unfolded(rest[0]):
                writer.take(item)
        elif kind == "watch":
            writer.watch(*rest)
        elif kind == "told":
            self._telling.pop(rest[0]).set_result(rest[1])
        else:
            task = asyncio.ensure_future(self._obey(writer, kind, *rest))
            self._tasks[task] = kind
            task.add_done_callback(self._tasks.pop)

    def _begin(self, endpoint: str, series: str, store: str, lake: str, every_s: float, sign_s: float) -> None:
        self._store = Store(store)
        files = Lake(lake)
        self._writer = ThreadWriter(endpoint, series, self._store, files, self, self._threads, every_s, self._settled)
        self.frames.send(("ready",))
        self._signs = asyncio.ensure_future(self._sign(sign_s))

    async def _sign(self, every_s: float) -> None:
        """Say that this process is there: a store that hangs in a thread is no reason to kill it."""
        while not self.ended.is_set():
            await asyncio.sleep(every_s)
            self.frames.send(("here",))

    def _settled(self, done: Settled) -> None:
        self.frames.send(("settled", done))

    async def _obey(self, writer: ThreadWriter, kind: str, number: int, *arguments: Any) -> None:
        problem: Exception | None = None
        try:
            if kind == "store":
                stats, shadows, since, last = arguments
                await writer.store(stats, shadows, since, last=last)
            else:
                await writer.log(last=arguments[0])
        except RaymlopsError as error:
            problem = error
        except OSError as error:
            problem = OSError(str(error))  # of the libraries' own kinds not all survive the way
        except Exception as error:
            log.exception("%s failed", kind)
            problem = StoreError(f"The log could not be written: {type(error).__name__}: {error}")
        self.frames.send(("done", number, problem))

    def observe(self, batch: dict[str, Any]) -> None:
        """Have the gateway tell the monitor; raises what hinders it. Called in a thread."""
        if self.ended.is_set():
            raise NotReady("The gateway has ended.")
        answer: Future[str | None] = Future()
        content = pickle.dumps(batch, protocol=5)
        self._loop.call_soon_threadsafe(self._ask, content, answer)
        problem = answer.result()
        if problem is not None:
            raise NotReady(problem)

    def _ask(self, content: bytes, answer: Future[str | None]) -> None:
        self._number += 1
        self._telling[self._number] = answer
        if self.ended.is_set():
            answer.set_result("The gateway has ended.")
        self.frames.send(("tell", self._number, content))

    def _gone(self) -> None:
        self.ended.set()
        for answer in self._telling.values():
            if not answer.done():
                answer.set_result("The gateway has ended.")

    async def finish(self) -> bool:
        """Write what was handed over, as far as that goes within :data:`LAST_WORDS_S` each; whether all of it was written."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_WORDS_S)
        writer = self._writer
        if writer is None:
            return True
        hanging = {kind for task, kind in self._tasks.items() if not task.done()}
        stored = await self._last("store", hanging, partial(writer.store, {}, (), last=True))
        logged = await self._last("log", hanging, partial(writer.log, last=True))
        if self._store is not None:
            self._store.close()
        return stored and logged

    async def _last(self, kind: str, hanging: set[str], write: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        if kind in hanging:  # a second one beside it would take the same rows
            log.error("The last %s hangs; what is left for it is lost.", kind)
            return False
        try:
            await asyncio.wait_for(write(), LAST_WORDS_S)
        except Exception as error:
            log.error("The last %s failed (%s: %s); what is left for it is lost.", kind, type(error).__name__, error)
            return False
        return True


async def _write(descriptor: int) -> bool:
    gateway = _Gateway()
    end = socket.socket(fileno=descriptor)
    end.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: gateway.frames, sock=end)
    await gateway.ended.wait()
    return await gateway.finish()


def main() -> NoReturn:
    # Who ends a group of processes means the gateway, which drains first and lets go of this one last.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING)
    code = 1
    try:
        code = 0 if asyncio.run(_write(int(sys.argv[1]))) else 1
    except Exception:
        log.exception("the scribe failed")
    finally:
        logging.shutdown()
        os._exit(code)  # an ordinary end waits for threads, and one may hang in the store or the lake


if __name__ == "__main__":
    main()
