"""alibi-detect's detectors behind our protocol: a second opinion. The only file that imports alibi_detect.

alibi-detect 0.11.5 and later is under the Business Source License 1.1; it is an extra (``raymlops[alibi]``) and nothing
needs it. Importing it costs about 5 s and 300 MB, so it is imported when the first detector is built.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import ConfigError, DataError
from raymlops.monitor.evidence import Evidence, Window

Kind = Literal["tabular", "ks"]
_KINDS: dict[str, str] = {"tabular": "TabularDrift", "ks": "KSDrift"}
_MIN_ROWS = 20
_MISSING_CODE = -1.0


def available() -> bool:
    """Whether alibi-detect is installed; does not import it."""
    return importlib.util.find_spec("alibi_detect") is not None


def preload() -> None:
    """Import alibi-detect now (about 5 s), so that nobody waits for it later."""
    importlib.import_module("alibi_detect.cd")


class AlibiDetector:
    """TabularDrift (KS and chi-square) or KSDrift, with Bonferroni over columns.

    Left alone these detectors can never alarm on a column that holds one NaN, cut extra columns off in silence and rank
    infinities as values. Here a missing value becomes a value of its own, below all others, so that a change in the
    missing rate is a change of the column; a window of another width is refused. CVMDrift is not offered: its p-value
    assumes no ties, so category codes and filled-in values alarm when nothing changed.

    Parameters
    ----------
    x : reference rows ``(n_rows, n_columns)``
    columns : their names
    categories : column index -> number of codes
    kind : which of the two

    Raises
    ------
    ConfigError : alibi-detect is not installed, or an unknown kind
    """

    def __init__(
        self,
        x: NDArray[np.floating[Any]],
        columns: Sequence[str],
        *,
        categories: Mapping[int, int] | None = None,
        kind: Kind = "tabular",
    ) -> None:
        if kind not in _KINDS:
            raise ConfigError(f"kind={kind!r} is no detector: give one of {', '.join(_KINDS)}.")
        if not available():
            raise ConfigError("alibi-detect is not installed: pip install 'raymlops[alibi]', or second_opinion='off'.")
        import alibi_detect.cd as detectors

        self.columns = tuple(columns)
        self.name = f"alibi-detect {_KINDS[kind]}"
        self._categories = dict(categories or {})
        finite = np.where(np.isfinite(x), x, np.nan).astype(np.float64)
        empty = np.isnan(finite).all(axis=0)
        low, high = (function(np.where(empty, 0.0, finite), axis=0) for function in (np.nanmin, np.nanmax))
        self._fill = low - (high - low) - 1.0
        self._fill[list(self._categories)] = _MISSING_CODE
        reference = self._guard(x)
        options: dict[str, Any] = {"p_val": 0.05}
        if kind == "tabular" and self._categories:
            options["categories_per_feature"] = {
                i: [float(code) for code in np.unique(reference[:, i])] for i in self._categories
            }
        detector = detectors.KSDrift if kind == "tabular" and not self._categories else getattr(detectors, _KINDS[kind])
        self._detector = detector(reference, **options)

    def update(self, window: Window) -> tuple[Evidence, ...]:
        """The window's rows, at its whole ``alpha``."""
        return self.detect(window.x, window.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: these detectors look at one window at a time."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        return None

    def detect(self, x: NDArray[np.floating[Any]], alpha: float) -> tuple[Evidence, ...]:
        """One piece of evidence a column; ``distance`` is alibi's statistic for KS, and NaN where it is not 0 to 1.

        Raises
        ------
        DataError : fewer than 20 rows, or another number of columns than the reference
        """
        if x.ndim != 2 or x.shape[1] != len(self.columns) or len(x) < _MIN_ROWS:
            raise DataError(
                f"A window of shape {x.shape} cannot be judged: "
                f"it needs {_MIN_ROWS} rows of {len(self.columns)} columns."
            )
        answer = self._detector.predict(self._guard(x), drift_type="feature")["data"]
        limit = alpha / max(len(self.columns), 1)
        return tuple(
            Evidence(
                name=self.name,
                column=column,
                statistic=float(statistic),
                p_value=float(p),
                limit=limit,
                # A p-value that is not a number must never read as "no drift".
                drifted=not float(p) > limit,
                distance=float(statistic) if 0.0 <= statistic <= 1.0 else float("nan"),
                effective_rows=float(len(x)),
            )
            for column, statistic, p in zip(self.columns, answer["distance"], answer["p_val"], strict=True)
        )

    def _guard(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        return np.where(np.isfinite(x), x, self._fill).astype(np.float64)
