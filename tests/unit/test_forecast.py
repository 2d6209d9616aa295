"""When a refit is due: from how versions aged, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from raymlops.monitor.forecast import Life, forecast, isotonic, median_interval, survival
from raymlops.monitor.ledger import LossLedger

DAY = 86_400.0


def aged(version: int, rate: float, noise: float, failed_at: int, seed: int = 0) -> Life:
    ages = np.arange(1, 13) * DAY
    excess = rate * np.arange(12) + np.random.default_rng(seed + version).normal(0, noise, 12)
    return Life(
        version=version,
        age_s=failed_at * DAY,
        failed=failed_at < 12,
        ages_s=tuple(ages.tolist()),
        excess=tuple(excess.tolist()),
    )


def test_versions_that_age_alike_are_forecast_with_an_interval() -> None:
    found = forecast([aged(i, 0.03, 0.01, 5) for i in range(6)], tolerance=0.10)
    assert found.method == "ageing"
    assert found.due_s is not None
    assert found.low_s is not None
    assert 3 * DAY <= found.due_s <= 7 * DAY
    assert found.low_s <= found.due_s
    assert "6 versions, 0 of them replaced while still within their limits" in found.note


def test_what_does_not_age_is_unforecastable() -> None:
    found = forecast([aged(i, 0.0, 0.05, 12) for i in range(6)], tolerance=0.10)
    assert (found.method, found.due_s, found.censored) == ("unforecastable", None, 6)
    assert forecast([]).method == "unforecastable"


def test_survival_alone_forecasts_when_ages_are_not_known() -> None:
    lives = [Life(version=i, age_s=age * DAY, failed=age < 9) for i, age in enumerate((2, 3, 4, 5, 9, 9))]
    found = forecast(lives)
    assert (found.method, found.due_s, found.censored) == ("survival", 4 * DAY, 2)


def test_kaplan_meier_and_greenwood_on_the_figures_of_the_textbook() -> None:
    # Freireich et al. (1963), 6-MP arm, as in every text on survival: 21 patients, 9 relapses.
    ages = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    failed = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    times, left, low, high = survival(ages, [bool(item) for item in failed])
    assert times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert left.round(3).tolist() == [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448]
    assert (low <= left).all()
    assert (left <= high).all()
    low_end, median, high_end = median_interval(ages, [bool(item) for item in failed])
    assert (low_end, median, high_end) == (16.0, 23.0, None)


def test_isotonic_is_the_nearest_rising_sequence() -> None:
    assert isotonic(np.array([1.0, 3.0, 2.0, 4.0, 0.0])).tolist() == [1.0, 2.25, 2.25, 2.25, 2.25]
    assert isotonic(np.array([3.0, 2.0, 1.0])).tolist() == [2.0, 2.0, 2.0]


def test_a_ledger_tells_how_a_version_aged() -> None:
    ledger = LossLedger(DAY)
    for day, loss in enumerate((0.1, 0.1, 0.2, 0.1)):
        ledger.add(3, np.full(200, loss), np.full(200, (day + 0.5) * DAY))
    ledger.add(3, [9.0], [100 * DAY])  # too few rows to tell
    life = ledger.life(3, promised=0.1, limit=0.12)
    assert life is not None
    assert (life.failed, life.age_s) == (True, 3 * DAY)
    assert life.excess == pytest.approx((0.0, 0.0, 1.0, 0.0), abs=1e-9)
    assert ledger.life(4, 0.1, 0.12) is None
    again = LossLedger(DAY)
    again.load(ledger.to_dict())
    assert again.blocks(3) == ledger.blocks(3)
    small = LossLedger(1.0, versions=2, blocks=3)
    for version in range(5):
        small.add(version, np.zeros(10), np.arange(10.0))
    assert [len(small.blocks(version)) for version in range(5)] == [0, 0, 0, 3, 3]
