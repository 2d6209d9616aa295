"""What a gateway remembers of its traffic: the prediction log, the figures of each variant, and labels on their way.

Everything here is bounded and off the request's path: rows wait in memory, are written by a thread in groups, and are
dropped and counted when the writing cannot keep up.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import numpy as np

from raymlops.blocks import parse_request_id, request_id
from raymlops.errors import NotReady
from raymlops.serving.analysis import StatsRecorder, VariantStats
from raymlops.serving.batching import Answer
from raymlops.serving.logfile import Served
from raymlops.serving.writing import PredictionStore, Settle, Settled, Writer
from raymlops.sketch.histogram import Bins
from raymlops.store import LabelOutcome, LabelRow, ShadowRow

log = logging.getLogger(__name__)

FLUSH_S = 0.5
FLUSH_ROWS = 20_000
MAX_WAITING_ROWS = 200_000
MAX_WAITING_VALUES = 16_000_000  # of wide rows fewer may wait

MakeWriter = Callable[[str, float, Settle], Writer]
"""A writer for a gateway with this series of ids, that is told to store each so many seconds."""


class Recorder:
    """Counts what was served and hands it to a writer: to be stored each :data:`FLUSH_S` or :data:`FLUSH_ROWS`, to be logged in
    the writer's own time. A process that is killed loses what it has not handed on.

    Parameters
    ----------
    write : makes the writer
    max_rows : that may wait for the log, wherever they wait
    now : wall seconds

    Attributes
    ----------
    series : names this process in the ids it gives: 8 random bytes, so that ids of other processes cannot be guessed.
        Within a process ids are counted, which takes no time and keeps the rows of an id findable: who has seen one id
        can guess its neighbours. Clients that must not may send ids of their own.
    rows, dropped : since the gateway started; of all rows those that the log does not have
    """

    def __init__(
        self,
        endpoint: str,
        write: MakeWriter,
        flush_s: float = FLUSH_S,
        max_rows: int = MAX_WAITING_ROWS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.endpoint, self.flush_s = endpoint, flush_s
        self.series = secrets.token_hex(8)
        self._writer = write(self.series, flush_s, self._settled)
        self._max_rows, self._now = max_rows, now
        self._since = now()
        self._next = self._stored_below = 0
        self._shadows: list[ShadowRow] = []
        self._pairs: dict[int, VariantStats] = {}
        self._rows = self._waiting_rows = self._waiting_values = self._waiting_shadows = 0
        self._ids: set[str] = set()
        self._storing: set[str] = set()
        self._stats: dict[int, StatsRecorder] = defaultdict(StatsRecorder)
        self._totals: dict[int, VariantStats] = defaultdict(VariantStats)
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()
        self.rows = self.dropped = 0

    def watch(self, version: int, bins: Bins) -> None:
        """This version is the champion now: its rows are counted in these bins for the monitor."""
        self._writer.watch(version, bins)

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
        self._writer.take(item)
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

    def answered(self, version: int, requests: int, latency_ms: float, work_ms: float | None = None) -> None:
        """Count requests that were answered together."""
        self._stats[version].answered(requests, latency_ms, work_ms)

    def holds(self, request_ids: Iterable[str]) -> bool:
        """Whether rows of any of these requests are not in the store yet."""
        for given in request_ids:
            if given in self._ids or given in self._storing:
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
        said = False
        while True:
            try:
                await self.flush()
                said = False
            except NotReady as error:
                if not said:
                    log.warning("%s: %s Rows wait.", self.endpoint, error)
                said = True
            except Exception:
                log.exception("%s: the prediction log could not be written; its rows wait", self.endpoint)
                await asyncio.sleep(self.flush_s)
            try:
                await asyncio.wait_for(self._full.wait(), self.flush_s)
            except asyncio.TimeoutError:
                self._full.clear()

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

    async def close(self) -> None:
        """Write what waits and let go of the writer, also when that fails.

        Raises
        ------
        NotReady, StoreError, OSError : what waited may be lost to the log
        """
        try:
            try:
                await self.flush(last=True)
            except NotReady as error:
                log.warning("%s: %s What waits is written once it is there again.", self.endpoint, error)
                await self.flush(last=True)
        finally:
            await self._writer.close()

    async def _flush(self, last: bool, log: bool) -> None:
        async with self._flushing:
            self._full.clear()
            self._rows, upto = 0, self._next
            self._storing |= self._ids
            self._ids = set()
            copies, self._shadows = self._shadows, []
            since, self._since = self._since, self._now()
            await self._writer.store(self._take_stats(), copies, since, last=last)
            self._stored_below = upto
            self._storing.clear()
        if log:  # whoever waits for the store does not wait for the lake
            await self._writer.log(last=last)

    def _settled(self, done: Settled) -> None:
        self._waiting_rows -= done.rows
        self._waiting_values -= done.values
        self._waiting_shadows -= done.shadows
        if done.lost:
            self.dropped += done.rows

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
