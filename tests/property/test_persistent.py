"""Bets on histograms: silent without a change and for changes that do not matter, never for ones that last."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.evidence import Window
from raymlops.monitor.persistent import PersistentBets
from raymlops.sketch.histogram import Sketch

ALPHA = 1e-3


def stream(phi: float, rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(rows + 500, columns))
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise, axis=0)[500:].astype(np.float32)


def build(x: NDArray[np.float32], **options: object) -> tuple[ColumnTests, PersistentBets]:
    tests = ColumnTests(x, [f"c{i}" for i in range(x.shape[1])], **options)
    return tests, PersistentBets(tests.bins, tests.reference, tests.times, categories=frozenset(tests.categories))


def first_alarm(x: NDArray[np.float32], window: int = 1000, **options: object) -> tuple[int | None, set[str]]:
    """Windows until the first alarm after a reference of 10,000 rows, and which columns it named."""
    tests, bets = build(x[:10_000], **options)
    for number, start in enumerate(range(10_000, len(x), window), start=1):
        drifted = {e.column for e in bets.update(Window.of(tests.bins, x[start : start + window], ALPHA)) if e.drifted}
        if drifted:
            return number, drifted
    return None, set()


@pytest.mark.parametrize("phi", [0.0, 0.8, 0.98])
@pytest.mark.parametrize("seed", [1, 2])
def test_silent_without_a_change(phi: float, seed: int) -> None:
    assert first_alarm(stream(phi, 130_000, 6, seed))[0] is None


def test_a_shift_of_a_quarter_deviation_is_found_in_its_column() -> None:
    x = stream(0.0, 30_000, 6, 3)
    x[10_000:, 4] += 0.25
    number, columns = first_alarm(x)
    assert number is not None
    assert number <= 6
    assert columns == {"c4"}


def test_a_wider_column_is_found() -> None:
    x = stream(0.0, 30_000, 6, 4)
    x[10_000:, 1] *= 1.25
    assert first_alarm(x)[1] == {"c1"}


def test_a_rate_of_missing_values_that_single_windows_hide_is_found() -> None:
    x = stream(0.0, 60_000, 2, 5)
    rates = np.where(np.arange(60_000) < 10_000, 0.02, 0.035)
    x[np.random.default_rng(6).uniform(size=60_000) < rates, 1] = np.nan
    tests = ColumnTests(x[:10_000], ["c0", "c1"])
    single = [tests.detect(x[i : i + 1000], ALPHA / 10) for i in range(10_000, 60_000, 1000)]
    assert sum(e.drifted for found in single for e in found) <= 5
    assert first_alarm(x, window=500)[1] == {"c1"}


def test_a_change_within_the_tolerance_stays_silent_for_ever() -> None:
    x = stream(0.0, 210_000, 1, 7)
    x[10_000:] += 0.01
    assert first_alarm(x)[0] is None


def test_other_categories_and_unseen_ones() -> None:
    rng = np.random.default_rng(8)
    x = rng.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=(40_000, 1)).astype(np.float32)
    assert first_alarm(x, categories={0: 4})[0] is None
    unseen = x.copy()
    unseen[10_000::40] = 9.0
    assert first_alarm(unseen, categories={0: 4})[1] == {"c0"}


def test_too_few_rows_are_insufficient_not_fine() -> None:
    x = stream(0.98, 10_200, 1, 9)
    tests, bets = build(x[:10_000])
    (found,) = bets.update(Window.of(tests.bins, x[10_000:], ALPHA))
    assert (found.status, found.drifted, found.p_value) == ("insufficient", False, 1.0)


def test_any_restart_gives_the_same_evidence() -> None:
    x = stream(0.5, 22_000, 3, 10)
    x[15_000:, 0] += 0.3
    tests, steady = build(x[:10_000])
    _, restarted = build(x[:10_000])
    for start in range(10_000, 22_000, 700):
        window = Window.of(tests.bins, x[start : start + 700], ALPHA)
        assert steady.update(window) == restarted.update(window)
        _, again = build(x[:10_000])
        again.load_state(json.loads(json.dumps(restarted.state_dict())))
        restarted = again
    assert steady.state_dict() == restarted.state_dict()


def counts_alarms(seed: int, *, shift: float = 0.0, windows: int = 60, rows: int = 50_000) -> list[int]:
    """Windows with an alarm when all that comes are counts of uniform rows, twelve columns, against 4,000 rows."""
    rng = np.random.default_rng(seed)
    tests, bets = build(rng.uniform(size=(4000, 12)).astype(np.float32), ordered=False)
    none = np.zeros((0, 12), dtype=np.float32)
    found = []
    for number in range(windows):
        counts = np.zeros((12, tests.bins.width), dtype=np.int64)
        for i, edges in enumerate(tests.bins.edges):
            borders = np.clip(np.concatenate(([0.0], edges - shift * (i == 3), [1.0])), 0.0, 1.0)
            counts[i, : len(edges) + 1] = rng.multinomial(rows, np.diff(borders))
        lost = np.zeros(12, dtype=np.int64)
        sketch = Sketch(tests.bins.digest, rows, counts, lost, lost)
        if any(e.drifted for e in bets.update(Window.of(tests.bins, none, ALPHA, sketch))):
            found.append(number)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_many_rows_do_not_turn_the_references_own_error_into_an_alarm(seed: int) -> None:
    assert counts_alarms(seed) == []


def test_counts_alone_show_a_shift_that_lasts() -> None:
    found = counts_alarms(20, shift=0.05, windows=6)
    assert found
    assert found[0] <= 2
