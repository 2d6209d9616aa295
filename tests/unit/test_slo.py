"""Error budgets: what burns fast enough to hold changes back, and when that ends."""

from __future__ import annotations

import json

import pytest

from raymlops.errors import ConfigError
from raymlops.monitor.slo import ErrorBudget, ServiceLevel
from raymlops.serving.analysis import LATENCY_EDGES_MS, StatsRecorder, VariantStats

MINUTE = 60.0


def stats(requests: int, errors: int = 0, slow_ms: float = 0.0, slow: int = 0) -> VariantStats:
    recorder = StatsRecorder()
    for _ in range(slow):
        recorder.request(slow_ms)
    latency = recorder.stats().latency if slow else (0,) * (len(LATENCY_EDGES_MS) + 1)
    return VariantStats(requests=requests, errors=errors, latency=latency)


def minutes(budget: ErrorBudget, start: int, count: int, errors: int) -> float:
    for minute in range(start, start + count):
        budget.add(stats(1000, errors), minute * MINUTE)
    return (start + count - 1) * MINUTE


def test_a_budget_spent_as_planned_holds_nothing() -> None:
    budget = ErrorBudget(ServiceLevel())
    now = minutes(budget, 0, 4 * 1440, errors=1)
    assert budget.burning(now) == ""
    assert [round(burn.long_rate, 2) for burn in budget.burns(now)] == [1.0, 1.0, 1.0]


def test_a_fast_burn_holds_within_minutes_and_lets_go_soon_after() -> None:
    budget = ErrorBudget(ServiceLevel())
    now = minutes(budget, 0, 1440, errors=0)
    assert budget.burning(now) == ""
    now = minutes(budget, 1440, 6, errors=200)
    assert "times too fast over 1 h" in budget.burning(now)
    now = minutes(budget, 1446, 120, errors=0)
    assert budget.burning(now) == ""


def test_a_slow_burn_is_told_but_holds_nothing() -> None:
    budget = ErrorBudget(ServiceLevel())
    now = minutes(budget, 0, 4 * 1440, errors=2)
    assert [burn.alert for burn in budget.burns(now)] == [False, False, True]
    assert budget.burning(now) == ""


def test_late_answers_count_and_a_few_failures_in_a_quiet_hour_do_not() -> None:
    budget = ErrorBudget(ServiceLevel(latency_ms=50.0))
    budget.add(stats(100, slow=30, slow_ms=400.0), 0.0)
    assert budget.burning(0.0) != ""
    budget = ErrorBudget(ServiceLevel(latency_ms=50.0))
    budget.add(stats(100, slow=30, slow_ms=40.0), 0.0)
    budget.add(stats(20, errors=9), 0.0)
    assert budget.burning(0.0) == ""


def test_the_windows_scale_with_the_period() -> None:
    burns = ErrorBudget(ServiceLevel(period="3d")).burns(0.0)
    assert [burn.long_s for burn in burns] == [360.0, 2160.0, 25_920.0]


def test_the_state_is_small_and_survives_json() -> None:
    budget = ErrorBudget(ServiceLevel())
    now = minutes(budget, 0, 5 * 1440, errors=20)
    text = json.dumps(budget.to_dict())
    assert len(text) < 5000
    again = ErrorBudget(ServiceLevel())
    again.load(json.loads(text))
    assert again.burns(now) == budget.burns(now)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("target", 1.0, "target=1.0 leaves no budget to watch"),
        ("latency_ms", 0.0, "latency_ms=0.0 cannot be measured"),
        ("period", "5m", "period='5m' is too short for its windows"),
    ],
)
def test_a_level_that_cannot_be_kept_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceLevel(**{field: value})
    assert sentence in str(caught.value)
