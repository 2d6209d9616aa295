"""What was served, as the prediction log writes it: Parquet files for the lake, a block of scores for the store.

Runs in the recorder's thread beside the event loop: whole batches at a time, so that it holds the interpreter briefly.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.blocks import Block
from raymlops.data.served import LOG_COLUMNS
from raymlops.serving.batching import Answer
from raymlops.serving.protocol import Row
from raymlops.store import PredictionRow

_REPEATED = ("request_id", "version", "variant", "served_at")  # worth a dictionary in a log file


@dataclass(frozen=True, slots=True)
class Served:
    """Requests that one version answered in one batch.

    Attributes
    ----------
    ids : of each request; a number stands for the gateway's own id, see :meth:`raymlops.serving.recorder.Recorder.number`
    counts : rows of each request
    rows : all rows in order, as they were sent; empty when ``answer.sent`` holds them
    latency_ms : of the batch
    """

    ids: Sequence[int | str]
    counts: Sequence[int]
    rows: Sequence[Row]
    answer: Answer
    version: int
    variant: str
    served_at: float
    latency_ms: float


def packed(series: str, served: Sequence[Served]) -> tuple[Block | None, list[PredictionRow]]:
    """What the store keeps: a block of the requests with the gateway's own ids, and rows of those with a client's."""
    single: list[PredictionRow] = []
    numbers: list[int] = []
    counts: list[int] = []
    owners: list[Served] = []
    scores: list[np.ndarray[Any, Any]] = []
    for item in served:
        start = 0
        own = all(type(given) is int for given in item.ids)
        if own:
            scores.append(item.answer.scores)
        for given, count in zip(item.ids, item.counts, strict=True):
            if isinstance(given, str):
                single += _single(item, given, start, count)
            else:
                numbers.append(given)
                counts.append(count)
                owners.append(item)
                if not own:
                    scores.append(item.answer.scores[start : start + count])
            start += count
    if not numbers:
        return None, single
    names = tuple(dict.fromkeys(item.variant for item in owners))
    block = Block(
        series=series,
        names=names,
        numbers=np.array(numbers, dtype=np.int64),
        counts=np.array(counts, dtype=np.int32),
        versions=np.array([item.version for item in owners], dtype=np.int32),
        variants=np.array([names.index(item.variant) for item in owners], dtype=np.uint8),
        served_at=np.array([item.served_at for item in owners], dtype=np.float64),
        scores=np.concatenate(scores),
    )
    return block, single


def _single(item: Served, given: str, start: int, count: int) -> Iterator[PredictionRow]:
    for index, score in enumerate(item.answer.scores[start : start + count].tolist()):
        yield PredictionRow(
            request_id=given,
            row_index=index,
            version=item.version,
            variant=item.variant,
            score=score if math.isfinite(score) else None,
            served_at=item.served_at,
        )


def to_parquet(served: Sequence[Served], text: Callable[[int], str]) -> Iterator[bytes]:
    """Files of the prediction log: :data:`raymlops.data.served.LOG_COLUMNS`, then the features as they were sent.

    One file for all rows that are held as a matrix of the same columns, and one for those held one by one. A feature that
    has the name of a log column is kept as ``raw.NAME``. In the latter whole numbers and fractions mix to floats; a
    column that mixes other types is kept as text.
    """
    groups: dict[int, list[Served]] = defaultdict(list)
    for item in served:
        groups[0 if item.answer.sent is None else id(item.answer.sent.columns)].append(item)
    for group in groups.values():
        columns = _log_columns(group, text)
        for name, values in _features(group):
            columns[f"raw.{name}" if name in LOG_COLUMNS else name] = values
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd", use_dictionary=list(_REPEATED))
        yield buffer.getvalue()


def _log_columns(served: Sequence[Served], text: Callable[[int], str]) -> dict[str, pa.Array]:
    ids = [text(given) if isinstance(given, int) else given for item in served for given in item.ids]
    counts = np.array([count for item in served for count in item.counts])
    rows = [len(item.answer.scores) for item in served]
    ends = np.cumsum(counts)
    of_request = np.repeat(np.arange(len(ids)), counts)
    scores = np.concatenate([item.answer.scores for item in served])
    return {
        "request_id": pa.array(ids).take(pa.array(of_request)),
        "row_index": pa.array(np.arange(len(scores)) - (ends - counts)[of_request]),
        "version": pa.array(np.repeat([item.version for item in served], rows)),
        "variant": pa.array([item.variant for item in served]).take(pa.array(np.repeat(np.arange(len(served)), rows))),
        "score": pa.array(scores, mask=~np.isfinite(scores)),
        "served_at": pa.array(np.repeat([item.served_at for item in served], rows)),
    }


def _features(served: Sequence[Served]) -> Iterator[tuple[str, pa.Array]]:
    first = served[0].answer.sent
    if first is None:
        rows = [row for item in served for row in item.rows]
        for name in dict.fromkeys(name for row in rows for name in row):
            yield name, _column([row.get(name) for row in rows])
        return
    values = np.concatenate([item.answer.sent.values for item in served if item.answer.sent is not None])
    for index, column in enumerate(first.columns):
        numbers = values[:, index]
        missing = np.isnan(numbers)
        if column.kind != "number":
            numbers = np.where(missing, 0.0, numbers).astype(np.int64 if column.kind == "integer" else np.bool_)
        yield column.name, pa.array(numbers, mask=missing)


def _column(values: list[Any]) -> pa.Array:
    try:
        if any(type(value) is float for value in values):
            return pa.array(values, pa.float64())
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
