"""Many served rows as one document: what the store keeps of a gateway's predictions until their labels come.

A row of the store for each prediction would cost more than the prediction. A gateway numbers its answers, so that the
rows of a request are found by the number in the request's id; only rows that get a label become rows of the store.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ID = re.compile(r"([0-9a-f]{16})-(0|[1-9a-f][0-9a-f]{0,14})")
_ARRAYS = (
    ("numbers", "<i8"),
    ("counts", "<i4"),
    ("versions", "<i4"),
    ("variants", "<u1"),
    ("served_at", "<f8"),
    ("scores", "<f8"),
)


def request_id(series: str, number: int) -> str:
    """The id of the ``number``-th request that the gateway with this ``series`` answered.

    >>> request_id("00f1e2d3c4b5a697", 255)
    '00f1e2d3c4b5a697-ff'
    """
    return f"{series}-{number:x}"


def parse_request_id(given: str) -> tuple[str, int] | None:
    """Series and number of an id that :func:`request_id` made; ``None`` for ids that clients chose."""
    match = _ID.fullmatch(given)
    return (match[1], int(match[2], 16)) if match else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """What one gateway answered between two writes.

    Attributes
    ----------
    series : 16 hexadecimal digits, drawn by each gateway process
    names : names of the variants that ``variants`` counts in
    numbers : int64 ``(n,)``, increasing: one request each
    counts, versions, variants, served_at : of each request ``(n,)``
    scores : float64 of each row ``(counts.sum(),)``, NaN where the prediction was not finite
    """

    series: str
    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    counts: NDArray[np.int32]
    versions: NDArray[np.int32]
    variants: NDArray[np.uint8]
    served_at: NDArray[np.float64]
    scores: NDArray[np.float64]

    def to_bytes(self) -> bytes:
        """A line of JSON, then the arrays one after the other (little-endian, zlib)."""
        head = {"series": self.series, "names": self.names, "n": len(self.numbers), "rows": len(self.scores)}
        arrays = b"".join(np.asarray(getattr(self, name), dtype=kind).tobytes() for name, kind in _ARRAYS)
        return json.dumps(head).encode() + b"\n" + zlib.compress(arrays, 1)

    @classmethod
    def from_bytes(cls, content: bytes) -> Block:
        line, _, packed = content.partition(b"\n")
        head, data, at = json.loads(line), zlib.decompress(packed), 0
        arrays: dict[str, Any] = {}
        for name, kind in _ARRAYS:
            count = head["rows"] if name == "scores" else head["n"]
            arrays[name] = np.frombuffer(data, dtype=kind, count=count, offset=at)
            at += arrays[name].nbytes
        return cls(series=head["series"], names=tuple(head["names"]), **arrays)

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The rows of one request as :class:`raymlops.store.PredictionRow` takes them; none when it is not here."""
        index = int(np.searchsorted(self.numbers, number))
        if index == len(self.numbers) or self.numbers[index] != number:
            return []
        start = int(self.counts[:index].sum())
        return [
            {
                "request_id": request_id(self.series, number),
                "row_index": row,
                "version": int(self.versions[index]),
                "variant": self.names[self.variants[index]],
                "score": float(score) if np.isfinite(score) else None,
                "served_at": float(self.served_at[index]),
            }
            for row, score in enumerate(self.scores[start : start + int(self.counts[index])])
        ]
