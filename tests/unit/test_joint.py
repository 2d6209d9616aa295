"""Bets on a classifier: finds what no column shows alone, and only then."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.evidence import Evidence, Window
from raymlops.monitor.joint import JointBets
from raymlops.sketch.period import MOST_TIED

ALPHA = 1e-3


def stream(phi: float, rows: int, columns: int, seed: int, correlation: float = 0.3) -> NDArray[np.float32]:
    root = np.linalg.cholesky((1 - correlation) * np.eye(columns) + correlation)
    noise = np.random.default_rng(seed).normal(size=(rows + 500, columns)) @ root.T
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise, axis=0)[500:].astype(np.float32)


def build(x: NDArray[np.float32]) -> tuple[ColumnTests, JointBets]:
    tests = ColumnTests(x, [f"c{i}" for i in range(x.shape[1])])
    return tests, JointBets(tests.bins, tests.reference, tests.bins.locate(x), tests.times)


def feed(reference: NDArray[np.float32], live: NDArray[np.float32], window: int = 1000) -> list[Evidence]:
    tests, bets = build(reference)
    return [
        bets.update(Window.of(tests.bins, live[start : start + window], ALPHA))[0]
        for start in range(0, len(live), window)
    ]


@pytest.mark.parametrize("phi", [0.0, 0.8])
@pytest.mark.parametrize("seed", [1, 2])
def test_silent_without_a_change(phi: float, seed: int) -> None:
    x = stream(phi, 110_000, 10, seed)
    assert not any(e.drifted for e in feed(x[:10_000], x[10_000:]))


def test_correlation_that_vanishes_is_found_in_three_windows_where_columns_see_nothing() -> None:
    live = stream(0.0, 3000, 20, 3, correlation=0.0)
    reference = stream(0.0, 10_000, 20, 4)
    found = feed(reference, live)
    assert any(e.drifted for e in found)
    alone = ColumnTests(reference, [f"c{i}" for i in range(20)])
    assert not any(e.drifted for i in range(0, 3000, 1000) for e in alone.detect(live[i : i + 1000], ALPHA))


def test_the_columns_that_came_apart_are_named() -> None:
    reference, live = stream(0.0, 10_000, 8, 5, correlation=0.5), stream(0.0, 6000, 8, 6, correlation=0.5)
    live[:, 2] = np.random.default_rng(7).permutation(live[:, 2])
    last = feed(reference, live)[-1]
    assert last.drifted
    assert last.detail[0] == "c2"
    assert last.statistic > 0.6
    assert last.distance > 0.1


def test_the_first_window_and_a_short_reference_are_insufficient() -> None:
    x = stream(0.0, 12_000, 4, 8)
    assert [e.status for e in feed(x[:10_000], x[10_000:])] == ["insufficient", "tested"]
    slow = stream(0.99, 3000, 4, 9)
    assert {e.status for e in feed(slow[:1000], slow[1000:])} == {"insufficient"}


def test_missing_and_infinite_values_do_no_harm() -> None:
    x = stream(0.0, 13_000, 4, 10)
    x[::7, 1], x[::11, 2] = np.nan, np.inf
    found = feed(x[:10_000], x[10_000:])
    assert all(np.isfinite([e.statistic, e.p_value, e.distance]).all() for e in found)
    assert not any(e.drifted for e in found)


def test_constant_columns_and_very_wide_rows() -> None:
    constant = np.full((3000, 2), 4.0, dtype=np.float32)
    assert feed(constant[:2000], constant[2000:])[0].status == "insufficient"
    wide = stream(0.0, 6000, MOST_TIED + 10, 11)
    tests, bets = build(wide[:4000])
    for start in (4000, 5000):
        bets.update(Window.of(tests.bins, wide[start : start + 1000], ALPHA))
    assert len(json.dumps(bets.state_dict())) < 300_000


def test_any_restart_gives_the_same_evidence() -> None:
    x = stream(0.0, 20_000, 5, 12)
    x[14_000:] += 0.2
    tests, steady = build(x[:10_000])
    _, restarted = build(x[:10_000])
    alarms = 0
    for start in range(10_000, 20_000, 400):
        window = Window.of(tests.bins, x[start : start + 400], ALPHA)
        (one,), (other,) = steady.update(window), restarted.update(window)
        assert one == other
        alarms += one.drifted
        _, again = build(x[:10_000])
        again.load_state(json.loads(json.dumps(restarted.state_dict())))
        restarted = again
    assert alarms > 0
    assert steady.state_dict() == restarted.state_dict()
