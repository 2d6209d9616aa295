"""What kind of trouble a report tells of, before anything is done about it. Pure: evidence in, a diagnosis out.

The order of the questions is the order of what would mislead the next one: a serving fault spoils every row, broken data
looks like a shift, a change of the traffic's mix looks like a shift of many columns, and only then is a rise of the loss
split into what the inputs explain and what they do not (see ``attribution.py``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from raymlops.monitor.attribution import LossParts, Mix, Suspect
    from raymlops.monitor.report import DriftReport
    from raymlops.serving.analysis import VariantStats

Kind = Literal["none", "covariate_shift", "prior_shift", "concept_shift", "traffic_mix", "broken_data", "serving_fault"]
VETO: frozenset[Kind] = frozenset({"broken_data", "serving_fault"})

MISSING_SHARE = 0.05
"""A missing rate that rises by less (over its noise floor) is drift of the data, whatever the column was like."""
_SELDOM, _HALF = 0.01, 0.5
FAULT_RATE = 0.05
"""Share of requests without a usable answer that is surely exceeded in a serving fault."""
_Z = 3.0
_BROKEN = ("missing", "infinite")
CONCEPT = "concept"
"""Stands where a test's name would, in the guilt of a column whose meaning for the label changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guilt:
    """One column's part.

    Attributes
    ----------
    distance : of its change over the noise floor, 0 to 1 (see ``Evidence``)
    importance : of the column to the model, 1 for the mean column
    weight : distance times importance; columns are ranked by it
    what : the test that spoke; ``concept`` for a column along which the champion is wrong, whose distance is then the share
        of its errors' variance that the column explains
    """

    column: str
    distance: float
    importance: float
    weight: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What it is, which columns show it, and in a sentence why.

    ``covariate``, ``prior`` and ``concept`` are parts of the rise of the mean loss, ``None`` where it is not measured.
    """

    kind: Kind
    note: str
    guilty: tuple[Guilt, ...] = ()
    covariate: float | None = None
    prior: float | None = None
    concept: float | None = None

    @property
    def veto(self) -> bool:
        """A model must not learn from these rows."""
        return self.kind in VETO

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "guilty": [asdict(item) for item in self.guilty], "veto": self.veto}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Diagnosis:
        """From :meth:`to_dict`."""
        kept = {name: item for name, item in body.items() if name != "veto"}
        return cls(**{**kept, "guilty": tuple(Guilt(**item) for item in body["guilty"])})


def triage(
    report: DriftReport,
    *,
    importance: Mapping[str, float] | None = None,
    missing_before: Mapping[str, float] | None = None,
    categories: Collection[str] = (),
    parts: LossParts | None = None,
    suspects: Sequence[Suspect] = (),
    mix: Mix | None = None,
    stats: VariantStats | None = None,
    newest: Mapping[str, tuple[int, int]] | None = None,
) -> Diagnosis:
    """Diagnose a report.

    Parameters
    ----------
    importance : of columns to the model, not negative, in any unit; a column that is not named counts as the mean one
    missing_before : missing rates of the reference's columns, 0 where not named. Data are broken when a column that was
        hardly ever missing is missing now, or when half of what used to be there is gone; a rate that fell, or crept up
        where values were often missing, is drift
    categories : columns in which a value that the model does not know counts as missing: new values are drift, and a
        model must learn them, so these columns are never a veto
    parts : the rise of the loss, split; without labels ``None``
    suspects : columns along which the champion is wrong; of a changed concept they are the guilty ones, before those that
        merely moved
    mix : whether one category column's shares explain the other columns' changes
    stats : what the version answered lately
    newest : missing values and rows among the newest rows, by column: labels may tell of harm before the window is full
        whose rows would tell that the data are broken
    """
    guilty = rank(report, importance or {})
    fault = _fault(stats)
    if fault:
        return Diagnosis(kind="serving_fault", note=fault, guilty=guilty)
    before = missing_before or {}
    gone = _gone(report, before, categories) or _gone_lately(newest or {}, before, categories)
    if gone:
        return Diagnosis(kind="broken_data", note=f"values went missing: {', '.join(gone[:5])}", guilty=guilty)
    split = replace(
        Diagnosis(kind="none", note="nothing moved beyond its noise", guilty=guilty),
        covariate=None if parts is None else parts.covariate,
        prior=None if parts is None else parts.prior,
        concept=None if parts is None else parts.concept,
    )
    if report.harm and parts is not None and parts.rise > 0:
        return _of_concept(_of_loss(split, parts, mix), suspects)
    if not report.columns:
        return replace(split, kind="concept_shift", note="the loss rose and no column moved") if report.harm else split
    if mix is not None and mix.explains:
        return replace(split, kind="traffic_mix", note=mix.note)
    return replace(split, kind="covariate_shift", note=f"moved: {', '.join(report.columns[:5])}")


def rank(report: DriftReport, importance: Mapping[str, float]) -> tuple[Guilt, ...]:
    """The columns that surely changed, by distance over the noise floor times importance, the guiltiest first."""
    known = [value for value in importance.values() if np.isfinite(value) and value >= 0]
    mean = float(np.mean(known)) if known else 1.0
    strongest: dict[str, Guilt] = {}
    for item in report.evidence:
        if not item.drifted or item.distance <= 0:
            continue
        weight = importance.get(item.column, mean) / mean if mean > 0 else 1.0
        guilt = Guilt(
            column=item.column,
            distance=item.distance,
            importance=weight,
            weight=item.distance * weight,
            what=item.name,
        )
        # A column that went missing is guilty of that, however its remaining values look.
        held = strongest.get(item.column)
        if held is None or (guilt.what in _BROKEN, guilt.weight) > (held.what in _BROKEN, held.weight):
            strongest[item.column] = guilt
    return tuple(sorted(strongest.values(), key=lambda guilt: (-guilt.weight, guilt.column)))


def _gone(report: DriftReport, before: Mapping[str, float], categories: Collection[str]) -> list[str]:
    found = []
    for item in report.evidence:
        if item.name not in _BROKEN or item.column in categories or not item.drifted:
            continue
        if item.statistic <= 0 or item.distance < MISSING_SHARE:
            continue
        then = before.get(item.column, 0.0)
        if then < _SELDOM or item.distance >= _HALF * (1.0 - then):
            found.append(f"{item.column} ({item.statistic:+.0%} of the rows)")
    return found


def _gone_lately(
    newest: Mapping[str, tuple[int, int]], before: Mapping[str, float], categories: Collection[str]
) -> list[str]:
    """As :func:`_gone`, of counts and by Wilson's lower bound."""
    found = []
    for column, (missing, rows) in newest.items():
        then = before.get(column, 0.0)
        rise = _at_least(missing, rows) - then
        if column not in categories and rise >= (MISSING_SHARE if then < _SELDOM else _HALF * (1.0 - then)):
            found.append(f"{column} ({missing} of the newest {rows} rows)")
    return found


def _at_least(count: int, n: int) -> float:
    """Wilson's lower bound of a rate at :data:`_Z` standard errors; 0 of none."""
    if n == 0:
        return 0.0
    rate, centre = count / n, count / n + _Z**2 / (2 * n)
    return (centre - _Z * float(np.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n * n)))) / (1 + _Z**2 / n)


def _fault(stats: VariantStats | None) -> str:
    """Why the answers themselves are at fault: their error rate is surely above :data:`FAULT_RATE`."""
    if stats is None or _at_least(stats.errors, stats.requests) <= FAULT_RATE:
        return ""
    return f"{stats.errors} of {stats.requests} requests had no usable answer ({stats.nonfinite} not finite)"


def _of_concept(found: Diagnosis, suspects: Sequence[Suspect]) -> Diagnosis:
    if found.kind != "concept_shift" or not suspects:
        return found
    along = tuple(
        Guilt(column=item.column, distance=item.share, importance=1.0, weight=item.share, what=CONCEPT)
        for item in suspects
    )
    named = {item.column for item in along}
    note = f"{found.note}; the champion is wrong along {', '.join(item.column for item in along[:5])}"
    return replace(found, note=note, guilty=(*along, *(item for item in found.guilty if item.column not in named)))


def _of_loss(split: Diagnosis, parts: LossParts, mix: Mix | None) -> Diagnosis:
    """The largest part of the rise names it."""
    note = (
        f"of a rise of {parts.rise:.4f} the inputs explain {parts.covariate:.4f}, the changed rate of the label "
        f"{parts.prior:.4f}, and {parts.concept:.4f} stays"
    )
    largest = max((parts.concept, 2), (parts.prior, 1), (parts.covariate, 0))[1]
    if largest == 2:
        return replace(split, kind="concept_shift", note=note)
    if largest == 1:
        return replace(split, kind="prior_shift", note=note)
    if mix is not None and mix.explains:
        return replace(split, kind="traffic_mix", note=f"{mix.note}; {note}")
    return replace(split, kind="covariate_shift", note=note)
