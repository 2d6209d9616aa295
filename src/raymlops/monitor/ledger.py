"""Losses by version and by when their rows were served: the same whatever order labels come in, however late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from raymlops.errors import DataError
from raymlops.monitor.forecast import Life

_UNIT = 1 << 40
"""Losses are summed as whole numbers of 2**-40: whole numbers add up to the same in any order, floats do not."""


class LossLedger:
    """Number and sum of losses per version and stretch of ``block_s`` seconds of serving. Not thread-safe; one owner.

    Only the newest ``blocks`` stretches of the newest ``versions`` versions are kept, so that it stays small.
    """

    def __init__(self, block_s: float, *, versions: int = 64, blocks: int = 64) -> None:
        if not block_s > 0:
            raise DataError(f"block_s={block_s} is no length of time: give more than 0 seconds.")
        self.block_s, self._versions, self._blocks = float(block_s), versions, blocks
        self._held: dict[int, dict[int, list[int]]] = {}

    def add(self, version: int, losses: ArrayLike, served_at: ArrayLike) -> None:
        """Credit losses ``(n,)`` to the stretches in which their rows were served, ``(n,)`` wall seconds.

        A loss that is not finite is left out. Give every label once: the store drops repetitions.
        """
        values, at = np.asarray(losses, dtype=np.float64), np.asarray(served_at, dtype=np.float64)
        mine = self._held.setdefault(version, {})
        for value, block in zip(values, np.floor(at / self.block_s).astype(int), strict=True):
            if np.isfinite(value):
                entry = mine.setdefault(int(block), [0, 0])
                entry[0] += 1
                entry[1] += round(float(value) * _UNIT)
        for block in sorted(mine)[: -self._blocks]:
            del mine[block]
        for old in sorted(self._held)[: -self._versions]:
            del self._held[old]

    def blocks(self, version: int) -> list[tuple[float, float, int]]:
        """Start (wall seconds), mean loss and rows of each stretch of a version, in time order."""
        held = self._held.get(version, {})
        return [(block * self.block_s, total / count / _UNIT, count) for block, (count, total) in sorted(held.items())]

    def life(self, version: int, promised: float, limit: float, *, least_rows: int = 100) -> Life | None:
        """How a version aged against the loss it promised, and the age at which a stretch was above ``limit``.

        Stretches with fewer than ``least_rows`` labels are passed over; ``None`` when none is left.
        """
        held = [item for item in self.blocks(version) if item[2] >= least_rows]
        if not held or promised <= 0:
            return None
        born = held[0][0]
        ages = tuple(start - born + self.block_s for start, _, _ in held)
        excess = tuple(mean / promised - 1.0 for _, mean, _ in held)
        broken = next((i for i, (_, mean, _) in enumerate(held) if mean > limit), None)
        return Life(
            version=version,
            age_s=ages[-1] if broken is None else ages[broken],
            failed=broken is not None,
            ages_s=ages,
            excess=excess,
        )

    def to_dict(self) -> dict[str, Any]:
        held = {str(version): {str(b): e for b, e in sorted(mine.items())} for version, mine in self._held.items()}
        return {"block_s": self.block_s, "held": dict(sorted(held.items()))}

    def load(self, body: Mapping[str, Any]) -> None:
        """Take up what :meth:`to_dict` gave; stretches of another length are dropped."""
        if body["block_s"] == self.block_s:
            self._held = {
                int(version): {int(block): list(entry) for block, entry in mine.items()}
                for version, mine in body["held"].items()
            }
