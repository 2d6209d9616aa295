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
from raymlops.monitor.evidence import JOINT, Evidence, Window

Kind = Literal["tabular", "ks", "cvm", "chisquare", "fet", "classifier", "uncertainty"]
_KINDS: dict[str, str] = {
    "tabular": "TabularDrift",
    "ks": "KSDrift",
    "cvm": "CVMDrift",
    "chisquare": "ChiSquareDrift",
    "fet": "FETDrift",
    "classifier": "ClassifierDrift",
    "uncertainty": "ClassifierUncertaintyDrift",
}
_CODES = 10
_MIN_ROWS = 20
_MISSING_CODE = -1.0


def available() -> bool:
    """Whether alibi-detect is installed; does not import it."""
    return importlib.util.find_spec("alibi_detect") is not None


def preload() -> None:
    """Import alibi-detect now (about 5 s), so that nobody waits for it later."""
    importlib.import_module("alibi_detect.cd")


class AlibiDetector:
    """One of alibi-detect's batch detectors that run without torch, with Bonferroni over columns.

    Left alone these detectors can never alarm on a column that holds one NaN, cut extra columns off in silence and rank
    infinities as values. Here a missing value becomes a value of its own, below all others, so that a change in the
    missing rate is a change of the column; a window of another width is refused. What each kind sees:

    - ``tabular`` KS on numbers and chi-square on categories; ``ks`` KS on everything
    - ``cvm`` Cramér-von Mises, whose p-value assumes no ties: equal values are spread evenly by a billionth of the range
    - ``chisquare`` on categories, and on numbers cut at the reference's deciles
    - ``fet`` Fisher's exact test on whether a value is missing, or for categories with two codes on the code
    - ``classifier`` a logistic regression over all columns: one answer, on ``(joint)``
    - ``uncertainty`` KS on the entropy of the last column, a binary model's probability: one answer, on that column. A score that is
      missing counts as the least certain one

    Not offered: the uncertainty of a regressor (it needs an ensemble's members), and the online ones: their expected run time counts
    rows and its threshold is simulated, so one false alarm in a million rows would take more than ten million simulated
    runs; they also keep every row they were ever given.

    Parameters
    ----------
    x : reference rows ``(n_rows, n_columns)``
    columns : their names
    categories : column index -> number of codes
    kind : which of them

    Raises
    ------
    ConfigError : alibi-detect is not installed, an unknown kind, or ``uncertainty`` of what is no probability
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
        if kind == "uncertainty" and not _probabilities(x[:, -1]):
            raise ConfigError(
                f"kind='uncertainty' judges a binary model's probabilities, which {columns[-1]!r} does not hold: "
                "give another kind."
            )
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
        self._kind = kind
        self._middle, spread = (
            np.nanmedian(np.where(empty, 0.0, finite), axis=0),
            np.nanstd(np.where(empty, 0.0, finite), axis=0),
        )
        self._scale = np.where(spread > 0, spread, 1.0)
        cuts = [np.nanquantile(column, np.arange(1, _CODES) / _CODES) for column in np.where(empty, 0.0, finite).T]
        self._cuts = [np.unique(cut) for cut in cuts]
        self._detector = self._build(detectors, self._guard(x))

    def _build(self, detectors: Any, reference: NDArray[np.float64]) -> Any:
        kind, options = self._kind, dict[str, Any](p_val=0.05)
        if kind == "classifier":
            from sklearn.linear_model import LogisticRegression

            model = LogisticRegression(max_iter=300)
            return detectors.ClassifierDrift(reference, model, backend="sklearn", seed=0, **options)
        if kind == "uncertainty":
            return detectors.ClassifierUncertaintyDrift(reference, _both_classes, **options)
        if kind == "fet":
            return detectors.FETDrift(reference, alternative="two-sided", **options)
        coded = range(len(self.columns)) if kind == "chisquare" else self._categories
        if kind in ("tabular", "chisquare") and coded:
            options["categories_per_feature"] = {i: [float(code) for code in np.unique(reference[:, i])] for i in coded}
        if kind == "tabular" and not coded:
            return detectors.KSDrift(reference, **options)
        return getattr(detectors, _KINDS[kind])(reference, **options)

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
        if self._kind == "classifier":
            answer = self._detector.predict(self._guard(x), return_model=False)["data"]
            p, distance = float(answer["p_val"]), float(answer["distance"])
            return (self._evidence(JOINT, distance, p, alpha, len(x)),)
        if self._kind == "uncertainty":
            answer = self._detector.predict(self._guard(x))["data"]
            statistic, p = float(np.max(answer["distance"])), float(np.min(answer["p_val"]))
            return (self._evidence(self.columns[-1], statistic, p, alpha, len(x)),)
        answer = self._detector.predict(self._guard(x), drift_type="feature")["data"]
        limit = alpha / max(len(self.columns), 1)
        return tuple(
            self._evidence(column, float(statistic), float(p), limit, len(x))
            for column, statistic, p in zip(self.columns, answer["distance"], answer["p_val"], strict=True)
        )

    def _evidence(self, column: str, statistic: float, p: float, limit: float, rows: int) -> Evidence:
        return Evidence(
            name=self.name,
            column=column,
            statistic=statistic,
            p_value=p,
            limit=limit,
            # A p-value that is not a number must never read as "no drift".
            drifted=not p > limit,
            distance=statistic if 0.0 <= statistic <= 1.0 else float("nan"),
            effective_rows=float(rows),
        )

    def _guard(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Rows as the detector can take them, without a value that is not finite."""
        filled = np.where(np.isfinite(x), x, self._fill).astype(np.float64)
        if self._kind == "uncertainty":
            scores = np.where(np.isfinite(x[:, -1]), x[:, -1], 0.5).astype(np.float64)
            return np.clip(scores, 0.0, 1.0)[:, None]
        if self._kind == "cvm":
            return np.column_stack([_spread(column) for column in filled.T])
        if self._kind == "chisquare":
            lost = ~np.isfinite(x)
            for i, cut in enumerate(self._cuts):
                if i not in self._categories:
                    codes = np.searchsorted(cut, filled[:, i], side="right")
                    filled[:, i] = np.where(lost[:, i], _MISSING_CODE, codes)
        if self._kind == "fet":
            binary = [i for i, size in self._categories.items() if size == 2]
            missing = ~np.isfinite(x)
            missing[:, binary] = filled[:, binary] == 1.0
            return missing.astype(np.float64)
        if self._kind == "classifier":
            center = np.where(np.isfinite(x), x, self._middle)
            scaled = np.clip((center - self._middle) / self._scale, -10.0, 10.0)
            return np.column_stack((scaled, ~np.isfinite(x)))
        return filled


def _probabilities(scores: NDArray[np.floating[Any]]) -> bool:
    known = scores[np.isfinite(scores)]
    return bool(known.size and known.min() >= 0.0 and known.max() <= 1.0)


def _both_classes(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The model that alibi-detect asks for: ``(n, 1)`` probabilities of the positive class as ``(n, 2)`` of both."""
    return np.column_stack((1.0 - scores[:, 0], scores[:, 0]))


def _spread(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sorted, equal values apart by an even ramp over a billionth of the range around them."""
    values, counts = np.unique(column, return_counts=True)
    width = max(float(values[-1] - values[0]), 1.0) * 1e-9
    place = np.concatenate([(np.arange(count) + 0.5) / count - 0.5 for count in counts])
    return np.repeat(values, counts) + width * place
