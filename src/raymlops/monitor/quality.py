"""Performance from late labels: an e-detector on the loss, the one alarm that may start a retraining by itself.

The detector bets against "the mean loss is not above the limit" (betting for bounded means: Waudby-Smith and Ramdas,
JRSS-B 2024, arXiv:2010.09686; tracking a deployed model's risk: Podkopaev and Ramdas, ICLR 2022, arXiv:2110.06177) and
adds up bets started at every time (e-detectors: Shin, Ramdas and Rinaldo, arXiv:2203.03532; Shiryaev-Roberts form).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymlops.errors import DataError
from raymlops.sketch.histogram import pack_array, unpack_array

_BETS = np.array([0.03, 0.1, 0.2, 0.4, 0.65, 0.9])
"""Stakes as shares of the largest allowed one, ``1 / limit``."""
_STANDARD_ERRORS = 2.5
_MIN_LOSSES = 30


def row_losses(task: str, y: ArrayLike, prediction: ArrayLike) -> NDArray[np.float64]:
    """The loss of each row, shape ``(n,)``; a prediction that is not finite gives NaN, which detectors count as worst.

    Parameters
    ----------
    task : ``binary`` (squared error of the probability, Brier), ``multiclass`` (0 or 1), ``regression``
        (absolute error)
    y : ``(n,)`` class indices or values
    prediction : ``(n,)`` probability of class 1, class index or value; ``(n, k)`` probabilities for ``multiclass``

    Raises
    ------
    DataError : unknown task, or lengths that differ
    """
    truth, guess = np.asarray(y, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if len(truth) != len(guess):
        raise DataError(f"{len(truth)} labels do not fit {len(guess)} predictions.")
    if task == "binary":
        brier: NDArray[np.float64] = (guess - truth) ** 2
        return brier
    if task == "regression":
        error: NDArray[np.float64] = np.abs(guess - truth)
        return error
    if task != "multiclass":
        raise DataError(f"task={task!r} has no loss: give 'binary', 'multiclass' or 'regression'.")
    known = np.isfinite(guess).all(axis=1) if guess.ndim == 2 else np.isfinite(guess)
    chosen = guess.argmax(axis=1).astype(np.float64) if guess.ndim == 2 else guess
    return np.where(known, (chosen != truth).astype(np.float64), np.nan)


def autocorrelation_time(values: NDArray[np.floating[Any]]) -> float:
    """Rows that carry as much information as one independent row, at least 1 (integrated autocorrelation time).

    From batch means of time-ordered ``values`` ``(n,)``: ``b * var(means of b rows) / var(rows)``, the largest over
    three block lengths of which the longest leaves 40 blocks. Fewer than 160 rows, or no variance: 1. Not-finite
    values are left out.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    variance = float(finite.var()) if finite.size else 0.0
    if finite.size < 160 or variance <= 0.0:
        return 1.0
    found = 1.0
    for blocks in (40, 80, 160):
        length = finite.size // blocks
        means = finite[: length * blocks].reshape(blocks, length).mean(axis=1)
        found = max(found, length * float(means.var(ddof=1)) / variance)
    return found


def thinned_time(time: float, stride: float) -> float:
    """Autocorrelation time, in rows of the sample, of a sample that takes one row in ``stride`` of a stream with ``time``.

    Of a first-order autoregression, ``(1 + r) / (1 - r)`` with ``r`` the correlation of neighbours, which is
    ``r ** stride`` in the sample. A sample so counted never has more effective rows than the stream it came from.
    """
    if stride <= 1.0 or time <= 1.0:
        return max(time, 1.0)
    neighbours = ((time - 1.0) / (time + 1.0)) ** stride
    return (1.0 + neighbours) / (1.0 - neighbours)


def block_length(values: NDArray[np.float64], longest: int) -> int:
    """Rows to average so that neighbouring blocks of time-ordered ``values`` ``(n,)`` are nearly uncorrelated.

    Twice the largest power of two at which the lag-1 correlation of block means is above 0.05 and above chance
    (3 / sqrt(blocks), at least 40 blocks); 1 when none is, and at most ``longest``. Coarse blocks are looked at even when
    single rows look independent: 0/1 losses hide a slow change of their rate.
    """
    found, length = 1, 1
    while values.size // length >= 40:
        blocks = values.size // length
        means = values[: blocks * length].reshape(blocks, length).mean(axis=1)
        means = means - means.mean()
        power = float(means @ means)
        if power > 0 and float(means[1:] @ means[:-1]) / power > max(0.05, 3.0 / np.sqrt(blocks)):
            found = 2 * length
        length *= 2
    return max(min(found, longest), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossBaseline:
    """What the champion promised on rows it had not seen.

    Attributes
    ----------
    mean, standard_error : of the reference losses, the error with autocorrelation counted
    limit : the mean loss that is still accepted, ``mean * (1 + tolerance) + 2.5 * standard_error``
    cap : a live loss counts as at most this: 1 for classification, the largest reference loss for regression
    block : rows averaged into one bet (see ``block_length``), at most a sixteenth of a window
    rows : reference losses used
    """

    mean: float
    standard_error: float
    limit: float
    cap: float
    block: int
    rows: int

    @classmethod
    def learn(cls, losses: ArrayLike, *, task: str, ordered: bool, tolerance: float, window_rows: int) -> LossBaseline:
        """From held-out losses ``(n,)`` in time order; ``ordered=False`` assumes independent rows.

        Raises
        ------
        DataError : fewer than 30 finite losses
        """
        values = np.asarray(losses, dtype=np.float64)
        values = values[np.isfinite(values)]
        if values.size < _MIN_LOSSES:
            raise DataError(
                f"The reference holds {values.size} losses; watching performance needs at least {_MIN_LOSSES}."
            )
        time = autocorrelation_time(values) if ordered else 1.0
        mean, error = float(values.mean()), float(values.std(ddof=1) * np.sqrt(time / values.size))
        # A reference without a single error still leaves room for as many as it could have missed (rule of three).
        limit = max(
            mean * (1.0 + tolerance) + _STANDARD_ERRORS * error, 3.0 * time / values.size * float(values.max() or 1.0)
        )
        cap = max(1.0 if task != "regression" else float(values.max()), 2.0 * limit)
        block = block_length(values, max(window_rows // 16, 1)) if ordered else 1
        return cls(mean=mean, standard_error=error, limit=limit, cap=cap, block=block, rows=int(values.size))


class LossDetector:
    """Alarms when the mean loss has risen above the baseline's limit.

    Per bet ``M <- (M + spend) * (1 + stake * (block mean - limit))``; alarm when the sum over bets reaches 1. While the
    conditional mean of a block stays at or below the limit, ``P(alarm by t) <= total spend by t``, whatever the
    distribution; with a spend of ``alpha`` a window the expected time to a false alarm is at least ``1 / alpha``
    windows.
    Blocks make that hold approximately under autocorrelation: a heuristic, checked by simulation up to phi = 0.98.

    An alarm can come from a burst that is over as soon as it is proven, so ``harm`` asks for more: an alarm at most
    ``window_rows`` rows ago and the mean of the last ``window_rows`` losses above the limit, from when both hold until
    that mean is back. ``harm_row`` is the row at which it last began, and ``change_at`` when the change behind it did:
    the served time at which the sum of what losses were above the limit was last 0 (Page 1954), ``None`` without times.
    """

    def __init__(self, baseline: LossBaseline, *, window_rows: int = 1000) -> None:
        self.baseline = baseline
        self.window_rows = window_rows
        self.rows = 0
        self.alarms = 0
        self.alarm_row: int | None = None
        self.harm = False
        self.harm_row: int | None = None
        self.change_at: float | None = None
        self._above = 0.0
        self._began_at: float | None = None
        self._stakes = _BETS / baseline.limit
        self._capital = np.zeros(len(_BETS))
        self._pending = np.zeros(0)
        self._recent = np.zeros(0)

    @property
    def evidence(self) -> float:
        """Capital of all bets; the alarm is at 1. A restart follows each alarm."""
        return float(self._capital.sum())

    @property
    def recent_loss(self) -> float | None:
        """Mean of the last ``window_rows`` losses that came, ``None`` before the first."""
        return float(self._recent.mean()) if self._recent.size else None

    def update(self, losses: ArrayLike, spend_per_row: float, at: ArrayLike | None = None) -> bool:
        """Take losses ``(n,)`` in time order; true when an alarm fell among them.

        ``spend_per_row`` is the false-alarm budget each row may use up; ``at`` when the rows were served, ``(n,)`` wall
        seconds. A loss that is not finite counts as the cap.
        """
        values = np.asarray(losses, dtype=np.float64)
        values = np.where(np.isfinite(values), np.clip(values, 0.0, self.baseline.cap), self.baseline.cap)
        start = self.rows - self._pending.size
        history = np.concatenate((self._recent, values))
        origin = self.rows - self._recent.size
        self.rows += values.size
        self._recent = history[-self.window_rows :]
        times = np.full(values.size, np.nan) if at is None else np.asarray(at, dtype=np.float64)
        held = self._pending.size
        waiting = np.concatenate((self._pending, values))
        block = self.baseline.block
        whole = waiting.size // block
        alarmed = False
        for number, mean in enumerate(waiting[: whole * block].reshape(whole, block).mean(axis=1), start=1):
            row = start + number * block
            if self._above <= 0.0:
                # Of a block that began in an earlier call only the rows of this one have times here.
                self._began_at = float(times[max((number - 1) * block - held, 0)])
            self._above = max(self._above + float(mean) - self.baseline.limit, 0.0)
            alarmed |= self._bet(float(mean), spend_per_row * block, row)
            if self.harm or (self.alarm_row is not None and row - self.alarm_row < self.window_rows):
                end = row - origin
                above = float(history[max(end - self.window_rows, 0) : end].mean()) > self.baseline.limit
                if above and not self.harm:
                    self.harm_row, self.change_at = row, self._began()
                self.harm = above
        self._pending = waiting[whole * block :]
        return alarmed

    def _began(self) -> float | None:
        return self._began_at if self._began_at is not None and np.isfinite(self._began_at) else None

    def _bet(self, mean: float, spend: float, row: int) -> bool:
        self._capital += spend / len(_BETS)
        self._capital *= 1.0 + self._stakes * (mean - self.baseline.limit)
        if self._capital.sum() < 1.0:
            return False
        self._capital = np.zeros(len(_BETS))
        self.alarms += 1
        self.alarm_row = row
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, JSON; loading it gives the same numbers bit for bit."""
        arrays = {name: pack_array(getattr(self, "_" + name)) for name in ("capital", "pending", "recent")}
        names = ("rows", "alarms", "alarm_row", "harm", "harm_row", "change_at")
        page = {"above": self._above, "began_at": self._began()}
        return {**{name: getattr(self, name) for name in names}, **page, **arrays}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.rows, self.alarms = state["rows"], state["alarms"]
        self.alarm_row, self.harm, self.harm_row = state["alarm_row"], state["harm"], state["harm_row"]
        # Releases before this one did not keep when a change began.
        self.change_at, self._above = state.get("change_at"), state.get("above", 0.0)
        self._began_at = state.get("began_at")
        self._capital, self._pending, self._recent = (
            unpack_array(state[name]) for name in ("capital", "pending", "recent")
        )
