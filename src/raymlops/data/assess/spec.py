"""Assess: which checks run, where their limits lie, and which of them stop a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from raymlops.clock import seconds
from raymlops.errors import ConfigError, nearest

Override = Literal["fail", "warn", "off"]

#: Every check: its default limit (``None``: it has none) and what the limit counts.
CHECKS: dict[str, tuple[float | None, str]] = {
    "rows": (200, "rows there must be"),
    "columns": (0.1, "columns for each row, at most"),
    "label": (0, "rows without a usable label"),
    "classes": (20, "rows of the rarest class"),
    "imbalance": (0.01, "share of the rarest class"),
    "time": (0, "rows without a readable time"),
    "missing": (0.5, "share of missing values in a column"),
    "constant": (0, "columns with one value only"),
    "near_constant": (0.99, "share of the commonest value"),
    "types": (0, "columns of a type no model takes"),
    "mixed_types": (0, "values of another kind in a column"),
    "numbers_as_text": (0.95, "share of a text column's values that are numbers"),
    "encoding": (0, "values that were decoded wrongly"),
    "spelling": (0, "values that differ only by case or blanks"),
    "categories": (1000, "distinct values of a text column"),
    "infinite": (0, "infinite values in a column"),
    "huge": (0, "values a float32 does not hold"),
    "outliers": (0, "values far outside with a gap before them"),
    "sentinel": (0.01, "share of a number that stands for missing"),
    "negative": (0, "negative values where there should be none"),
    "identifier": (0, "columns that name the row"),
    "duplicate_ids": (0, "rows that repeat an identifier"),
    "duplicate_rows": (0.05, "share of rows that repeat another"),
    "duplicate_columns": (0, "columns that repeat another"),
    "overlap": (0.05, "share of test rows that are in train too"),
    "skewed_key": (0.5, "share of the commonest key"),
    "future": (0, "dates later than now"),
    "dates": (0, "dates before 1900, after 2200, or the zero of a clock"),
    "timezone": (0, "signs of mixed time zones or of clock changes"),
    "gaps": (0.05, "longest gap in time, as a share of the whole span"),
    "freshness": (None, "seconds since the newest row"),
    "stability": (0.3, "distance of a column's newest rows from its older ones"),
    "label_stability": (0.2, "distance of the label's newest rows from its older ones"),
    "filling": (0.3, "change of a column's share of missing values over time"),
    "slices": (30, "expected test rows of a slice"),
    "leak": (0.999, "score of one column alone"),
    "suspicious": (0.985, "score of one column alone that asks for a look"),
    "disguise": (0.9999, "R² of a sum of columns"),
    "time_travel": (0.005, "share of a column's times later than the row's"),
    "collapse": (0.15, "loss of a column's own score from older to newest rows"),
    "predictive": (0.02, "skill above chance that is worth a training"),
    "enough_rows": (0.03, "sure gain of skill from twice the rows"),
    "unrelated": (0.3, "share of columns unrelated to the label"),
}

#: The checks that fit quick models, and take most of the time.
QUICK_MODELS = ("predictive", "enough_rows", "unrelated", "collapse")

_OVERRIDES = ("fail", "warn", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assess:
    """How the data is judged before training. ``Assess()`` is a useful judge.

    Attributes
    ----------
    verdicts : by check, or by ``CHECK:COLUMN``: ``"warn"`` lets a failed check pass, ``"fail"`` makes a warning stop the
        pipeline, ``"off"`` leaves it out
    limits : by check, another limit
    key : the column that names who or what a row is about; the model does not see it
    slices : columns whose values must each be judged: those with too few rows are warned of
    max_age : the newest row may be this old, as seconds or ``"7d"``; ``None`` does not ask
    budget_rows : rows the quick models see at most; counts are of all rows
    seed : of the samples and the quick models

    Raises
    ------
    ConfigError : an unknown check (with the nearest known one), a verdict or limit that is none

    >>> Assess(verdicts={"leak": "warn"}, limits={"rows": 100}).limit("rows")
    100.0
    """

    verdicts: Mapping[str, Override] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    key: str | None = None
    slices: tuple[str, ...] = ()
    max_age: float | str | None = None
    budget_rows: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, verdict in self.verdicts.items():
            _known(str(name).partition(":")[0], "verdicts")
            if verdict not in _OVERRIDES:
                hint = nearest(str(verdict), _OVERRIDES)
                raise ConfigError(f"Assess(verdicts={{{name!r}: {verdict!r}}}) is no verdict.{hint}")
        for name, limit in self.limits.items():
            _known(str(name), "limits")
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not math.isfinite(limit):
                raise ConfigError(f"Assess(limits={{{name!r}: {limit!r}}}) is no limit: give a finite number.")
        slices = (self.slices,) if isinstance(self.slices, str) else tuple(self.slices)
        object.__setattr__(self, "slices", slices)
        if self.max_age is not None:
            object.__setattr__(self, "max_age", seconds(self.max_age, "max_age"))
        if isinstance(self.budget_rows, bool) or not isinstance(self.budget_rows, int) or self.budget_rows < 1000:
            raise ConfigError(f"Assess(budget_rows={self.budget_rows!r}) is too few to judge by: give 1000 or more.")

    def limit(self, check: str) -> float:
        """The limit of a check that has one."""
        default = CHECKS[check][0]
        given = self.limits.get(check, self.max_age if check == "freshness" else default)
        return math.inf if given is None else float(given)

    def on(self, check: str) -> bool:
        """Whether a check is made."""
        return self.verdicts.get(check) != "off"

    def override(self, name: str) -> Override | None:
        """What was said of ``CHECK:COLUMN``, else of ``CHECK``."""
        return self.verdicts.get(name, self.verdicts.get(name.partition(":")[0]))

    def without(self, *checks: str) -> Assess:
        """The same with these checks left out."""
        return replace(self, verdicts={**self.verdicts, **dict.fromkeys(checks, "off")})


def _known(check: str, where: str) -> None:
    if check not in CHECKS:
        raise ConfigError(f"Assess({where}=...) names a check {check!r} that is not known.{nearest(check, CHECKS)}")
