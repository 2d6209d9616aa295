"""What was served, as the prediction log writes it: Parquet files for the lake, a block of scores for the store.

Runs in the recorder's thread beside the event loop: whole batches at a time, so that it holds the interpreter briefly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raymlops.blocks import Block
from raymlops.data.served import LOG_COLUMNS
from raymlops.serving.batching import Answer
from raymlops.serving.protocol import Row
from raymlops.store import PredictionRow

_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_POWERS = 16 ** np.arange(1, 15, dtype=np.int64)
_REPEATED = ("version", "variant", "served_at")  # worth a dictionary in a log file


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
    requests = _Requests.of(served)
    single: list[PredictionRow] = []
    scores = np.concatenate([item.answer.scores for item in served])
    if not requests.own.all():
        for item in served:
            start = 0
            for given, count in zip(item.ids, item.counts, strict=True):
                if isinstance(given, str):
                    single += _single(item, given, start, count)
                start += count
        scores = scores[np.repeat(requests.own, requests.counts)]
    if not requests.own.any():
        return None, single
    own = requests.own
    owners = requests.owners[own]
    names = tuple(dict.fromkeys(served[index].variant for index in np.unique(owners)))
    codes = np.array([names.index(item.variant) if item.variant in names else 0 for item in served], dtype=np.uint8)
    block = Block(
        series=series,
        names=names,
        numbers=requests.numbers[own],
        counts=requests.counts[own].astype(np.int32),
        versions=np.array([item.version for item in served], dtype=np.int32)[owners],
        variants=codes[owners],
        served_at=np.array([item.served_at for item in served], dtype=np.float64)[owners],
        scores=scores,
    )
    return block, single


@dataclass(frozen=True, slots=True, eq=False)
class _Requests:
    """The requests of some batches, in order.

    Attributes
    ----------
    ids : as :attr:`Served.ids` has them
    own : which of them have the gateway's own number
    numbers : those, 0 for the others
    counts : rows of each
    owners : the index of the batch of each
    """

    ids: list[int | str]
    own: npt.NDArray[np.bool_]
    numbers: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]

    @classmethod
    def of(cls, served: Sequence[Served]) -> _Requests:
        ids = list(chain.from_iterable(item.ids for item in served))
        counts = np.array(list(chain.from_iterable(item.counts for item in served)), dtype=np.int64)
        owners = np.repeat(np.arange(len(served)), [len(item.ids) for item in served])
        if set(map(type, ids)) == {int}:
            return cls(ids, np.ones(len(ids), dtype=bool), np.array(ids, dtype=np.int64), counts, owners)
        own = np.array([type(given) is int for given in ids], dtype=bool)
        numbers = np.array([given if type(given) is int else 0 for given in ids], dtype=np.int64)
        return cls(ids, own, numbers, counts, owners)


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


def to_parquet(served: Sequence[Served], series: str) -> Iterator[bytes]:
    """Files of the prediction log: :data:`raymlops.data.served.LOG_COLUMNS`, then the features as they were sent.

    One file for all rows that are held as a matrix of the same columns, and one for those held one by one. A feature that
    has the name of a log column is kept as ``raw.NAME``. In the latter whole numbers and fractions mix to floats; a
    column that mixes other types is kept as text. ``series`` is that of the gateway's own ids.

    The writing costs a server as much as it costs here: no statistics, no dictionary but for what repeats, Snappy.
    """
    groups: dict[int, list[Served]] = defaultdict(list)
    for item in served:
        groups[0 if item.answer.sent is None else id(item.answer.sent.columns)].append(item)
    for group in groups.values():
        columns = _log_columns(group, series)
        for name, values in _features(group):
            columns[f"raw.{name}" if name in LOG_COLUMNS else name] = values
        buffer = pa.BufferOutputStream()
        pq.write_table(
            pa.table(columns), buffer, compression="snappy", use_dictionary=list(_REPEATED), write_statistics=False
        )
        yield buffer.getvalue().to_pybytes()


def _log_columns(served: Sequence[Served], series: str) -> dict[str, pa.Array]:
    requests = _Requests.of(served)
    rows = np.array([len(item.answer.scores) for item in served])
    scores = np.concatenate([item.answer.scores for item in served])
    ids = own_ids(series, requests.numbers)
    if not requests.own.all():
        pairs = zip(requests.ids, ids.to_pylist(), strict=True)
        ids = pa.array([given if isinstance(given, str) else own for given, own in pairs])
    index = np.zeros(len(scores), dtype=np.int64)
    if len(requests.ids) != len(scores):
        of_request = np.repeat(np.arange(len(requests.ids)), requests.counts)
        ids = ids.take(pa.array(of_request))
        index = np.arange(len(scores)) - (np.cumsum(requests.counts) - requests.counts)[of_request]
    of_batch = np.repeat(np.arange(len(served)), rows)
    finite = np.isfinite(scores)
    return {
        "request_id": ids,
        "row_index": pa.array(index),
        "version": pa.array(np.array([item.version for item in served])[of_batch]),
        "variant": pa.array([item.variant for item in served]).take(pa.array(of_batch)),
        "score": pa.array(scores) if finite.all() else pa.array(scores, mask=~finite),
        "served_at": pa.array(np.array([item.served_at for item in served])[of_batch]),
    }


def own_ids(series: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    """As :func:`raymlops.blocks.request_id` for each number, without a Python object each."""
    prefix = np.frombuffer(f"{series}-".encode(), dtype=np.uint8)
    digits = 1 + np.searchsorted(_POWERS, numbers, side="right")
    width = int(digits.max())
    text = np.empty((len(numbers), len(prefix) + width), dtype=np.uint8)
    text[:, : len(prefix)] = prefix
    for place in range(width):
        text[:, len(prefix) + place] = _HEX[(numbers >> 4 * (width - 1 - place)) & 15]
    ends = np.cumsum(len(prefix) + digits)
    if digits.min() < width:
        leading = np.arange(width) < (width - digits)[:, None]
        kept = np.concatenate([np.ones((len(numbers), len(prefix)), dtype=bool), ~leading], axis=1)
        text = text[kept]
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def _features(served: Sequence[Served]) -> Iterator[tuple[str, pa.Array]]:
    first = served[0].answer.sent
    if first is None:
        rows = [row for item in served for row in item.rows]
        for name in dict.fromkeys(name for row in rows for name in row):
            yield name, _column([row.get(name) for row in rows])
        return
    values = np.concatenate([item.answer.sent.values for item in served if item.answer.sent is not None])
    # One copy, after which a column is a buffer that Arrow takes as it is.
    for column, numbers in zip(first.columns, np.ascontiguousarray(values.T), strict=True):
        missing = np.isnan(numbers)
        some = missing.any()
        if column.kind != "number":
            numbers = np.where(missing, 0.0, numbers).astype(np.int64 if column.kind == "integer" else np.bool_)
        yield column.name, pa.array(numbers, mask=missing if some else None)


def _column(values: list[Any]) -> pa.Array:
    try:
        if any(type(value) is float for value in values):
            return pa.array(values, pa.float64())
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
