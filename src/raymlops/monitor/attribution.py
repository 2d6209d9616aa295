"""Where a rise of the loss comes from: the inputs, the label's rate, or what is learnt; and whether a mix explains it.

Two-player form of Zhang et al., "Why did the model fail?" (arXiv:2210.10769): what the reference's own losses become
when its rows are weighted to look like the window's (density ratio by a classifier, cross-fitted: Sugiyama et al. 2012)
is the covariate part; what correcting the scores for the label's new rate takes off (Saerens et al. 2002, with the rate
measured) is the prior part; the remainder is the concept part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from raymlops.errors import DataError
from raymlops.monitor.estimate import density_ratio
from raymlops.monitor.quality import row_losses

_LARGEST_WEIGHT = 20.0
_LEAST_ROWS = 100
_EXPLAINED = 0.5
_CELLS, _FEW = 10, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LossParts:
    """The rise of the mean loss over the reference's, and its parts; they sum to it.

    ``effective`` is the number of reference rows that the weights leave (Kish), of which a small one says that the
    window lies where the reference has few rows and the covariate part is a guess.
    """

    rise: float
    covariate: float
    prior: float
    concept: float
    effective: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def loss_parts(
    reference_x: NDArray[np.floating[Any]],
    reference_losses: NDArray[np.floating[Any]],
    x: NDArray[np.floating[Any]],
    y: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    *,
    task: str,
    reference_rate: float | None = None,
    seed: int = 0,
) -> LossParts:
    """Split the rise of the loss of labelled window rows.

    Parameters
    ----------
    reference_x, reference_losses : ``(n, d)`` rows, NaN = missing, and ``(n,)`` their losses
    x, y, scores : ``(m, d)`` rows of the window, ``(m,)`` their encoded labels and the model's scores (see
        ``row_losses``)
    reference_rate : share of class 1 in the reference; only then, and for a binary task, is there a prior part

    Raises
    ------
    DataError : fewer than 100 rows on either side, or lengths that differ
    """
    if min(len(reference_x), len(x)) < _LEAST_ROWS or len(reference_x) != len(reference_losses) or len(x) != len(y):
        raise DataError(
            f"A rise of the loss is split over at least {_LEAST_ROWS} rows a side, not {len(reference_x)} and {len(x)}."
        )
    losses, then = row_losses(task, y, scores), np.asarray(reference_losses, dtype=np.float64)
    finite, held = np.isfinite(losses), np.isfinite(then)
    rise = float(losses[finite].mean() - then[held].mean())
    weights = density_ratio(reference_x, x, seed=seed)[held]
    covariate = float(np.average(then[held], weights=weights) - then[held].mean())
    prior = 0.0
    if task == "binary" and reference_rate is not None and 0.0 < reference_rate < 1.0:
        prior = _prior_part(np.asarray(y, dtype=np.float64)[finite], np.asarray(scores)[finite], reference_rate)
    # Inputs that move take the label's rate with them: what both would explain is the inputs'.
    prior = min(max(prior, 0.0), max(rise - max(covariate, 0.0), 0.0))
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return LossParts(rise=rise, covariate=covariate, prior=prior, concept=rise - covariate - prior, effective=effective)


def _prior_part(y: NDArray[np.float64], scores: NDArray[np.floating[Any]], reference_rate: float) -> float:
    """Brier loss that correcting the odds for the label's present rate takes off."""
    p = np.clip(np.asarray(scores, dtype=np.float64), 1e-6, 1 - 1e-6)
    rate = float(np.clip(y.mean(), 1e-3, 1 - 1e-3))
    odds = p / (1 - p) * (rate / (1 - rate)) * ((1 - reference_rate) / reference_rate)
    return float(((p - y) ** 2).mean() - ((odds / (1 + odds) - y) ** 2).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A column along which the champion is now wrong.

    ``share`` of the variance of its errors that the column's value explains, less what chance gives (eta squared, Pearson
    1905, with the expectation of independent values taken off).
    """

    column: str
    share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def suspects(
    x: NDArray[np.floating[Any]],
    y: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    columns: Sequence[str],
    *,
    alpha: float = 1e-3,
) -> tuple[Suspect, ...]:
    """Which columns' meaning for the label changed, the plainest first: where the columns alone need not have moved.

    Errors of a model that is right are, at any value of any column, zero on average but for a common shift. Columns are
    tested in deciles, or by value where there are few, at ``alpha`` over all of them; rows are taken as independent.

    Parameters
    ----------
    x, y, scores : ``(n, d)`` rows, ``(n,)`` encoded labels, and scores as ``row_losses`` takes them
    """
    truth, said = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    errors = truth - said if said.ndim == 1 else (said.argmax(axis=1) != truth).astype(np.float64)
    known = np.isfinite(errors)
    errors = errors[known] - errors[known].mean()
    whole = float(errors @ errors)
    if whole <= 0.0:
        return ()
    found = []
    for i, name in enumerate(columns):
        cells = _cells(np.asarray(x)[known, i])
        count = np.bincount(cells)
        sums, degrees = np.bincount(cells, weights=errors), int((count > 0).sum()) - 1
        if degrees < 1:
            continue
        explained = float((sums[count > 0] ** 2 / count[count > 0]).sum()) / whole
        if chdtrc(degrees, len(errors) * explained) <= alpha / len(columns):
            found.append(Suspect(column=name, share=explained - degrees / (len(errors) - 1)))
    return tuple(sorted(found, key=lambda item: (-item.share, item.column)))


def _cells(values: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Decile, or value where there are at most twenty, of each row ``(n,)``; what is not finite has a cell of its own."""
    finite = values[np.isfinite(values)]
    few = np.unique(finite)
    edges = few if len(few) <= _FEW else np.unique(np.quantile(finite, np.linspace(0, 1, _CELLS + 1)[1:-1]))
    return np.where(np.isfinite(values), np.searchsorted(edges, values, side="right"), len(edges) + 1)


def score_importance(
    predict: Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]],
    x: NDArray[np.float32],
    columns: Sequence[str],
    *,
    rows: int = 500,
    seed: int = 0,
) -> dict[str, float]:
    """How much each column moves the model's output: mean absolute change when its values are shuffled among ``rows``.

    Breiman's permutation importance (2001) of the score instead of the loss, so that it needs no labels. ``predict``
    takes rows ``(n, d)`` and gives ``(n,)`` or ``(n, k)``.
    """
    rng = np.random.default_rng(seed)
    some = x[np.sort(rng.choice(len(x), size=min(rows, len(x)), replace=False))]
    base, found = np.asarray(predict(some)), {}
    for i, name in enumerate(columns):
        mixed = some.copy()
        mixed[:, i] = rng.permutation(some[:, i])
        found[name] = float(np.nanmean(np.abs(np.asarray(predict(mixed)) - base)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Whether changed shares of one category column's values explain how the other columns moved."""

    column: str
    explains: bool
    share: float
    note: str


def mix_of(
    reference: NDArray[np.floating[Any]],
    window: NDArray[np.floating[Any]],
    columns: tuple[str, ...],
    moved: tuple[str, ...],
    categories: Mapping[int, int],
) -> Mix | None:
    """The moved category column that explains most of the other moved columns' distances, by weighting the reference.

    ``None`` when no category column moved, or nothing else did. It explains when weighting the reference's rows to the
    window's shares takes at least half of the others' squared distances away, noise counted on neither side.
    """
    index = {name: i for i, name in enumerate(columns)}
    others = [index[name] for name in moved if name in index]
    best: Mix | None = None
    for i in (i for i in others if i in categories):
        rest = [j for j in others if j != i]
        if not rest:
            continue
        weights = _share_weights(reference[:, i], window[:, i], categories[i])
        before = sum(_gap(reference[:, j], window[:, j], np.ones(len(reference)), j in categories) for j in rest)
        after = sum(_gap(reference[:, j], window[:, j], weights, j in categories) for j in rest)
        share = 1.0 - after / before if before > 0 else 0.0
        if best is None or share > best.share:
            note = f"the shares of {columns[i]} changed, and that explains {max(share, 0):.0%} of the other changes"
            best = Mix(column=columns[i], explains=share >= _EXPLAINED, share=share, note=note)
    return best


def _share_weights(then: NDArray[Any], now: NDArray[Any], codes: int) -> NDArray[np.float64]:
    cells = [np.where(np.isfinite(side), side, codes).astype(int).clip(0, codes) for side in (then, now)]
    shares = [np.bincount(cell, minlength=codes + 1) / len(cell) for cell in cells]
    ratio = np.divide(shares[1], shares[0], out=np.zeros(codes + 1), where=shares[0] > 0)
    weights: NDArray[np.float64] = np.minimum(ratio, _LARGEST_WEIGHT)[cells[0]]
    return weights if weights.sum() > 0 else np.ones(len(then))


def _gap(then: NDArray[Any], now: NDArray[Any], weights: NDArray[np.float64], categorical: bool) -> float:
    """Squared Hellinger distance of two columns over the reference's deciles or categories, less its noise floor."""
    finite = then[np.isfinite(then)]
    if not finite.size:
        return 0.0
    edges = np.unique(finite) if categorical else np.unique(np.quantile(finite, np.linspace(0, 1, _CELLS + 1)[1:-1]))
    cells = [
        np.where(np.isfinite(side), np.searchsorted(edges, side, side="right"), len(edges) + 1) for side in (then, now)
    ]
    size = len(edges) + 2
    p = np.bincount(cells[0], weights=weights, minlength=size) / weights.sum()
    q = np.bincount(cells[1], minlength=size) / len(now)
    floor = (np.count_nonzero(p + q) - 1) / 8 * (1 / len(now) + float((weights**2).sum() / weights.sum() ** 2))
    return max(1.0 - float(np.sqrt(p * q).sum()) - floor, 0.0)
