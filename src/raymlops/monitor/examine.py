"""What a probe looks at: would a refit lose less than the champion on the newest labels, and where does the rise come from.

It costs a few small fits, so it runs where a fit disturbs nobody, and never in the steward's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.monitor.attribution import LossParts, Suspect, loss_parts, suspects
from raymlops.monitor.estimate import labels_of
from raymlops.monitor.quality import row_losses
from raymlops.search.probe import Probe, compared_rows, probe

if TYPE_CHECKING:
    from raymlops.registry.package import Reference

Rows = NDArray[np.float32]
Predict = Callable[[Rows], NDArray[np.floating[Any]]]
Fit = Callable[[Rows, NDArray[np.float64]], Predict]

PROBE_ROWS = 50_000
"""A refit learns from at most this many of the newest rows: it has to be cheap, not good."""
_PART_ROWS = 2_000
_LEAST_PART_ROWS = 100
_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """A probe, and where a rise was to be explained, its parts and the columns along which the champion is wrong."""

    probe: Probe
    parts: LossParts | None = None
    suspects: tuple[Suspect, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        parts = None if self.parts is None else self.parts.to_dict()
        return {"probe": self.probe.to_dict(), "parts": parts, "suspects": [item.to_dict() for item in self.suspects]}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Examination:
        parts = body.get("parts")
        return cls(
            probe=Probe.from_dict(body["probe"]),
            parts=None if parts is None else LossParts(**parts),
            suspects=tuple(Suspect(**item) for item in body.get("suspects", ())),
        )


def examine(
    x: Rows,
    y: NDArray[np.float64],
    *,
    task: str,
    champion: Predict,
    refit: Fit,
    labelled: int,
    since_change: int | None = None,
    reference: Reference | None = None,
) -> Examination:
    """Compare champion and refit on the newest rows, and split the rise of the loss.

    Parameters
    ----------
    x, y : ``(n, d)`` labelled rows in time order and ``(n,)`` encoded labels, those the champion learnt from included
    champion, refit : what the champion says of rows, and a function that fits a model and gives its predictions; both as
        ``row_losses`` takes them
    labelled, since_change : rows among the newest that the champion did not learn from, and since the change began
    reference : of the champion; with it, and 100 new rows, the rise is split

    Raises
    ------
    DataError : too few labelled rows, or too few with a finite prediction of both models
    """
    held = compared_rows(labelled, since_change)
    if len(y) < _SHARE * held:
        raise DataError(f"{len(y)} labelled rows are too few to hold {held} back and learn from the rest.")
    model = refit(x[:-held][-PROBE_ROWS:], y[:-held][-PROBE_ROWS:])
    old, new = (row_losses(task, y[-held:], said(x[-held:])) for said in (champion, model))
    finite = np.isfinite(old) & np.isfinite(new)
    found = probe(old[finite], new[finite])
    window = min(labelled if since_change is None else min(labelled, since_change), _PART_ROWS)
    if reference is None or window < _LEAST_PART_ROWS or len(reference.x) < _LEAST_PART_ROWS:
        return Examination(probe=found)
    rate = None
    if task == "binary":
        rate = float(np.nanmean(labels_of(reference.scores, reference.losses)))
    scores = champion(x[-window:])
    parts = loss_parts(reference.x, reference.losses, x[-window:], y[-window:], scores, task=task, reference_rate=rate)
    return Examination(probe=found, parts=parts, suspects=suspects(x[-window:], y[-window:], scores, reference.columns))
