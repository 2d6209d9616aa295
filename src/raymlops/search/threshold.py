"""From which probability on the answer is "yes": fixed, by what errors cost, or for the best F1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymlops.errors import ConfigError
from raymlops.search.resample import standard_error

Floats = NDArray[np.float64]
Rule = Literal["half", "fixed", "costs", "f1"]
_MOST_CUTS = 1000
_SURE = 3.0  # standard errors; the cheapest of many thresholds is partly so by luck


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a wrong answer costs, in any unit; a right one costs nothing.

    >>> Costs(false_negative=4).best
    0.2

    Raises
    ------
    ConfigError : a cost that is not a positive number
    """

    false_positive: float = 1.0
    false_negative: float = 1.0

    def __post_init__(self) -> None:
        for name in ("false_positive", "false_negative"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigError(f"{name}={value!r} is no cost: give a number above 0.")

    @property
    def best(self) -> float:
        """The threshold that costs least when probabilities are calibrated (Elkan 2001, equation 2)."""
        return self.false_positive / (self.false_positive + self.false_negative)


ThresholdSpec = float | Literal["f1"] | Costs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A row is answered with the positive class when its probability is at least ``value``.

    Attributes
    ----------
    rule : ``half`` when nothing was asked for, else how it was chosen
    measure : ``cost`` a row or ``f1``; ``""`` when nothing was measured
    here, at_half : the measure on unseen rows at ``value`` and at 0.5
    error : standard error of the difference of the two; ``None`` for F1, which is no mean over rows
    """

    value: float = 0.5
    rule: Rule = "half"
    measure: str = ""
    here: float | None = None
    at_half: float | None = None
    error: float | None = None
    rows: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Threshold:
        return cls(**data)


def check_spec(spec: Any) -> ThresholdSpec:
    """``spec`` itself when it can be followed. Raises :class:`ConfigError`."""
    number = isinstance(spec, (int, float)) and not isinstance(spec, bool)
    if spec is None or isinstance(spec, Costs) or spec == "f1" or (number and 0 < spec < 1):
        return spec
    raise ConfigError(
        f"threshold={spec!r} is none: give a number between 0 and 1, Costs(false_positive=1, false_negative=5), 'f1', or "
        "None for 0.5."
    )


def require_binary(spec: ThresholdSpec, task: str) -> None:
    """Refuse a threshold for a task that has none. Raises :class:`ConfigError`."""
    if spec is not None and task != "binary":
        raise ConfigError(f"threshold={spec!r} needs a label of two classes, and this is a {task} task: leave it out.")


def choose_threshold(spec: ThresholdSpec, y: NDArray[Any], p: NDArray[Any], *, ordered: bool) -> Threshold:
    """Follow ``spec`` on rows that neither model nor calibration has learnt from.

    By costs it is Elkan's threshold, unless these rows say by more than three standard errors that another is cheaper.

    Parameters
    ----------
    y, p : ``(n,)`` class indices 0 and 1, and probabilities of class 1
    """
    truth, p = np.asarray(y) == 1, np.asarray(p, dtype=np.float64)
    n = len(truth)
    if spec is None:
        return Threshold(rows=n)
    if isinstance(spec, Costs):
        return _by_costs(spec, truth, p, ordered)
    if spec != "f1":
        return Threshold(value=float(spec), rule="fixed", rows=n, note="Fixed by the pipeline.")
    if not truth.any():
        return Threshold(rule="f1", rows=n, note="No positive row to choose it on.")
    cuts = _cuts(p)
    scores = _f1(truth, p, cuts)
    best = int(np.argmax(scores))
    here, half = float(scores[best]), float(_f1(truth, p, np.array([0.5]))[0])
    note = f"F1 of {n} unseen rows is {here:.4f}, and {half:.4f} at 0.5."
    return Threshold(value=float(cuts[best]), rule="f1", measure="f1", here=here, at_half=half, rows=n, note=note)


def wrong_rows(costs: Costs, truth: NDArray[np.bool_], p: Floats, cut: float | None = None) -> Floats:
    """What each row's answer costs, ``(n,)``; without a ``cut`` at the one that is cheapest on these rows."""
    cut = _cheapest(costs, truth, p) if cut is None else cut
    positive = p >= cut
    return np.where(positive & ~truth, costs.false_positive, np.where(~positive & truth, costs.false_negative, 0.0))


def _cheapest(costs: Costs, truth: NDArray[np.bool_], p: Floats) -> float:
    cuts = _cuts(p)
    missed, alarmed = _counts_below(p[truth], cuts), (~truth).sum() - _counts_below(p[~truth], cuts)
    return float(cuts[int(np.argmin(costs.false_negative * missed + costs.false_positive * alarmed))])


def _by_costs(costs: Costs, truth: NDArray[np.bool_], p: Floats, ordered: bool) -> Threshold:
    def rows(cut: float) -> Floats:
        return wrong_rows(costs, truth, p, cut)

    if not len(p):
        return Threshold(value=costs.best, rule="costs", note="No row to try it on.")
    cheapest = _cheapest(costs, truth, p)
    saved = rows(costs.best) - rows(cheapest)
    value, note = costs.best, f"Elkan's threshold for these costs, {costs.best:.4g}."
    if len(p) > 1 and saved.mean() > _SURE * standard_error(saved, ordered=ordered):
        value = cheapest
        note = f"Cheaper by {saved.mean():.4g} a row than Elkan's threshold, {costs.best:.4g}, by more than three standard errors."
    here, half = rows(value), rows(0.5)
    return Threshold(
        value=value,
        rule="costs",
        measure="cost",
        here=float(here.mean()),
        at_half=float(half.mean()),
        error=standard_error(half - here, ordered=ordered) if len(p) > 1 else None,
        rows=len(p),
        note=note,
    )


def _cuts(p: Floats) -> Floats:
    """Thresholds worth trying, inside (0, 1): half way between neighbouring scores, at most 1000 of them."""
    seen = np.unique(p)
    if len(seen) > _MOST_CUTS:
        seen = np.unique(np.quantile(seen, np.linspace(0, 1, _MOST_CUTS)))
    between = (seen[1:] + seen[:-1]) / 2 if len(seen) > 1 else np.array([0.5])
    return np.clip(between, 1e-9, 1 - 1e-9)


def _counts_below(p: Floats, cuts: Floats) -> NDArray[np.intp]:
    return np.searchsorted(np.sort(p), cuts, side="left")


def _f1(truth: NDArray[np.bool_], p: Floats, cuts: Floats) -> Floats:
    hits = truth.sum() - _counts_below(p[truth], cuts)
    answered = len(p) - _counts_below(p, cuts)
    scores: Floats = 2.0 * hits / (answered + truth.sum())
    return scores
