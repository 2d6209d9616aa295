"""The reference as counts: its bins, its sketch and its memory, made when a version is trained and frozen with it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.errors import DataError
from raymlops.sketch.histogram import Bins, Sketch
from raymlops.sketch.memory import Memory

SCORE = "(score)"
"""Name of the model's own output among the columns."""
_MEMORY = {"lengths": "lengths", "times": "times", "missing": "missing_times", "joint": "joint"}


def with_score(x: NDArray[np.floating[Any]], scores: ArrayLike) -> NDArray[np.float32]:
    """Rows ``(n, d)`` and their scores ``(n,)`` as one float32 matrix, the score last.

    Raises
    ------
    DataError : shapes that do not fit
    """
    values, score = np.asarray(x, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    if values.ndim != 2 or score.shape != (len(values),):
        raise DataError(f"Rows of shape {values.shape} do not fit scores of shape {score.shape}: give (n, d) and (n,).")
    return np.column_stack((values, score))


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What sketches of a version's traffic are compared with.

    Attributes
    ----------
    bins : over the model's inputs and, last, its score
    sketch : of the reference's rows
    memory : autocorrelation times of a period that was counted whole and in time order; ``None`` where the rows counted are those
        that are kept, which tell it themselves
    """

    bins: Bins
    sketch: Sketch
    memory: Memory | None = None

    @classmethod
    def learn(
        cls,
        x: NDArray[np.floating[Any]],
        scores: ArrayLike,
        columns: Sequence[str],
        categories: Mapping[int, int] | None = None,
    ) -> Profile:
        """From reference rows ``(n, d)``, their scores and names; ``categories`` as for :meth:`Bins.learn`."""
        rows = with_score(x, scores)
        bins = Bins.learn(rows, (*columns, SCORE), categories)
        return cls(bins, Sketch.of(bins, rows))

    def of_rows(self, rows: NDArray[np.floating[Any]]) -> Profile:
        """Other rows ``(n, d + 1)``, the score last, counted over the same borders."""
        return Profile(self.bins, Sketch.of(self.bins, rows))

    def to_bytes(self) -> bytes:
        """An ``.npz`` file without a pickle in it."""
        edges = self.bins.edges
        buffer = io.BytesIO()
        kept = {} if self.memory is None else {key: getattr(self.memory, name) for name, key in _MEMORY.items()}
        np.savez_compressed(
            buffer,
            columns=np.array(self.bins.columns, dtype=np.str_),
            borders=np.array([len(edge) for edge in edges], dtype=np.int64),
            edges=np.concatenate(edges) if edges else np.zeros(0),
            rows=np.array(self.sketch.rows),
            counts=self.sketch.counts,
            missing=self.sketch.missing,
            infinite=self.sketch.infinite,
            **kept,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Profile:
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            edges = np.split(held["edges"], np.cumsum(held["borders"])[:-1])
            bins = Bins.over([str(name) for name in held["columns"]], edges)
            sketch = Sketch(bins.digest, int(held["rows"]), held["counts"], held["missing"], held["infinite"])
            kept = Memory(**{name: held[key] for name, key in _MEMORY.items()}) if "lengths" in held else None
        return cls(bins, sketch, kept)
