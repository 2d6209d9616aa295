"""What a gateway remembers of its traffic: the prediction log, the figures of each variant, and labels on their way.

Everything here is bounded and off the request's path: rows wait in memory, are written by a thread in groups, and are
dropped and counted when the writing cannot keep up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from raymlops.blocks import Block, parse_request_id, request_id
from raymlops.data.served import PREFIX
from raymlops.serving.analysis import StatsRecorder, VariantStats
from raymlops.serving.batching import Answer
from raymlops.serving.logfile import Served, packed, to_parquet
from raymlops.serving.telling import Sink, Teller
from raymlops.sketch.histogram import Bins
from raymlops.store import LabelOutcome, LabelRow, PredictionRow, ShadowRow

log = logging.getLogger(__name__)

FLUSH_S = 0.5
FLUSH_ROWS = 20_000
LOG_S = 2.0
LOG_ROWS = 50_000
MAX_WAITING_ROWS = 100_000
MAX_WAITING_VALUES = 16_000_000  # of wide rows fewer may wait


class PredictionStore(Protocol):
    """Where predictions wait for their labels; :class:`raymlops.store.Store` is one. Called from a thread."""

    def add_predictions(self, endpoint: str, rows: Sequence[PredictionRow]) -> None: ...

    def add_shadows(self, endpoint: str, rows: Sequence[ShadowRow]) -> None: ...

    def add_block(self, endpoint: str, block: Block) -> None: ...

    def add_labels(self, endpoint: str, rows: Sequence[LabelRow]) -> list[LabelOutcome]: ...


class LogFiles(Protocol):
    """Where the prediction log is kept; :class:`raymlops.lake.Lake` is one. Called from a thread."""

    def write(self, key: str, content: bytes) -> None: ...


@dataclass(slots=True)
class _Part:
    """Requests that go to the store together."""

    served: list[Served]
    rows: int
    shadows: list[ShadowRow]


@dataclass(slots=True)
class _File:
    """Requests that become one file of the log; its id makes writing it twice the same as once."""

    since: float
    served: list[Served] = field(default_factory=list)
    rows: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Recorder:
    """Buffers what was served and hands it on: to store and sink each :data:`FLUSH_S` or :data:`FLUSH_ROWS`, to the lake
    each :data:`LOG_S` or :data:`LOG_ROWS`. A process that is killed loses what it has not handed on.

    Attributes
    ----------
    series : names this process in the ids it gives: 8 random bytes, so that ids of other processes cannot be guessed.
        Within a process ids are counted, which takes no time and keeps the rows of an id findable: who has seen one id
        can guess its neighbours. Clients that must not may send ids of their own.
    """

    def __init__(
        self,
        endpoint: str,
        store: PredictionStore,
        files: LogFiles,
        sink: Sink,
        executor: Executor,
        flush_s: float = FLUSH_S,
        max_rows: int = MAX_WAITING_ROWS,
    ) -> None:
        self.endpoint, self.flush_s = endpoint, flush_s
        self.series = secrets.token_hex(8)
        self._store, self._files, self._executor = store, files, executor
        self._teller = Teller(endpoint, sink, self.text, flush_s)
        self._max_rows = max_rows
        self._next = self._stored_below = 0
        self._served: list[Served] = []
        self._shadows: list[ShadowRow] = []
        self._pairs: dict[int, VariantStats] = {}
        self._rows = self._waiting_rows = self._waiting_values = self._waiting_shadows = 0
        self._parts: list[_Part] = []
        self._file: _File | None = None
        self._files_due: list[_File] = []
        self._ids: set[str] = set()
        self._stats: dict[int, StatsRecorder] = defaultdict(StatsRecorder)
        self._totals: dict[int, VariantStats] = defaultdict(VariantStats)
        self._full = asyncio.Event()
        self._flushing, self._logging = asyncio.Lock(), asyncio.Lock()
        self.rows = self.dropped = 0

    def watch(self, version: int, bins: Bins) -> None:
        """This version is the champion now: its rows are counted in these bins for the monitor."""
        self._teller.watch(version, bins)

    # --- on the request's path ----------------------------------------------------------------------

    def number(self) -> int:
        """The next id of this gateway's own; :meth:`text` is what a client sees. Record it before taking another turn."""
        self._next += 1
        return self._next

    def text(self, number: int) -> str:
        return request_id(self.series, number)

    def served(self, item: Served) -> None:
        """Remember answered requests, or count their rows as dropped when too many wait already. What arrives while nothing
        waits is taken whatever its size: the limits of a request bound it."""
        count = len(item.answer.scores)
        self.rows += count
        values = item.answer.x.size
        full = self._waiting_rows + count > self._max_rows or self._waiting_values + values > MAX_WAITING_VALUES
        if self._waiting_rows and full:
            self.dropped += count
            return
        self._served.append(item)
        for given in item.ids:
            if type(given) is str:
                self._ids.add(given)
        self._rows += count
        self._waiting_rows += count
        self._waiting_values += values
        if self._rows >= FLUSH_ROWS:
            self._full.set()

    def request(
        self,
        version: int,
        latency_ms: float,
        *,
        error: bool = False,
        nonfinite: bool = False,
        work_ms: float | None = None,
    ) -> None:
        """Count a request in its version's figures."""
        self._stats[version].request(latency_ms, error=error, nonfinite=nonfinite, work_ms=work_ms)

    def shadowed(self, request_id: str, version: int, copy: Answer, served: Answer) -> None:
        """What another version said of an answered request, beside the answer; both finite."""
        scores = np.asarray(copy.scores, dtype=np.float64)
        apart = scores - served.scores
        sums = VariantStats(
            score_n=len(scores),
            score_sum=float(scores.sum()),
            score_sumsq=float((scores * scores).sum()),
            pair_n=len(apart),
            pair_sum=float(apart.sum()),
            pair_sumsq=float((apart * apart).sum()),
        )
        self._pairs[version] = self._pairs.get(version, VariantStats()) + sums
        if self._waiting_shadows + len(scores) <= self._max_rows:
            self._waiting_shadows += len(scores)
            self._shadows += [
                ShadowRow(request_id=request_id, row_index=index, version=version, score=score)
                for index, score in enumerate(scores.tolist())
            ]

    def answered(self, version: int, requests: int, latency_ms: float) -> None:
        """Count requests that were answered together."""
        self._stats[version].answered(requests, latency_ms)

    def holds(self, request_ids: Iterable[str]) -> bool:
        """Whether rows of any of these requests are not in the store yet."""
        for given in request_ids:
            if given in self._ids:
                return True
            parsed = parse_request_id(given)
            if parsed and parsed[0] == self.series and self._stored_below < parsed[1] <= self._next:
                return True
        return False

    def totals(self) -> dict[int, VariantStats]:
        """Figures of each version since the gateway started."""
        return {
            version: self._totals[version]
            + (self._stats[version].stats() if version in self._stats else VariantStats())
            for version in {*self._totals, *self._stats}
        }

    # --- off it ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Flush for ever; what fails is tried again at the next turn."""
        while True:
            try:
                await asyncio.wait_for(self._full.wait(), self.flush_s)
            except asyncio.TimeoutError:
                self._full.clear()
            try:
                await self.flush()
            except Exception:
                log.exception("%s: the prediction log could not be written; its rows wait", self.endpoint)
                await asyncio.sleep(self.flush_s)

    async def flush(self, *, last: bool = False, log: bool = True) -> None:
        """Hand over everything that waits. Rows are in the store when this returns; the log is written and the monitor is told
        in their own time, or now when this is the ``last`` call. Without ``log`` this is over when the rows are in the store,
        whatever becomes of the log.

        Raises
        ------
        StoreError, OSError : the store or the lake failed; the rows are kept and tried again
        """
        # Who waits may give up (a deadline, the end): half a flush would tell something twice, or never.
        await asyncio.shield(self._flush(last, log))

    async def _flush(self, last: bool, log: bool) -> None:
        await self._to_store(last)
        if log:
            await self._to_log(last)

    async def _to_store(self, last: bool) -> None:
        async with self._flushing:
            self._full.clear()
            fresh, self._served = self._served, []
            copies, self._shadows = self._shadows, []
            rows, self._rows, upto = self._rows, 0, self._next
            stats = self._take_stats()
            loop = asyncio.get_running_loop()
            if fresh or copies:
                self._parts.append(_Part(fresh, rows, copies))
            if fresh or stats or self._teller.waits:
                tell = partial(self._teller.tell, fresh, stats, last=last)
                await loop.run_in_executor(self._executor, tell)
            while self._parts:
                part = self._parts[0]
                await loop.run_in_executor(self._executor, self._store_now, part)
                self._parts.pop(0)
                self._waiting_shadows -= len(part.shadows)
                self._log_later(part)
                self._ids.difference_update(i for item in part.served for i in item.ids if type(i) is str)
            self._stored_below = upto

    async def _to_log(self, last: bool) -> None:
        """Under a lock of its own: whoever waits for the store does not wait for the lake."""
        async with self._logging:
            loop = asyncio.get_running_loop()
            if self._file is not None and (last or self._file_is_due(self._file)):
                self._files_due.append(self._file)
                self._file = None
            while self._files_due:
                file = self._files_due[0]
                await loop.run_in_executor(self._executor, self._write_now, file)
                self._files_due.pop(0)
                self._waiting_rows -= file.rows
                self._waiting_values -= sum(item.answer.x.size for item in file.served)

    def _take_stats(self) -> dict[int, VariantStats]:
        """The figures since the last time, now counted in the totals. Runs on the event loop."""
        taken, self._stats = self._stats, defaultdict(StatsRecorder)
        pairs, self._pairs = self._pairs, {}
        stats = {version: recorder.stats() for version, recorder in taken.items()}
        for version, sums in pairs.items():
            stats[version] = stats.get(version, VariantStats()) + sums
        for version, figures in stats.items():
            self._totals[version] = self._totals[version] + figures
        return stats

    def _store_now(self, part: _Part) -> None:
        if part.shadows:
            self._store.add_shadows(self.endpoint, part.shadows)
        if not part.served:
            return
        block, single = packed(self.series, part.served)
        if single:
            self._store.add_predictions(self.endpoint, single)
        if block is not None:
            self._store.add_block(self.endpoint, block)

    def _log_later(self, part: _Part) -> None:
        if part.served:
            if self._file is None:
                self._file = _File(time.monotonic())
            self._file.served += part.served
            self._file.rows += part.rows

    def _file_is_due(self, file: _File) -> bool:
        full = file.rows >= LOG_ROWS or 2 * self._waiting_values >= MAX_WAITING_VALUES
        return full or time.monotonic() - file.since >= LOG_S

    def _write_now(self, file: _File) -> None:
        day = time.strftime("%Y%m%d", time.gmtime(file.served[0].served_at))
        for number, content in enumerate(to_parquet(file.served, self.series)):
            name = f"{file.id}-{number}" if number else file.id
            self._files.write(f"{PREFIX}/{self.endpoint}/{day}/{name}.parquet", content)


class LabelWriter:
    """Stores labels in groups: all that arrive while one transaction commits go into the next one."""

    def __init__(self, endpoint: str, store: PredictionStore, recorder: Recorder, executor: Executor) -> None:
        self._endpoint, self._store, self._recorder, self._executor = endpoint, store, recorder, executor
        self._waiting: list[tuple[list[LabelRow], asyncio.Future[list[LabelOutcome]]]] = []
        self._task: asyncio.Task[None] | None = None
        self.stored = 0

    async def add(self, rows: list[LabelRow]) -> list[LabelOutcome]:
        """One outcome a label; labels that are ``stored`` are durable when this returns.

        A label may be faster than the log of the prediction it belongs to: rows that wait here are written first, and
        what is unknown then is asked once more after another gateway had the time to write.
        """
        if self._recorder.holds(row.request_id for row in rows):
            await self._recorder.flush(log=False)
        outcomes = await self._commit(rows)
        unknown = [index for index, outcome in enumerate(outcomes) if outcome == "unknown"]
        if unknown:
            await asyncio.sleep(self._recorder.flush_s * 1.5)
            again = await self._commit([rows[index] for index in unknown])
            for index, outcome in zip(unknown, again, strict=True):
                outcomes[index] = outcome
        self.stored += outcomes.count("stored")
        return outcomes

    async def _commit(self, rows: list[LabelRow]) -> list[LabelOutcome]:
        future: asyncio.Future[list[LabelOutcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._drain())
        return await future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            rows = [row for rows, _ in group for row in rows]
            try:
                outcomes = await loop.run_in_executor(self._executor, self._store.add_labels, self._endpoint, rows)
            except Exception as error:
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for part, future in group:
                if not future.done():
                    future.set_result(outcomes[start : start + len(part)])
                start += len(part)
