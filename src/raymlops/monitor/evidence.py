"""What every detector takes and gives: a window of rows in, evidence out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import DataError
from raymlops.sketch.histogram import Bins, Sketch

MIN_EFFECTIVE = 50.0
"""Independent rows a test needs; with fewer, rows of several windows are joined, and until then there is no verdict."""
JOINT = "(joint)"
"""Stands where a column's name would, in evidence about all columns together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One test on one column, or on all of them together.

    Attributes
    ----------
    name : the test: ``ks``, ``chi2``; ``missing``, ``infinite``, ``range``, ``unseen`` (rates); ``persistent``,
        ``classifier`` (bets that go on from window to window); or a second opinion's own name
    column : its column, or ``(joint)``
    status : ``insufficient`` when there are too few independent rows to say anything; p is then 1 and nothing drifts,
        which does not mean that nothing changed
    statistic : KS distance, chi-square, difference of rates, capital of the bets (alarm at 1), AUC (``classifier``)
    p_value, limit : ``drifted`` is ``p_value <= limit``. For bets p is ``limit / capital``, at most 1: no p-value of
        one window, but small exactly when the capital is large
    distance : size of the change, 0 to 1, less what chance gives: Jensen-Shannon distance (base 2) over the reference's
        quantile cells or categories (a shift of 0.25 standard deviations is about 0.1), difference of rates, or
        ``2 AUC - 1``
    effective_rows : independent rows the answer rests on
    detail : for ``classifier``, the columns that tell the windows apart best
    """

    name: str
    column: str
    statistic: float
    p_value: float
    limit: float
    drifted: bool
    distance: float
    effective_rows: float = float("nan")
    status: Literal["tested", "insufficient"] = "tested"
    detail: tuple[str, ...] = ()

    @classmethod
    def insufficient(cls, name: str, column: str, limit: float, effective_rows: float = 0.0) -> Evidence:
        """Too little came to say anything."""
        return cls(
            name=name,
            column=column,
            statistic=0.0,
            p_value=1.0,
            limit=limit,
            drifted=False,
            distance=0.0,
            effective_rows=effective_rows,
            status="insufficient",
        )

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Evidence:
        return cls(**{**body, "detail": tuple(body.get("detail", ()))})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """Rows judged together: all of them counted, and a sample of them one by one.

    Attributes
    ----------
    x : ``(k, n_columns)`` float32, the sample in the order served, NaN = missing; all rows when the window is ``whole``
    cells : ``(n_columns, k)``, the reference's cell of each value of the sample (:meth:`Bins.locate`)
    sketch : counts of all rows
    alpha : false-alarm probability that all detectors together may spend on this window
    """

    x: NDArray[np.float32]
    cells: NDArray[np.int16]
    sketch: Sketch
    alpha: float

    @classmethod
    def of(cls, bins: Bins, x: NDArray[np.floating[Any]], alpha: float, sketch: Sketch | None = None) -> Window:
        """Find the cells of ``x``, and count them where ``sketch`` does not tell of more rows.

        Raises
        ------
        DataError : another number of columns than the bins have, or an alpha outside (0, 1)
        """
        if not 0.0 < alpha < 1.0:
            raise DataError(f"alpha={alpha!r} is no false-alarm probability: give a number between 0 and 1.")
        rows = np.asarray(x, dtype=np.float32)  # the reference's precision, or equal values would not tie
        if sketch is not None:
            return cls(x=rows, cells=bins.locate(rows), sketch=sketch, alpha=alpha)
        counted, cells = Sketch.located(bins, rows)
        return cls(x=rows, cells=cells, sketch=counted, alpha=alpha)

    @property
    def rows(self) -> int:
        """Rows served."""
        return self.sketch.rows

    @property
    def whole(self) -> bool:
        """The sample holds every row."""
        return len(self.x) == self.sketch.rows

    @property
    def stride(self) -> float:
        """Rows served for each row of the sample."""
        return self.sketch.rows / len(self.x) if len(self.x) else 1.0


class Detector(Protocol):
    """Windows of one version's traffic in, evidence out, in the order they were served.

    The reference is given when the detector is built and never changes. What it remembers of earlier windows goes through
    ``state_dict`` and ``load_state`` as JSON, and the same evidence follows, bit for bit.
    """

    @property
    def name(self) -> str: ...

    def update(self, window: Window) -> tuple[Evidence, ...]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...
