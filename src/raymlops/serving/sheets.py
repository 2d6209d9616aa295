"""Served rows on their way to another process: whole arrays for many batches, one copy and no Python object a row."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray

from raymlops.data.schema import Column, Sent
from raymlops.serving.batching import Answer
from raymlops.serving.logfile import Served

_KNOWN = 8  # versions of columns that are kept pickled


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """Batches one after the other whose rows are a matrix of the same columns.

    Attributes
    ----------
    columns : pickled, as the same bytes for the same columns: whoever reads them makes them once
    ids, counts : of all requests
    batches : version, variant, served_at, latency_ms, requests and rows of each
    values, scores : of all rows, as :class:`Sent` and :class:`Answer` have them; the model's matrix is made of the values again
    """

    columns: bytes
    ids: NDArray[np.int64] | list[int | str]
    counts: list[int]
    batches: list[tuple[int, str, float, float, int, int]]
    values: NDArray[np.float64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, served: Sequence[Served], columns: tuple[Column, ...]) -> Sheet:
        ids = list(chain.from_iterable(item.ids for item in served))
        return cls(
            _pickled(columns),
            np.array(ids, dtype=np.int64) if set(map(type, ids)) == {int} else ids,
            list(chain.from_iterable(item.counts for item in served)),
            [(i.version, i.variant, i.served_at, i.latency_ms, len(i.counts), len(i.answer.scores)) for i in served],
            np.concatenate([item.answer.sent.values for item in served if item.answer.sent is not None]),
            np.concatenate([item.answer.scores for item in served]),
        )

    def served(self) -> Iterator[Served]:
        columns = _columns(self.columns)
        ids = self.ids if isinstance(self.ids, list) else self.ids.tolist()
        finite, x = np.isfinite(self.scores), matrix_of(self.values)
        request = row = 0
        for version, variant, served_at, latency_ms, requests, rows in self.batches:
            here, those = slice(row, row + rows), slice(request, request + requests)
            sent = Sent(columns, self.values[here])
            answer = Answer(x[here], self.scores[here], finite[here], [], None, sent)
            yield Served(ids[those], self.counts[those], (), answer, version, variant, served_at, latency_ms)
            row, request = row + rows, request + requests


def matrix_of(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """What :meth:`raymlops.data.schema.DataContract.encode_sent` made of these ``(n, n_features)`` values."""
    with np.errstate(over="ignore"):
        x = values.astype(np.float32)
    x[np.isinf(x)] = np.nan
    return x


def sheets(served: Sequence[Served]) -> list[Sheet | Served]:
    """The same in order, for :func:`pickle.dumps`: rows that are no matrix stay as they are, without their answers' words."""
    made: list[Sheet | Served] = []
    for columns, group in groupby(served, lambda item: None if item.answer.sent is None else item.answer.sent.columns):
        if columns is not None:
            made.append(Sheet.of(list(group), columns))
            continue
        for i in group:
            answer = Answer(i.answer.x, i.answer.scores, i.answer.finite, [], None)
            made.append(Served(i.ids, i.counts, i.rows, answer, i.version, i.variant, i.served_at, i.latency_ms))
    return made


def unfolded(made: Sequence[Sheet | Served]) -> Iterator[Served]:
    """What :func:`sheets` was given; predictions in words are left out."""
    for item in made:
        if isinstance(item, Sheet):
            yield from item.served()
        else:
            yield item


@lru_cache(_KNOWN)
def _pickled(columns: tuple[Column, ...]) -> bytes:
    return pickle.dumps(columns)


@lru_cache(_KNOWN)
def _columns(pickled: bytes) -> tuple[Column, ...]:
    columns: tuple[Column, ...] = pickle.loads(pickled)
    return columns
