"""Probabilities that mean what they say: a map from a model's probabilities to calibrated ones, if the data ask for one.

Each map is fitted on rows the model has not learnt from and judged, by cross-fitting, on rows the map has not seen
either. The model's own probabilities stay unless a map's log loss is better by more than its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from raymlops.search.resample import standard_error

Floats = NDArray[np.float64]
Kind = Literal["identity", "platt", "beta", "isotonic", "temperature"]

MIN_ROWS, MIN_PER_CLASS = 200, 20
_FOLDS, _MOST_ROWS = 5, 50_000
_EDGE, _LEAST_SLOPE = 1e-7, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A map of probabilities, and what spoke for it.

    Attributes
    ----------
    kind : ``identity``; for a binary task ``platt`` (Platt 1999, on the log-odds), ``beta`` (Kull, Silva Filho & Flach
        2017, equation 8) or ``isotonic`` (Zadrozny & Elkan 2002, linear between its steps); for more classes
        ``temperature`` (Guo et al. 2017)
    params : of the map, by name
    rows : that it was fitted on
    losses : mean log loss in nats on rows that a map has not seen, by kind
    gains, errors : how much lower that is than the identity's, and the standard error of this difference
    note : why this one
    """

    kind: Kind = "identity"
    params: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rows: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def apply(self, p: NDArray[Any]) -> Floats:
        """Calibrated probabilities of the same shape; what is not finite stays so, as NaN."""
        return self.mapper()(np.asarray(p, dtype=np.float64))

    def mapper(self) -> Callable[[Floats], Floats]:
        """:meth:`apply` for whoever calls it often: the parameters are made ready once."""
        if self.kind == "identity":
            return lambda p: p
        calibrated, ready = _MAPS[self.kind], _ready(self.params)
        return lambda p: calibrated(p, ready)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        params = {name: list(values) for name, values in self.params.items()}
        plain = {name: dict(getattr(self, name)) for name in ("losses", "gains", "errors")}
        return {"kind": self.kind, "params": params, "rows": self.rows, "note": self.note, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        return cls(**{**data, "params": {name: tuple(values) for name, values in data["params"].items()}})


def calibrate(y: NDArray[Any], p: NDArray[Any], *, ordered: bool, seed: int = 0) -> tuple[Calibration, Floats]:
    """The map that the rows ask for, and each row's probability by that map fitted without the row's fold.

    Parameters
    ----------
    y : ``(n,)`` class indices
    p : ``(n,)`` probability of class 1, or ``(n, k)`` class probabilities, of a model that has not learnt from these rows
    ordered : the rows are in time order: folds are stretches of it, and neighbours' losses are not taken for independent

    Returns
    -------
    The calibration, fitted on the newest 50,000 rows, and ``(m,)`` or ``(m, k)`` cross-fitted probabilities of those.
    """
    y, p = np.asarray(y)[-_MOST_ROWS:].astype(int), np.asarray(p, dtype=np.float64)[-_MOST_ROWS:]
    why = _unfit(y, p)
    if why:
        return Calibration(rows=len(y), note=why), p
    kinds: tuple[Kind, ...] = ("platt", "beta", "isotonic") if p.ndim == 1 else ("temperature",)
    folds = _folds(y, ordered, seed)
    crossed = {kind: _cross_fit(kind, y, p, folds) for kind in kinds}
    own = _row_losses(y, p)
    better: dict[Kind, Floats] = {kind: own - _row_losses(y, q) for kind, q in crossed.items()}
    gains = {kind: float(rows.mean()) for kind, rows in better.items()}
    errors = {kind: standard_error(rows, ordered=ordered) for kind, rows in better.items()}
    chosen = _choose(kinds, better, gains, errors, ordered)
    figures: dict[str, Any] = {
        "rows": len(y),
        "losses": {"identity": float(own.mean()), **{kind: float(own.mean()) - gain for kind, gain in gains.items()}},
        "gains": gains,
        "errors": errors,
    }
    if chosen is None:
        note = "No map lowers the log loss of unseen rows by more than its standard error."
        return Calibration(note=note, **figures), p
    note = (
        f"The {chosen} map lowers the log loss of unseen rows by {gains[chosen]:.4f} "
        f"(standard error {errors[chosen]:.4f})."
    )
    return Calibration(kind=chosen, params=_FITS[chosen](y, p), note=note, **figures), crossed[chosen]


def _unfit(y: NDArray[np.int_], p: Floats) -> str:
    if len(y) < MIN_ROWS:
        return f"{len(y)} rows are too few to calibrate on: it takes {MIN_ROWS}."
    if not np.isfinite(p).all():
        return "The model gives probabilities that are not finite."
    counts = np.bincount(y, minlength=2 if p.ndim == 1 else p.shape[1])
    if counts.min() < MIN_PER_CLASS:
        return f"A class has {counts.min()} rows, too few to calibrate on: it takes {MIN_PER_CLASS}."
    return ""


def _choose(
    kinds: tuple[Kind, ...],
    better: Mapping[Kind, Floats],
    gains: Mapping[Kind, float],
    errors: Mapping[Kind, float],
    ordered: bool,
) -> Kind | None:
    """The simplest map (kinds come in that order) within one standard error of the best one that helps."""
    helping = [kind for kind in kinds if gains[kind] > errors[kind]]
    if not helping:
        return None
    best = max(helping, key=lambda kind: gains[kind])
    for kind in helping:
        if gains[best] - gains[kind] <= standard_error(better[best] - better[kind], ordered=ordered) or kind == best:
            return kind
    return best


def _folds(y: NDArray[np.int_], ordered: bool, seed: int) -> NDArray[np.int_]:
    """The fold of each row: stretches of time, or every class spread evenly."""
    n = len(y)
    if ordered:
        return np.arange(n) * _FOLDS // n
    order = np.lexsort((np.random.default_rng(seed).random(n), y))
    fold = np.empty(n, dtype=int)
    fold[order] = np.arange(n) % _FOLDS
    return fold


def _cross_fit(kind: Kind, y: NDArray[np.int_], p: Floats, folds: NDArray[np.int_]) -> Floats:
    out = p.copy()
    for fold in range(_FOLDS):
        here = folds == fold
        # A stretch of time may leave one class only to the others: nothing can be learnt from them.
        if len(np.unique(y[~here])) > 1:
            out[here] = _MAPS[kind](p[here], _ready(_FITS[kind](y[~here], p[~here])))
    return out


def _row_losses(y: NDArray[np.int_], p: Floats) -> Floats:
    chosen = np.where(y == 1, p, 1.0 - p) if p.ndim == 1 else p[np.arange(len(y)), y] / p.sum(axis=1)
    losses: Floats = -np.log(np.clip(chosen, _EDGE, 1.0))
    return losses


def _ready(params: Mapping[str, tuple[float, ...]]) -> dict[str, Floats]:
    return {name: np.array(values) for name, values in params.items()}


# --- the maps --------------------------------------------------------------------------------------


def _inside(p: Floats) -> Floats:
    """Away from 0 and 1, where the log-odds end; what is not finite becomes NaN."""
    # Nothing times infinity is no number.
    kept: Floats = np.minimum(np.maximum(p + 0.0 * p, _EDGE), 1.0 - _EDGE)
    return kept


def _by_platt(p: Floats, params: Mapping[str, Floats]) -> Floats:
    # logit() gives NaN outside 0 to 1, and infinity at the ends, which stay where they are.
    answer: Floats = expit(params["a"] * logit(p) + params["c"])
    return answer


def _by_beta(p: Floats, params: Mapping[str, Floats]) -> Floats:
    inside = _inside(p)
    answer: Floats = expit(params["a"] * np.log(inside) - params["b"] * np.log1p(-inside) + params["c"])
    return answer


def _by_isotonic(p: Floats, params: Mapping[str, Floats]) -> Floats:
    return np.interp(np.where(np.isfinite(p), p, np.nan), params["from"], params["to"])


def _by_temperature(p: Floats, params: Mapping[str, Floats]) -> Floats:
    z = np.log(_inside(p)) / params["temperature"][0]
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    answer: Floats = powers / powers.sum(axis=1, keepdims=True)
    return answer


def _fit_platt(y: NDArray[np.int_], p: Floats) -> dict[str, tuple[float, ...]]:
    inside = _inside(p)
    a, c = _logistic(y, np.column_stack([np.log(inside) - np.log1p(-inside)]))
    return {"a": (a,), "c": (c,)}


def _fit_beta(y: NDArray[np.int_], p: Floats) -> dict[str, tuple[float, ...]]:
    inside = _inside(p)
    a, b, c = _logistic(y, np.column_stack([np.log(inside), -np.log1p(-inside)]))
    return {"a": (a,), "b": (b,), "c": (c,)}


def _logistic(y: NDArray[np.int_], z: Floats) -> tuple[float, ...]:
    """Slopes, all above 0 so that the order of scores stays, and intercept of a logistic regression on ``z`` ``(n, m)``."""
    from scipy.optimize import minimize

    n, m = z.shape

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = z @ w[:m] + w[m]
        slope = expit(margin) - y
        return float(np.logaddexp(0.0, margin).mean() - (margin * y).mean()), np.append(z.T @ slope, slope.sum()) / n

    bounds = [(_LEAST_SLOPE, None)] * m + [(None, None)]
    found = minimize(loss, np.append(np.full(m, 1.0), 0.0), jac=True, method="L-BFGS-B", bounds=bounds)
    return tuple(float(value) for value in found.x)


def _fit_isotonic(y: NDArray[np.int_], p: Floats) -> dict[str, tuple[float, ...]]:
    from sklearn.isotonic import IsotonicRegression

    # The ends of an isotonic fit are 0 and 1, which no number of rows can promise: Laplace's rule for them.
    edge = 1.0 / (len(y) + 2.0)
    fitted = IsotonicRegression(y_min=edge, y_max=1.0 - edge, out_of_bounds="clip").fit(p, y)
    return {
        "from": tuple(float(value) for value in fitted.X_thresholds_),
        "to": tuple(float(value) for value in fitted.y_thresholds_),
    }


def _fit_temperature(y: NDArray[np.int_], p: Floats) -> dict[str, tuple[float, ...]]:
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        q = _by_temperature(p, {"temperature": np.exp([log_temperature])})
        return float(_row_losses(y, q).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    return {"temperature": (math.exp(float(found.x)),)}


_MAPS = {"platt": _by_platt, "beta": _by_beta, "isotonic": _by_isotonic, "temperature": _by_temperature}
_FITS = {"platt": _fit_platt, "beta": _fit_beta, "isotonic": _fit_isotonic, "temperature": _fit_temperature}
