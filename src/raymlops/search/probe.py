"""Would a retraining pay? A cheap refit on older labels, compared with the champion on the newest ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raymlops.errors import DataError

_LEAST = 30
_BLOCKS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a cheap refit gained on rows that neither model learnt from.

    Attributes
    ----------
    gain : mean of champion's loss less refit's, positive when the refit is better
    standard_error : of the gain, from means of consecutive blocks, so that autocorrelation is counted
    gains : the gain may be real: its upper confidence bound (two standard errors) is above ``least``
    rows : compared
    """

    gain: float
    standard_error: float
    gains: bool
    rows: int
    note: str


def probe(champion_losses: ArrayLike, refit_losses: ArrayLike, *, least: float = 0.0) -> Probe:
    """Compare losses ``(n,)`` of the same rows in time order, paired.

    The benefit of the doubt goes to the retraining, since the gate judges it again on its own merits: only a gain that
    is surely below ``least`` is called none.

    Raises
    ------
    DataError : fewer than 30 rows, lengths that differ, or losses that are not finite
    """
    old, new = np.asarray(champion_losses, dtype=np.float64), np.asarray(refit_losses, dtype=np.float64)
    if old.shape != new.shape or old.ndim != 1 or old.size < _LEAST:
        raise DataError(
            f"A probe compares at least {_LEAST} losses of the same rows, not {old.shape} with {new.shape}."
        )
    saved = old - new
    if not np.isfinite(saved).all():
        raise DataError("A probe needs finite losses: leave out rows without a finite prediction, of both models.")
    length = max(saved.size // _BLOCKS, 1)
    blocks = saved[: saved.size // length * length].reshape(-1, length).mean(axis=1)
    gain, error = float(saved.mean()), float(blocks.std(ddof=1) / np.sqrt(blocks.size))
    note = f"{gain:+.4f} ± {error:.4f} a row on the newest {saved.size} labels"
    return Probe(gain=gain, standard_error=error, gains=gain + 2 * error > least, rows=saved.size, note=note)
