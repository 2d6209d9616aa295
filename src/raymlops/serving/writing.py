"""What becomes of served rows: blocks in the store, files in the lake, counts for the monitor.

:class:`ThreadWriter` does it in threads of its process; :mod:`raymlops.serving.scribe` puts one into a process of its own.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from raymlops.blocks import Block, request_id
from raymlops.data.served import PREFIX
from raymlops.serving.analysis import VariantStats
from raymlops.serving.logfile import Served, packed, to_parquet
from raymlops.serving.telling import Sink, Teller
from raymlops.sketch.histogram import Bins
from raymlops.store import LabelOutcome, LabelRow, PredictionRow, ShadowRow

LOG_S = 2.0
LOG_ROWS = 50_000
LOG_VALUES = 8_000_000  # of wide rows fewer become one file


class PredictionStore(Protocol):
    """Where predictions wait for their labels; :class:`raymlops.store.Store` is one. Called from a thread."""

    def add_predictions(self, endpoint: str, rows: Sequence[PredictionRow]) -> None: ...

    def add_shadows(self, endpoint: str, rows: Sequence[ShadowRow]) -> None: ...

    def add_block(self, endpoint: str, block: Block) -> None: ...

    def add_labels(self, endpoint: str, rows: Sequence[LabelRow]) -> list[LabelOutcome]: ...


class LogFiles(Protocol):
    """Where the prediction log is kept; :class:`raymlops.lake.Lake` is one. Called from a thread."""

    def write(self, key: str, content: bytes) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a writer has no more in its hands: rows in the log and their values, copies in the store; or all that is ``lost``."""

    rows: int = 0
    values: int = 0
    shadows: int = 0
    lost: bool = False


Settle = Callable[[Settled], None]


class Writer(Protocol):
    """Takes what was served. All but what it awaits runs on the event loop."""

    def watch(self, version: int, bins: Bins) -> None:
        """Count rows of this version in these bins from now on: it is the champion."""

    def take(self, item: Served) -> None:
        """Have these rows stored, logged and counted; nothing is done yet when this returns."""

    async def store(
        self, stats: dict[int, VariantStats], shadows: Sequence[ShadowRow], since: float = 0.0, *, last: bool = False
    ) -> None:
        """Put all that was taken into the store, and tell the monitor of it and of the figures in its own time, or now when
        this is the ``last`` call. ``since`` is when the first of it may have been served, in wall seconds. One caller at a time; what fails is kept and tried again by the next call."""

    async def log(self, *, last: bool = False) -> None:
        """Write the log when it is time, or now when this is the ``last`` call; what fails is kept."""

    async def close(self) -> None:
        """Let go of threads and processes. What was not stored and logged may be lost."""


@dataclass(slots=True)
class _Part:
    """Requests that go to the store together."""

    served: list[Served]
    shadows: Sequence[ShadowRow]


@dataclass(slots=True)
class _File:
    """Requests that become one file of the log; its id makes writing it twice the same as once."""

    since: float
    served: list[Served] = field(default_factory=list)
    rows: int = 0
    values: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class ThreadWriter:
    """Writes in threads of this process.

    Parameters
    ----------
    series : of the gateway's own ids
    every_s : seconds between two calls of :meth:`store`, on average
    settle : called on the event loop
    """

    def __init__(
        self,
        endpoint: str,
        series: str,
        store: PredictionStore,
        files: LogFiles,
        sink: Sink,
        executor: Executor,
        every_s: float,
        settle: Settle,
    ) -> None:
        self._endpoint, self._series, self._settle = endpoint, series, settle
        self._store, self._files, self._executor = store, files, executor
        self._teller = Teller(endpoint, sink, partial(request_id, series), every_s)
        self._fresh: list[Served] = []
        self._parts: list[_Part] = []
        self._file: _File | None = None
        self._files_due: list[_File] = []
        self._logging = asyncio.Lock()

    def watch(self, version: int, bins: Bins) -> None:
        self._teller.watch(version, bins)

    def take(self, item: Served) -> None:
        self._fresh.append(item)

    async def store(
        self, stats: dict[int, VariantStats], shadows: Sequence[ShadowRow], since: float = 0.0, *, last: bool = False
    ) -> None:
        fresh, self._fresh = self._fresh, []
        loop = asyncio.get_running_loop()
        if fresh or shadows:
            self._parts.append(_Part(fresh, shadows))
        if fresh or stats or self._teller.waits:
            tell = partial(self._teller.tell, fresh, stats, since, last=last)
            await loop.run_in_executor(self._executor, tell)
        while self._parts:
            part = self._parts[0]
            await loop.run_in_executor(self._executor, self._store_now, part)
            self._parts.pop(0)
            self._log_later(part)
            if part.shadows:
                self._settle(Settled(shadows=len(part.shadows)))

    async def log(self, *, last: bool = False) -> None:
        async with self._logging:
            loop = asyncio.get_running_loop()
            if self._file is not None and (last or self._is_due(self._file)):
                self._files_due.append(self._file)
                self._file = None
            while self._files_due:
                file = self._files_due[0]
                await loop.run_in_executor(self._executor, self._write_now, file)
                self._files_due.pop(0)
                self._settle(Settled(rows=file.rows, values=file.values))

    async def close(self) -> None:
        """Nothing to do: the threads are the executor's."""

    def _store_now(self, part: _Part) -> None:
        if part.shadows:
            self._store.add_shadows(self._endpoint, part.shadows)
        if not part.served:
            return
        block, single = packed(self._series, part.served)
        if single:
            self._store.add_predictions(self._endpoint, single)
        if block is not None:
            self._store.add_block(self._endpoint, block)

    def _log_later(self, part: _Part) -> None:
        if part.served:
            if self._file is None:
                self._file = _File(time.monotonic())
            self._file.served += part.served
            self._file.rows += sum(len(item.answer.scores) for item in part.served)
            self._file.values += sum(item.answer.x.size for item in part.served)

    def _is_due(self, file: _File) -> bool:
        full = file.rows >= LOG_ROWS or file.values >= LOG_VALUES
        return full or time.monotonic() - file.since >= LOG_S

    def _write_now(self, file: _File) -> None:
        day = time.strftime("%Y%m%d", time.gmtime(file.served[0].served_at))
        for number, content in enumerate(to_parquet(file.served, self._series)):
            name = f"{file.id}-{number}" if number else file.id
            self._files.write(f"{PREFIX}/{self._endpoint}/{day}/{name}.parquet", content)


def thread_writer(
    endpoint: str, store: PredictionStore, files: LogFiles, sink: Sink, executor: Executor
) -> Callable[[str, float, Settle], Writer]:
    """Makes the writer of a gateway, of its series and of how often :meth:`Writer.store` is called."""
    return lambda series, every_s, settle: ThreadWriter(endpoint, series, store, files, sink, executor, every_s, settle)
