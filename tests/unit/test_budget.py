"""The budget: by window or by month, and shares that never exceed it."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from raymlops.monitor.budget import SHARES, Budget


def test_shares_use_the_budget_and_no_more() -> None:
    assert sum(astuple(SHARES)) == pytest.approx(1.0)
    assert min(astuple(SHARES)) > 0


def test_by_the_window() -> None:
    budget = Budget(alpha=1e-3, window_rows=1000)
    assert budget.of(60.0, 1000) == pytest.approx(1e-3)
    assert budget.of(60.0, 300) == pytest.approx(3e-4)
    # A window of a minute: 43,200 a month, a thousandth of which may be false.
    assert budget.alarms_per_month(60.0, 1000) == pytest.approx(43.2)
    assert budget.alarms_per_month(0.0, 1000) is None


def test_by_the_month() -> None:
    budget = Budget(per_month=1.0)
    assert budget.of(3600.0, 1000) == pytest.approx(1 / 720)
    assert budget.of(0.0, 1000) == pytest.approx(1e-8)
    assert budget.of(1e9, 1000) == pytest.approx(0.05)
    assert budget.alarms_per_month(3600.0, 1000) == 1.0
