"""Would a retraining pay? A cheap refit on older labels, compared with the champion on the newest ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.errors import DataError
from raymlops.search.selection import refit

if TYPE_CHECKING:
    from raymlops.data.snapshot import Arrays
    from raymlops.search.selection import SearchResult

LEAST, _ENOUGH, _MOST = 30, 250, 2_000
_BLOCKS = 20
_LEAST_LOSS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a cheap refit gained on rows that neither model learnt from.

    Attributes
    ----------
    gain : mean of champion's loss less refit's, positive when the refit is better
    standard_error : of the gain, from means of consecutive blocks, so that autocorrelation is counted
    gains : the gain may be real: its upper confidence bound (two standard errors) is above ``least``
    rows : compared
    loss : the refit's mean loss on them, which is what a model as young as it loses
    """

    gain: float
    standard_error: float
    gains: bool
    rows: int
    note: str
    loss: float = 0.0

    @property
    def usual(self) -> float:
        """The loss that gain and error are measured against: the refit's; never less than a thousandth of the
        champion's, so that a refit that is never wrong has one, and 1 when neither model is ever wrong."""
        return max(self.loss, _LEAST_LOSS * (self.loss + self.gain)) or 1.0

    @property
    def sure(self) -> bool:
        """The gain is more than one standard error above nothing."""
        return self.gain > self.standard_error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Probe:
        return cls(**body)


def compared_rows(labelled: int, since_change: int | None = None) -> int:
    """How many of the newest labelled rows a probe holds back to compare on: a fifth of what came since the champion's
    training, or since the change where one was found (a refit that has not seen the change shows nothing).

    Few, so that the refit is nearly as fresh as a retraining would be; but at least 250 or half of them, and at most 2,000.
    """
    new = labelled if since_change is None else min(labelled, since_change)
    return min(max(new // 5, min(_ENOUGH, new // 2), LEAST), _MOST)


def held_out_predictions(result: SearchResult, arrays: Arrays) -> NDArray[np.float64]:
    """What a search's winner says of the validation and test rows, ``(n,)`` or ``(n, k)``, each by a fit that had not seen them.

    The winner itself has learnt from the validation rows: what it loses on them promises too little.
    """
    before = refit(result, arrays.x_train, arrays.y_train)
    parts = [before.predict(arrays.x_validation), result.estimator.predict(arrays.x_test)]
    return np.concatenate(parts).astype(np.float64)


def probe(champion_losses: ArrayLike, refit_losses: ArrayLike, *, least: float = 0.0) -> Probe:
    """Compare losses ``(n,)`` of the same rows in time order, paired.

    The benefit of the doubt goes to the retraining, since the gate judges it again on its own merits: only a gain that
    is surely below ``least`` is called none.

    Raises
    ------
    DataError : fewer than 30 rows, lengths that differ, or losses that are not finite
    """
    old, new = np.asarray(champion_losses, dtype=np.float64), np.asarray(refit_losses, dtype=np.float64)
    if old.shape != new.shape or old.ndim != 1 or old.size < LEAST:
        raise DataError(f"A probe compares at least {LEAST} losses of the same rows, not {old.shape} with {new.shape}.")
    saved = old - new
    if not np.isfinite(saved).all():
        raise DataError("A probe needs finite losses: leave out rows without a finite prediction, of both models.")
    length = max(saved.size // _BLOCKS, 1)
    blocks = saved[: saved.size // length * length].reshape(-1, length).mean(axis=1)
    gain, error = float(saved.mean()), float(blocks.std(ddof=1) / np.sqrt(blocks.size))
    note = f"{gain:+.4g} ± {error:.2g} a row on the newest {saved.size} labels"
    return Probe(
        gain=gain,
        standard_error=error,
        gains=gain + 2 * error > least,
        rows=saved.size,
        note=note,
        loss=float(new.mean()),
    )
