"""Traffic for a monitor, as gateways tell it: counts and a sample, cut as one likes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.sketch.histogram import Bins
from raymlops.sketch.observed import Observed, keys_of
from raymlops.sketch.profile import with_score


def observations(
    bins: Bins,
    x: NDArray[np.floating[Any]],
    scores: ArrayLike,
    served_at: ArrayLike,
    ids: Sequence[str] = (),
    *,
    batch_rows: int = 500,
    sample_rows: int | None = None,
    gateways: int = 1,
) -> Iterator[Observed]:
    """What ``gateways`` would tell of rows ``(n, d)`` served in this order, for :meth:`raymlops.monitor.monitor.Watcher.take`.

    Each batch of ``batch_rows`` is one gateway's, in turns, and shows at most ``sample_rows`` of them (``None``: all).
    ``bins`` are those of the watcher; ``served_at`` is one time or one a row; ``ids`` the request of each row, or none.

    Raises
    ------
    DataError : rows that do not fit the scores or the bins
    """
    rows = with_score(x, scores)
    at = np.broadcast_to(np.asarray(served_at, dtype=np.float64), len(rows))
    counted = [0] * gateways
    for number, begin in enumerate(range(0, len(rows), batch_rows)):
        part, gateway = slice(begin, begin + batch_rows), number % gateways
        size = len(rows[part])
        keys = keys_of(counted[gateway], size, gateway * (1 << 64) // gateways)
        counted[gateway] += size
        yield Observed.of(bins, rows[part], at[part], keys, ids[part], limit=sample_rows)
