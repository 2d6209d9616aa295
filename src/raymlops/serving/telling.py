"""What a gateway tells the steward: every row counted, few of them shown, never more than so many bytes a second.

Rows of the champion are counted in its reference's bins, in the recorder's thread beside the event loop. What cannot be told is
added to what is told next: counts and figures are never lost while this process lives, and never grow while they wait.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raymlops.serving.analysis import VariantStats
from raymlops.serving.logfile import Served
from raymlops.sketch.histogram import Bins
from raymlops.sketch.observed import MOST_FAR, Observed, keys_of
from raymlops.sketch.profile import with_score

log = logging.getLogger(__name__)

SAMPLE_ROWS = 1_000
"""Rows of one batch that are shown one by one."""
SAMPLE_CELLS = 200_000
"""Values of those rows; wide models show fewer rows, but at least 100."""
BURST = 4
"""Batches that may be told at once; after that one for each time the prediction log is written by its clock."""
COUNT_ROWS = 20_000
"""Rows that wait to be counted, at most: counting many at once costs less a row."""
_VERSIONS = 2
_ID_BYTES = 64 + 8
_VERSION_BYTES = 2_000
_HEAD_BYTES = 8_000


class Sink(Protocol):
    """Who is told what was served; returns at once, and raises when it cannot take a batch now."""

    def observe(self, batch: dict[str, Any]) -> None: ...


def sample_rows(columns: int) -> int:
    """Rows shown of one batch whose rows have so many columns, the score among them."""
    return max(min(SAMPLE_ROWS, SAMPLE_CELLS // max(columns, 1)), 100)


def most_bytes(bins: Bins, versions: int = _VERSIONS) -> int:
    """The largest batch there can be, pickled, whatever the traffic; ``versions`` are those that answered requests.

    A gateway tells at most ``BURST + seconds / flush_s`` of them.
    """
    columns = len(bins.columns)
    counts = 8 * columns * (bins.width + 2)
    row = 4 * columns + 8 + 8 + _ID_BYTES
    seen = counts + (sample_rows(columns) + MOST_FAR) * row + 8 * MOST_FAR + _HEAD_BYTES
    return _VERSIONS * seen + versions * _VERSION_BYTES


@dataclass(slots=True)
class _Waiting:
    """What is to be told next; ``since`` is when the first of it may have been served, wall seconds."""

    observed: dict[int, Observed]
    stats: dict[int, VariantStats]
    rows: int = 0
    since: float = math.inf


class Teller:
    """Counts what was served and tells it. One caller at a time, but for :meth:`watch`, which any thread may call.

    Parameters
    ----------
    text : a number of the gateway's own as the request id a client sees
    every_s : seconds between two batches, on average
    """

    def __init__(
        self,
        endpoint: str,
        sink: Sink,
        text: Callable[[int], str],
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint, self._sink, self._text, self._clock = endpoint, sink, text, clock
        self._every_s = max(every_s, 1e-3)
        self._watched: tuple[int, Bins] | None = None
        self._start, self._counted = secrets.randbits(64), 0
        self._waiting = _Waiting({}, {})
        self._fresh: list[Served] = []
        self._fresh_rows = 0
        self._allowed, self._at = float(BURST), clock()
        self._deaf = False

    @property
    def waits(self) -> bool:
        """Something was served that is not told yet."""
        return bool(self._fresh or self._waiting.rows or self._waiting.stats)

    def watch(self, version: int, bins: Bins) -> None:
        """Count rows of this version, in these bins, from now on: it is the champion."""
        self._watched = version, bins

    def tell(
        self, fresh: Sequence[Served], stats: dict[int, VariantStats], since: float = 0.0, *, last: bool = False
    ) -> None:
        """Take what was served ``since``, and count and tell all that waits when it is time, or when this is the ``last`` call.

        ``stats`` are figures since the last call, without scores.
        """
        if fresh or stats:
            self._waiting.since = min(self._waiting.since, since)
        self._fresh += fresh
        self._fresh_rows += sum(len(item.answer.scores) for item in fresh)
        for version, figures in stats.items():
            self._waiting.stats[version] = self._waiting.stats.get(version, VariantStats()) + figures
        now = self._clock()
        self._allowed = min(BURST, self._allowed + (now - self._at) / self._every_s)
        self._at = now
        due = self._allowed >= 1.0 or last
        if due or self._fresh_rows >= COUNT_ROWS:
            self._count()
        if not due:
            return
        self._allowed -= 1.0
        waiting = self._waiting
        batch = {
            "observed": {version: seen.to_message() for version, seen in waiting.observed.items()},
            "stats": {version: item.to_dict() for version, item in waiting.stats.items()},
            "rows": waiting.rows,
            "since": 0.0 if waiting.since == math.inf else waiting.since,
        }
        try:
            self._sink.observe(batch)
        except Exception as error:
            if not self._deaf:
                log.warning("%s: figures are kept, nobody takes them: %s", self._endpoint, error)
            self._deaf = True
            return
        self._waiting, self._deaf = _Waiting({}, {}), False

    def _count(self) -> None:
        waiting = self._waiting
        fresh, self._fresh, self._fresh_rows = self._fresh, [], 0
        by_version: dict[int, list[Served]] = defaultdict(list)
        for item in fresh:
            by_version[item.version].append(item)
        for version, items in by_version.items():
            scores = np.concatenate([item.answer.scores for item in items])
            waiting.stats[version] = waiting.stats.get(version, VariantStats()) + _sums(scores)
            waiting.rows += len(scores)
            self._observe(version, items, scores)

    def _observe(self, version: int, items: Sequence[Served], scores: NDArray[np.float64]) -> None:
        """Count rows of the version that is watched; another's are left out."""
        watched = self._watched
        if watched is None or watched[0] != version:
            return
        bins, waiting = watched[1], self._waiting.observed
        x = np.concatenate([item.answer.x for item in items])
        if x.shape[1] + 1 != len(bins.columns):
            log.error("%s: rows of %d columns do not fit version %d", self._endpoint, x.shape[1], version)
            return
        limit = sample_rows(len(bins.columns))
        at = np.repeat([item.served_at for item in items], [len(item.answer.scores) for item in items])
        keys = keys_of(self._counted, len(scores), self._start)
        self._counted += len(scores)
        seen = Observed.of(bins, with_score(x, scores), at, keys, _Names(items, self._text), limit=limit)
        # In the bins of the newest load: an earlier count in others cannot be added to.
        known = waiting.pop(version, None)
        if known is not None and known.sketch.bins == bins.digest:
            seen = (known + seen).limit(limit)
        waiting[version] = seen
        while len(waiting) > _VERSIONS:
            waiting.pop(next(iter(waiting)))


class _Names:
    """The requests of some rows, by the rows' numbers among those of all batches."""

    def __init__(self, items: Sequence[Served], text: Callable[[int], str]) -> None:
        self._ids = list(chain.from_iterable(item.ids for item in items))
        self._ends = np.cumsum(list(chain.from_iterable(item.counts for item in items)))
        self._text = text

    def __call__(self, rows: NDArray[np.intp]) -> list[str]:
        given = (self._ids[i] for i in np.searchsorted(self._ends, rows, side="right").tolist())
        return [self._text(each) if isinstance(each, int) else each for each in given]


def _sums(scores: NDArray[np.float64]) -> VariantStats:
    finite = scores[np.isfinite(scores)]
    return VariantStats(score_n=len(finite), score_sum=float(finite.sum()), score_sumsq=float((finite * finite).sum()))
