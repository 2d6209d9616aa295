"""Parts of the rows where a model is judged by itself: a candidate that is better on the whole may be worse for some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.compare.paired import row_loss
from raymlops.errors import ConfigError
from raymlops.search.objective import Objective
from raymlops.search.resample import standard_error

if TYPE_CHECKING:
    import pandas as pd

    from raymlops.data.schema import Column, DataContract

MIN_ROWS = 50
ALPHA = 0.05
_COLUMNS, _CATEGORIES, _BINS = 6, 8, 4

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One part of the test rows.

    Attributes
    ----------
    asked : the pipeline named it; otherwise it was found in the data
    candidate, champion : the metric on these rows; ``None`` where it is not defined, or without a champion
    rise, error : of the mean row loss, candidate over champion, and its standard error; ``None`` without a champion
    p_value : that a rise as large comes by chance, adjusted for all slices (Holm 1979)
    worse : ``p_value`` below 5 %
    """

    name: str
    asked: bool
    rows: int
    candidate: float | None
    champion: float | None = None
    rise: float | None = None
    error: float | None = None
    p_value: float | None = None
    worse: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Slice:
        return cls(**data)


def check_slices(slices: Any) -> Mapping[str, str]:
    """``slices`` itself when it maps names to expressions. Raises :class:`ConfigError`."""
    if not isinstance(slices, Mapping) or not all(
        isinstance(name, str) and name and isinstance(rule, str) and rule for name, rule in slices.items()
    ):
        raise ConfigError(
            f"slices={slices!r} is no mapping of names to expressions: give such as {{'young': 'age < 25'}}."
        )
    return slices


def asked_masks(slices: Mapping[str, str], frame: pd.DataFrame) -> dict[str, Mask]:
    """Rows ``(n,)`` of each slice that the pipeline names by a pandas expression over the columns of ``frame``.

    Raises
    ------
    ConfigError : an expression that cannot be evaluated, or that says something else than yes or no
    """
    found = {}
    for name, rule in slices.items():
        try:
            mask = np.asarray(frame.eval(rule, engine="python"))
        except Exception as error:
            known = ", ".join(str(column) for column in frame.columns[:20])
            raise ConfigError(
                f"slices[{name!r}]={rule!r} cannot be evaluated: {type(error).__name__}: {error}. Slices are told by "
                f"the model's inputs and the label: {known}."
            ) from error
        if mask.shape != (len(frame),) or mask.dtype != bool:
            raise ConfigError(f"slices[{name!r}]={rule!r} does not say yes or no for each row.")
        found[name] = mask
    return found


def found_masks(contract: DataContract, x: NDArray[np.float32], by_weight: Sequence[str]) -> dict[str, Mask]:
    """Slices of the encoded rows ``(n, d)`` by their six most important columns: categories, quarters, missing values.

    Parameters
    ----------
    by_weight : names of columns, the most important first
    """
    index = {column.name: (i, column) for i, column in enumerate(contract.columns)}
    found: dict[str, Mask] = {}
    for name in by_weight[:_COLUMNS]:
        i, column = index[name]
        values = x[:, i]
        missing = np.isnan(values)
        parts = {f"{name} is missing": missing, **_parts(column, values, missing)}
        found |= {words: mask for words, mask in parts.items() if MIN_ROWS <= mask.sum() < len(x)}
    return found


def _parts(column: Column, values: NDArray[np.float32], missing: Mask) -> dict[str, Mask]:
    name = column.name
    if column.kind == "category":
        codes, counts = np.unique(values[~missing], return_counts=True)
        often = codes[np.argsort(-counts)][:_CATEGORIES].astype(int)
        return {f"{name} = {column.categories[code]}": values == code for code in often}
    if column.kind == "boolean":
        return {f"{name} = {word}": values == code for word, code in (("true", 1), ("false", 0))}
    seen = values[~missing]
    if not len(seen):
        return {}
    edges = np.unique(np.quantile(seen, np.linspace(0, 1, _BINS + 1)[1:-1]))
    ends = [-np.inf, *edges.tolist(), np.inf]
    return {_between(name, low, high): (values >= low) & (values < high) for low, high in pairwise(ends)}


def _between(name: str, low: float, high: float) -> str:
    if math.isinf(low):
        return f"{name} < {high:.4g}"
    return f"{name} ≥ {low:.4g}" if math.isinf(high) else f"{low:.4g} ≤ {name} < {high:.4g}"


def judge_slices(
    objective: Objective,
    y: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any] | None,
    masks: Mapping[str, Mask],
    *,
    asked: Mapping[str, Mask] | None = None,
    ordered: bool = False,
) -> tuple[Slice, ...]:
    """The metric on each slice, and whether the candidate is worse there than the champion; the worst first.

    The test is one-sided, of the mean difference of row losses (:func:`raymlops.compare.paired.row_loss`); slices asked for that
    have fewer than 50 rows are shown and not tested.
    """
    y = np.asarray(y, dtype=np.float64)
    rises = None if champion is None else row_loss(objective, y, candidate) - row_loss(objective, y, champion)
    found = []
    for is_asked, group in ((True, asked or {}), (False, masks)):
        for name, mask in group.items():
            part = Slice(
                name=name, asked=is_asked, rows=int(mask.sum()), candidate=_score(objective, y, candidate, mask)
            )
            if champion is not None and rises is not None:
                part = _risen(replace(part, champion=_score(objective, y, champion, mask)), rises[mask], ordered)
            found.append(part)
    return tuple(sorted(_holm(found), key=_worst_first))


def _worst_first(part: Slice) -> tuple[float, float, str]:
    return (2.0 if part.p_value is None else part.p_value, -(part.rise or 0.0), part.name)


def _score(objective: Objective, y: NDArray[Any], p: NDArray[Any], mask: Mask) -> float | None:
    score = objective.score_part(y[mask], p[mask])
    return score if math.isfinite(score) else None


def _risen(part: Slice, rises: NDArray[np.float64], ordered: bool) -> Slice:
    """The slice with the test of its rows' losses, where there are enough of them."""
    if len(rises) < MIN_ROWS or not np.isfinite(rises).all():
        return part
    rise, error = float(rises.mean()), standard_error(rises, ordered=ordered)
    p_value = 0.5 * math.erfc(rise / error / math.sqrt(2)) if error > 0 else float(rise <= 0)
    return replace(part, rise=rise, error=error, p_value=p_value)


def _holm(slices: Sequence[Slice]) -> list[Slice]:
    """Adjusted p-values: the chance of one false alarm or more among all slices is at most :data:`ALPHA`."""
    tested = sorted((item for item in slices if item.p_value is not None), key=lambda item: item.p_value or 0.0)
    largest, adjusted = 0.0, []
    for rank, item in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * (item.p_value or 0.0)))
        adjusted.append(replace(item, p_value=largest, worse=largest < ALPHA))
    return adjusted + [item for item in slices if item.p_value is None]
