"""What a gateway remembers of its traffic: the prediction log, the figures of each variant, and labels on their way.

Everything here is bounded and off the request's path: rows wait in memory, are written by a thread in groups, and are
dropped and counted when the writing cannot keep up.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.data.served import LOG_COLUMNS, PREFIX
from raymlops.serving.analysis import StatsRecorder, VariantStats
from raymlops.serving.batching import Answer
from raymlops.serving.protocol import Row
from raymlops.store import LabelOutcome, LabelRow, PredictionRow, ShadowRow

log = logging.getLogger(__name__)

FLUSH_S = 0.5
FLUSH_ROWS = 1000
MAX_WAITING_ROWS = 50_000
MAX_SINK_ROWS = 5_000


class PredictionStore(Protocol):
    """Where predictions wait for their labels; :class:`raymlops.store.Store` is one. Called from a thread."""

    def add_predictions(self, endpoint: str, rows: Sequence[PredictionRow]) -> None: ...

    def add_shadows(self, endpoint: str, rows: Sequence[ShadowRow]) -> None: ...

    def add_labels(self, endpoint: str, rows: Sequence[LabelRow]) -> list[LabelOutcome]: ...


class LogFiles(Protocol):
    """Where the prediction log is kept; :class:`raymlops.lake.Lake` is one. Called from a thread."""

    def write(self, key: str, content: bytes) -> None: ...


class Sink(Protocol):
    """Who is told what was served; must return at once."""

    def observe(self, batch: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """One answered request."""

    request_id: str
    rows: Sequence[Row]
    answer: Answer
    version: int
    variant: str
    served_at: float
    latency_ms: float


@dataclass(slots=True)
class _Part:
    """Requests that are written together; its id makes writing it twice the same as once."""

    served: list[Served]
    shadows: list[ShadowRow] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def rows(self) -> int:
        return sum(len(item.rows) for item in self.served)


class Recorder:
    """Buffers what was served and hands it to store, lake and sink, each :data:`FLUSH_S` or :data:`FLUSH_ROWS`."""

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
        self._store, self._files, self._sink, self._executor = store, files, sink, executor
        self._max_rows = max_rows
        self._served: list[Served] = []
        self._shadows: list[ShadowRow] = []
        self._pairs: dict[int, VariantStats] = {}
        self._rows = 0
        self._parts: list[_Part] = []
        self._ids: set[str] = set()
        self._stats: dict[int, StatsRecorder] = defaultdict(StatsRecorder)
        self._unsent: dict[int, VariantStats] = {}
        self._totals: dict[int, VariantStats] = defaultdict(VariantStats)
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()
        self.rows = self.dropped = self._dropped_told = 0

    # --- on the request's path ----------------------------------------------------------------------

    def served(self, item: Served) -> None:
        """Remember an answered request, or count its rows as dropped when too many wait already."""
        count = len(item.rows)
        self.rows += count
        if self._rows + count > self._max_rows:
            self.dropped += count
            return
        self._served.append(item)
        self._ids.add(item.request_id)
        self._rows += count
        if self._rows >= FLUSH_ROWS:
            self._full.set()

    def request(self, version: int, latency_ms: float, *, error: bool = False, nonfinite: bool = False) -> None:
        """Count a request in its version's figures."""
        self._stats[version].request(latency_ms, error=error, nonfinite=nonfinite)

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
        if len(self._shadows) + len(scores) <= self._max_rows:
            self._shadows += [
                ShadowRow(request_id=request_id, row_index=index, version=version, score=score)
                for index, score in enumerate(scores.tolist())
            ]

    def holds(self, request_ids: Iterable[str]) -> bool:
        """Whether rows of any of these requests are not in the store yet."""
        return not self._ids.isdisjoint(request_ids)

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

    async def flush(self) -> None:
        """Hand over everything that waits. Rows are in the store when this returns.

        Raises
        ------
        StoreError, OSError : the store or the lake failed; the rows are kept and tried again
        """
        async with self._flushing:
            self._full.clear()
            fresh, self._served = self._served, []
            self._tell(fresh)
            copies, self._shadows = self._shadows, []
            if fresh or copies:
                self._parts.append(_Part(fresh, copies))
            loop = asyncio.get_running_loop()
            while self._parts:
                part = self._parts[0]
                await loop.run_in_executor(self._executor, self._write_now, part)
                self._parts.pop(0)
                self._rows -= part.rows
                self._ids.difference_update(item.request_id for item in part.served)

    def _write_now(self, part: _Part) -> None:
        if part.shadows:
            self._store.add_shadows(self.endpoint, part.shadows)
        if not part.served:
            return
        self._store.add_predictions(self.endpoint, list(_prediction_rows(part.served)))
        day = time.strftime("%Y%m%d", time.gmtime(part.served[0].served_at))
        self._files.write(f"{PREFIX}/{self.endpoint}/{day}/{part.id}.parquet", to_parquet(part.served))

    def _tell(self, fresh: list[Served]) -> None:
        """Give the sink one batch a version: the encoded width may differ between versions."""
        by_version: dict[int, list[Served]] = defaultdict(list)
        for item in fresh:
            by_version[item.version].append(item)
        stats = self._take_stats(by_version)
        if not stats and not fresh:
            return
        batches = [_batch(items) for items in by_version.values()] or [_batch([])]
        batches[0]["stats"] = {version: item.to_dict() for version, item in stats.items()}
        batches[0]["dropped"] = self.dropped - self._dropped_told
        self._unsent = stats
        try:
            for batch in batches:
                self._sink.observe(batch)
                self._unsent, self._dropped_told = {}, self.dropped
        except Exception as error:
            log.warning("%s: figures are kept, nobody takes them: %s", self.endpoint, error)

    def _take_stats(self, by_version: dict[int, list[Served]]) -> dict[int, VariantStats]:
        taken, self._stats = self._stats, defaultdict(StatsRecorder)
        fresh = {version: recorder.stats() for version, recorder in taken.items()}
        for version, items in by_version.items():
            scores = np.concatenate([item.answer.scores for item in items])
            scores = scores[np.isfinite(scores)]
            sums = VariantStats(
                score_n=len(scores), score_sum=float(scores.sum()), score_sumsq=float((scores * scores).sum())
            )
            fresh[version] = fresh.get(version, VariantStats()) + sums
        pairs, self._pairs = self._pairs, {}
        for version, sums in pairs.items():
            fresh[version] = fresh.get(version, VariantStats()) + sums
        for version, stats in fresh.items():
            self._totals[version] = self._totals[version] + stats
        for version, stats in self._unsent.items():
            fresh[version] = fresh.get(version, VariantStats()) + stats
        return fresh


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
            await self._recorder.flush()
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


def _prediction_rows(served: Iterable[Served]) -> Iterable[PredictionRow]:
    for item in served:
        for index, score in enumerate(item.answer.scores.tolist()):
            yield PredictionRow(
                request_id=item.request_id,
                row_index=index,
                version=item.version,
                variant=item.variant,
                score=score if math.isfinite(score) else None,
                served_at=item.served_at,
            )


def _batch(served: Sequence[Served]) -> dict[str, Any]:
    """Arrays over rows, at most :data:`MAX_SINK_ROWS` of the newest; ``cut`` counts the rows left out."""
    counts = [len(item.rows) for item in served]
    total = sum(counts)
    keep = slice(max(0, total - MAX_SINK_ROWS), None)

    def spread(values: list[Any], dtype: Any) -> np.ndarray[Any, Any]:
        return np.repeat(np.array(values, dtype=dtype), counts)[keep]

    x = np.concatenate([item.answer.x for item in served]) if served else np.empty((0, 0), dtype=np.float32)
    scores = np.concatenate([item.answer.scores for item in served]) if served else np.empty(0)
    return {
        "x": x[keep],
        "scores": scores[keep],
        "versions": spread([item.version for item in served], np.int64),
        "variants": spread([item.variant for item in served], "U10"),
        "served_at": spread([item.served_at for item in served], np.float64),
        "latency_ms": spread([item.latency_ms for item in served], np.float64),
        "stats": {},
        "dropped": 0,
        "cut": max(0, total - MAX_SINK_ROWS),
    }


def without_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its figures and no rows, for a sink that cannot keep up."""
    cut = batch["cut"] + len(batch["scores"])
    return {name: value[:0] if isinstance(value, np.ndarray) else value for name, value in batch.items()} | {"cut": cut}


def to_parquet(served: Sequence[Served]) -> bytes:
    """One part of the prediction log: :data:`raymlops.data.served.LOG_COLUMNS`, then the features as they were sent.

    A feature that has the name of a log column is kept as ``raw.NAME``. Whole numbers and fractions mix to
    floats; a column that mixes other types is kept as text.
    """
    rows = [row for item in served for row in item.rows]
    logged = list(_prediction_rows(served))
    columns: dict[str, pa.Array] = {name: pa.array([getattr(row, name) for row in logged]) for name in LOG_COLUMNS}
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        key = f"raw.{name}" if name in LOG_COLUMNS else name
        columns[key] = _column([row.get(name) for row in rows])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _column(values: list[Any]) -> pa.Array:
    try:
        if any(type(value) is float for value in values):
            return pa.array(values, pa.float64())
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
