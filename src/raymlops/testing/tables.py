"""Generated tables, sound ones and ones with one known fault each: what an assessment should and should not name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from raymlops.data.assess.spec import Assess
from raymlops.data.schema import Task

Generator = np.random.Generator
NOW = pd.Timestamp("2026-03-01").timestamp()
_MONTHS = pd.Timestamp("2025-09-01")
_CITIES = ("Oslo", "Bergen", "Tromsø", "Bodø", "Ålesund", "Hamar")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Case:
    """A table to be assessed.

    Attributes
    ----------
    check : the check that should name it, with ``:COLUMN`` when it should name that column; ``None`` for a sound table
    """

    frame: pd.DataFrame
    label: str = "y"
    time: str | None = None
    task: Task | None = None
    check: str | None = None
    spec: Assess = field(default_factory=Assess)


def mixed(rng: Generator, rows: int = 4000) -> pd.DataFrame:
    """Orders: numbers, whole numbers, a flag and texts, each of which has to do with the label, returned or not."""
    price = rng.gamma(3.0, 20.0, rows).round(2)
    days = rng.integers(1, 15, rows)
    city = rng.choice(_CITIES, rows, p=(0.3, 0.2, 0.15, 0.15, 0.1, 0.1))
    gift = rng.random(rows) < 0.3
    rating = rng.normal(3.5, 0.8, rows).clip(1, 5).round(1)
    rating = np.where(rng.random(rows) < 0.08, np.nan, rating)
    logit = 0.03 * (price - 60) + 0.2 * (days - 7) + 0.9 * (city == "Oslo") - 0.8 * gift
    logit -= 0.5 * (np.nan_to_num(rating, nan=3.5) - 3.5)
    frame = {"price": price, "days": days, "city": city, "gift": gift, "rating": rating}
    return pd.DataFrame({**frame, "y": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)})


def ordered(rng: Generator, rows: int = 6000) -> pd.DataFrame:
    """The same with the time of each order: half a year, at random times of the day."""
    frame = mixed(rng, rows)
    seconds = np.sort(rng.uniform(0, 180 * 86_400, rows)).round()
    return frame.assign(at=_MONTHS + pd.to_timedelta(seconds, unit="s"))


def hourly(rng: Generator, rows: int = 24 * 240) -> pd.DataFrame:
    """A measurement every hour with a daily rhythm, and a load to be predicted."""
    at = pd.Timestamp("2025-06-15") + pd.to_timedelta(np.arange(rows), unit="h")
    warm = 10 + 5 * np.sin(2 * np.pi * np.arange(rows) / 24) + rng.normal(0, 2, rows)
    wind = rng.gamma(2.0, 3.0, rows)
    load = 50 - 1.5 * warm + 0.8 * wind + 8 * np.cos(2 * np.pi * at.hour / 24) + rng.normal(0, 3, rows)
    return pd.DataFrame({"at": at, "warm": warm, "wind": wind, "hour": at.hour, "y": load})


def numeric(rng: Generator, rows: int = 5000, columns: int = 12) -> pd.DataFrame:
    """Correlated numbers with tails, and a label that is a noisy function of all of them."""
    common = rng.normal(size=(rows, 1))
    x = 0.5 * common + rng.standard_t(6, size=(rows, columns))
    logit = 1.5 * (x @ rng.uniform(0.4, 1.0, columns)) / np.sqrt(columns) + 0.5 * np.sin(2 * x[:, 0])
    made = pd.DataFrame(x.astype(np.float32), columns=[f"x{i}" for i in range(columns)])
    return made.assign(y=(rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int))


def imbalanced(rng: Generator, rows: int = 10_000) -> pd.DataFrame:
    """As :func:`numeric` with one row in twenty of the rarer class."""
    x = rng.normal(size=(rows, 8))
    logit = x @ np.linspace(0.5, 1.2, 8) - 5.2
    made = pd.DataFrame(x, columns=[f"x{i}" for i in range(8)])
    return made.assign(y=(rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int))


def regression(rng: Generator, rows: int = 5000) -> pd.DataFrame:
    """Houses: skewed numbers, a text, and a skewed price."""
    size, age = rng.lognormal(4.4, 0.4, rows).round(1), rng.integers(0, 120, rows)
    place = rng.choice(("centre", "suburb", "country"), rows, p=(0.3, 0.5, 0.2))
    income = rng.lognormal(10.5, 0.5, rows).round()
    worth = 0.8 * np.log(size) + 0.4 * np.log(income) - 0.004 * age + 0.4 * (place == "centre")
    price = np.exp(worth + rng.normal(0, 0.2, rows) + 5).round(-2)
    return pd.DataFrame({"size": size, "age": age, "place": place, "income": income, "y": price})


def multiclass(rng: Generator, rows: int = 5000) -> pd.DataFrame:
    """Four kinds around four centres that overlap."""
    kind = rng.choice(4, rows, p=(0.4, 0.3, 0.2, 0.1))
    centres = rng.normal(0, 1.3, size=(4, 6))
    x = centres[kind] + rng.normal(size=(rows, 6))
    names = np.array(["ash", "birch", "cedar", "date palm"])
    return pd.DataFrame(x, columns=[f"leaf_{i}" for i in range(6)]).assign(y=names[kind])


def _time(make: Callable[[Generator], pd.DataFrame]) -> Callable[[Generator], Case]:
    return lambda rng: Case(frame=make(rng), time="at")


CLEAN: Mapping[str, Callable[[Generator], Case]] = {
    "mixed": lambda rng: Case(frame=mixed(rng)),
    "mixed_small": lambda rng: Case(frame=mixed(rng, 1500)),
    "mixed_large": lambda rng: Case(frame=mixed(rng, 60_000)),
    "numeric": lambda rng: Case(frame=numeric(rng)),
    "numeric_wide": lambda rng: Case(frame=numeric(rng, 8000, 40)),
    "imbalanced": lambda rng: Case(frame=imbalanced(rng)),
    "regression": lambda rng: Case(frame=regression(rng)),
    "multiclass": lambda rng: Case(frame=multiclass(rng)),
    "ordered": _time(ordered),
    "hourly": _time(hourly),
}
"""Sound tables by name."""
