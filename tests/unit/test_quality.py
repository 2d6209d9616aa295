"""The loss detector: alarms on a rise, not on noise, bit-identical after a restart."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from raymlops.errors import DataError
from raymlops.monitor.quality import LossBaseline, LossDetector, block_length, row_losses, thinned_time

SPEND = 0.5e-3 / 1000


def flips(rate: float, rows: int, seed: int) -> NDArray[np.float64]:
    return (np.random.default_rng(seed).uniform(size=rows) < rate).astype(np.float64)


def baseline(losses: NDArray[np.float64], task: str = "binary", tolerance: float = 0.1) -> LossBaseline:
    return LossBaseline.learn(losses, task=task, ordered=True, tolerance=tolerance, window_rows=1000)


def test_losses_by_task() -> None:
    assert row_losses("binary", [1, 0], [0.9, 0.5]) == pytest.approx([0.01, 0.25])
    assert row_losses("multiclass", [2, 0], [2, 1]).tolist() == [0.0, 1.0]
    assert row_losses("multiclass", [1, 0], [[0.2, 0.8], [0.3, 0.7]]).tolist() == [0.0, 1.0]
    assert row_losses("regression", [3.0, -1.0], [1.0, 1.0]).tolist() == [2.0, 2.0]
    assert np.isnan(row_losses("multiclass", [1], [[np.nan, 0.2]])[0])
    assert np.isnan(row_losses("binary", [1], [np.nan])[0])


def test_losses_refuse_what_they_cannot_score() -> None:
    with pytest.raises(DataError, match="2 labels do not fit 1 predictions"):
        row_losses("binary", [0, 1], [0.5])
    with pytest.raises(DataError, match="'ranking' has no loss: give 'binary', 'multiclass' or 'regression'"):
        row_losses("ranking", [0], [0.5])


def test_silent_on_the_same_loss_for_a_long_time() -> None:
    detector = LossDetector(baseline(flips(0.1, 10_000, 0)))
    assert not detector.update(flips(0.1, 300_000, 1), SPEND)
    assert (detector.harm, detector.alarms) == (False, 0)


@pytest.mark.parametrize(("rate", "within"), [(0.15, 5000), (0.2, 1500), (0.6, 100)])
def test_alarms_on_a_rise(rate: float, within: int) -> None:
    detector = LossDetector(baseline(flips(0.1, 10_000, 2)))
    detector.update(flips(0.1, 20_000, 3), SPEND)
    assert detector.update(flips(rate, within, 4), SPEND)
    assert detector.alarm_row is not None
    assert 20_000 < detector.alarm_row <= 20_000 + within


def test_a_rise_within_the_tolerance_is_accepted() -> None:
    detector = LossDetector(baseline(flips(0.1, 10_000, 5), tolerance=0.5))
    assert not detector.update(flips(0.13, 100_000, 6), SPEND)


@pytest.mark.parametrize("phi", [0.8, 0.98])
def test_silent_under_autocorrelation_that_single_rows_hide(phi: float) -> None:
    rng = np.random.default_rng(21)
    hidden = lfilter([np.sqrt(1 - phi**2)], [1, -phi], rng.normal(size=210_000))
    losses = (rng.uniform(size=210_000) < 1 / (1 + np.exp(2.3 - hidden))).astype(np.float64)
    learned = baseline(losses[:10_000])
    assert learned.block > 8
    assert not LossDetector(learned).update(losses[10_000:], SPEND)


def test_block_length_of_independent_rows_is_one() -> None:
    assert block_length(np.random.default_rng(3).normal(size=10_000), 64) == 1


def test_harm_lasts_until_the_loss_is_back() -> None:
    detector = LossDetector(baseline(flips(0.1, 10_000, 7)))
    detector.update(flips(0.4, 1000, 8), SPEND)
    assert detector.harm
    detector.update(flips(0.4, 500, 9), SPEND)
    assert detector.harm
    detector.update(flips(0.1, 1000, 10), SPEND)
    assert not detector.harm


def test_a_burst_that_is_over_is_an_alarm_but_no_harm() -> None:
    detector = LossDetector(baseline(flips(0.1, 10_000, 16)))
    detector.update(np.zeros(2000), SPEND)
    assert detector.update(np.ones(60), SPEND)
    assert (detector.harm, detector.harm_row) == (False, None)


def test_a_loss_that_is_not_a_number_counts_as_worst() -> None:
    detector = LossDetector(baseline(flips(0.1, 10_000, 11)))
    assert detector.update(np.full(200, np.nan), SPEND)


def test_regression_and_a_faultless_reference() -> None:
    rng = np.random.default_rng(12)
    detector = LossDetector(baseline(np.abs(rng.normal(size=5000)) * 40, task="regression"))
    assert not detector.update(np.abs(rng.normal(size=50_000)) * 40, SPEND)
    assert detector.update(np.abs(rng.normal(size=2000)) * 80, SPEND)
    clean = LossDetector(baseline(np.zeros(2000)))
    assert not clean.update(np.zeros(5000), SPEND)
    assert clean.update(flips(0.1, 1000, 13), SPEND)


def test_any_split_into_calls_gives_the_same_and_so_does_a_restart() -> None:
    learned = baseline(np.repeat(flips(0.2, 500, 14), 20))
    assert learned.block > 1
    losses = flips(0.3, 5003, 15)
    whole, parts = LossDetector(learned), LossDetector(learned)
    whole.update(losses, SPEND)
    for part in np.array_split(losses, 37):
        parts.update(part, SPEND)
        restarted = LossDetector(learned)
        restarted.load_state(json.loads(json.dumps(parts.state_dict())))
        parts = restarted
    assert parts.state_dict() == whole.state_dict()


def test_too_few_losses_are_refused() -> None:
    with pytest.raises(DataError, match="holds 29 losses; watching performance needs at least 30"):
        baseline(np.zeros(29))


def test_a_thinned_stream_depends_less_on_itself_but_never_holds_more_independent_rows() -> None:
    assert thinned_time(1.0, 50.0) == 1.0
    assert thinned_time(9.0, 1.0) == 9.0
    for time in (1.5, 9.0, 99.0):
        for stride in (1.0, 2.0, 5.5, 40.0, 1000.0):
            assert 1.0 <= thinned_time(time, stride) <= time
            assert stride * thinned_time(time, stride) >= time * (1 - 1e-12)
    # An autoregression with 0.8 has time 9; every fifth row has neighbours that correlate by 0.8^5.
    assert thinned_time(9.0, 5.0) == pytest.approx((1 + 0.8**5) / (1 - 0.8**5))
