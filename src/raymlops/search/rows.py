"""The rows a fit learns from, cut once for each share and window and kept with what was made of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from raymlops.data.snapshot import Arrays
    from raymlops.search.estimators import Floats

_KEPT = 6
_JUDGES = 10_000
_KEPT_BYTES = 2 << 30


@dataclass(slots=True, kw_only=True)
class Rows:
    """Rows to learn from and to be judged on; ``made`` keeps what estimators made of them, such as binned matrices."""

    x: Floats
    y: Floats
    x_val: Floats
    y_val: Floats
    made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, or what it gave before for ``key``; one thing a kind (the first word of a key) is kept."""
        if key not in self.made:
            for old in [old for old in self.made if old[0] == key[0]]:
                del self.made[old]
            self.made[key] = make()
        return self.made[key]


class RowCache:
    """The cuts of one data set that a worker has used last. Whole windows are views: they cost no memory."""

    def __init__(self, arrays: Arrays, seed: int) -> None:
        self._arrays, self._seed = arrays, seed
        self._kept: OrderedDict[tuple[float, float], Rows] = OrderedDict()

    def get(self, recent: float, share: float) -> Rows:
        """The newest ``recent`` of the train rows, thinned to at most ``share`` of all; validation rows with them.

        A thinned cut is judged on at most twice as many validation rows as it has, or 10,000: judging must not take longer than fitting.
        """
        key = (recent, min(1.0, share / recent))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        a = self._arrays
        at = chosen(len(a.y_train), *key, self._seed)
        cut = slice(int(at[0]), int(at[-1]) + 1) if key[1] >= 1.0 else at
        most = len(a.y_validation) if key[1] >= 1.0 else max(_JUDGES, 2 * len(at))
        judges: Any = slice(None)
        if most < len(a.y_validation):
            judges = chosen(len(a.y_validation), 1.0, most / len(a.y_validation), self._seed)
        rows = Rows(x=a.x_train[cut], y=a.y_train[cut], x_val=a.x_validation[judges], y_val=a.y_validation[judges])
        self._kept[key] = rows
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._bytes() > _KEPT_BYTES):
            self._kept.popitem(last=False)
        return rows

    def _bytes(self) -> int:
        return sum(rows.x.nbytes for rows in self._kept.values())


def chosen(n: int, recent: float, share: float, seed: int) -> NDArray[np.intp]:
    """Indices of a thinned recent window, in order: every part of the window is as present as before."""
    first = n - max(1, round(n * recent))
    window = np.arange(first, n)
    if share >= 1.0:
        return window
    kept = np.random.default_rng(seed).choice(window, size=max(1, round(len(window) * share)), replace=False)
    return np.sort(kept)
