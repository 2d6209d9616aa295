"""Column tests: the statistic is scipy's, autocorrelation is counted, NaN never means fine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import ks_2samp

from raymlops.errors import DataError
from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.evidence import Evidence
from raymlops.monitor.quality import autocorrelation_time
from raymlops.monitor.smirnov import exact_distance, order_keys, sort_keys
from raymlops.sketch.histogram import Sketch

ALPHA = 1e-3


def stream(phi: float, rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=(rows + 500, columns))
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise, axis=0)[500:].astype(np.float32)


def of(found: tuple[Evidence, ...], column: str, name: str) -> Evidence:
    return next(item for item in found if item.column == column and item.name == name)


def distance(reference: NDArray[np.floating[Any]], values: NDArray[np.floating[Any]]) -> float:
    return exact_distance(sort_keys(order_keys(reference)), order_keys(values))


@pytest.mark.parametrize("seed", range(20))
def test_ks_statistic_equals_scipy_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 3 + 5 * seed, 400) / 4, rng.integers(0, 4 + 5 * seed, 90) / 4
    assert distance(a, b) == pytest.approx(ks_2samp(a, b, method="asymp").statistic, abs=1e-12)


@pytest.mark.parametrize("rows", [100, 3000, 20_000])
def test_ks_of_many_rows_signs_and_sizes_equals_scipy(rows: int) -> None:
    rng = np.random.default_rng(rows)
    a = (rng.standard_cauchy(5000) * 10.0 ** rng.integers(-40, 30, 5000)).astype(np.float32)
    b = np.concatenate((rng.choice(a, rows // 3), rng.normal(size=rows - rows // 3) * 1e-3, [0.0, -0.0])).astype(
        np.float32
    )
    a[:9], b[:3] = 0.0, -0.0
    assert distance(a, b) == pytest.approx(ks_2samp(a, b, method="asymp").statistic, abs=1e-12)
    assert (sort_keys(order_keys(b)) == np.sort(order_keys(b))).all()
    assert (order_keys(np.sort(b)) == np.sort(order_keys(b))).all()


def test_no_shift_no_alarm_over_many_windows() -> None:
    x = stream(0.0, 60_000, 8, 7)
    tests = ColumnTests(x[:10_000], list("abcdefgh"))
    flagged = [any(e.drifted for e in tests.detect(x[i : i + 1000], ALPHA)) for i in range(10_000, 60_000, 1000)]
    assert sum(flagged) == 0


def test_autocorrelation_does_not_flag_every_window() -> None:
    x = stream(0.8, 60_000, 8, 8)
    honest = ColumnTests(x[:10_000], list("abcdefgh"))
    naive = ColumnTests(x[:10_000], list("abcdefgh"), ordered=False)
    windows = [x[i : i + 1000] for i in range(10_000, 60_000, 1000)]
    assert sum(any(e.drifted for e in honest.detect(w, ALPHA)) for w in windows) == 0
    assert sum(any(e.drifted for e in naive.detect(w, ALPHA)) for w in windows) > 25


def test_autocorrelation_time_of_known_processes() -> None:
    assert autocorrelation_time(stream(0.0, 10_000, 1, 1)[:, 0]) < 2.0
    assert 5.0 < autocorrelation_time(stream(0.8, 10_000, 1, 1)[:, 0]) < 18.0  # (1 + phi) / (1 - phi) = 9
    assert autocorrelation_time(np.full(1000, 2.0)) == 1.0


def test_a_shift_is_found_in_its_column_only_with_its_size() -> None:
    x = stream(0.0, 11_000, 5, 3)
    window = x[10_000:].copy()
    window[:, 2] += 0.5
    found = ColumnTests(x[:10_000], list("abcde")).detect(window, ALPHA)
    assert [(e.column, e.name) for e in found if e.drifted] == [("c", "ks")]
    assert 0.12 < of(found, "c", "ks").distance < 0.28


def test_missing_values_are_evidence() -> None:
    x = stream(0.0, 11_000, 2, 4)
    tests = ColumnTests(x[:10_000], ["a", "b"])
    window = x[10_000:].copy()
    window[:100, 0] = np.nan
    window[:, 1] = np.nan
    found = tests.detect(window, ALPHA)
    assert of(found, "a", "missing").drifted
    assert of(found, "a", "missing").statistic == pytest.approx(0.1)
    assert not of(found, "a", "ks").drifted
    assert of(found, "b", "ks").drifted
    assert of(found, "b", "missing").distance > 0.9


def test_a_shift_beside_missing_values_is_still_found() -> None:
    x = stream(0.0, 11_000, 1, 5)
    window = x[10_000:].copy() + 3
    window[::10] = np.nan
    assert of(ColumnTests(x[:10_000], ["a"]).detect(window, ALPHA), "a", "ks").drifted


def test_a_column_that_was_empty_and_now_has_values() -> None:
    x = np.column_stack((stream(0.0, 2000, 1, 6)[:, 0], np.full(2000, np.nan, dtype=np.float32)))
    window = x[:1000].copy()
    window[:, 1] = 1.0
    found = ColumnTests(x, ["a", "b"]).detect(window, ALPHA)
    assert of(found, "b", "missing").drifted
    assert (of(found, "b", "ks").status, of(found, "b", "ks").drifted) == ("insufficient", False)


def test_constant_column_that_comes_alive() -> None:
    x = np.full((2000, 1), 0.5, dtype=np.float32)
    tests = ColumnTests(x, ["vic"])
    assert not any(e.drifted for e in tests.detect(x[:1000], ALPHA))
    found = of(tests.detect(np.linspace(0, 1, 1000)[:, None], ALPHA), "vic", "ks")
    assert found.drifted
    assert found.distance > 0.5


def test_category_shift_and_unseen_codes() -> None:
    rng = np.random.default_rng(9)
    x = rng.choice(3, p=[0.6, 0.3, 0.1], size=(11_000, 1)).astype(np.float32)
    tests = ColumnTests(x[:10_000], ["job"], categories={0: 3})
    assert not of(tests.detect(x[10_000:], ALPHA), "job", "chi2").drifted
    moved = rng.choice(3, p=[0.4, 0.3, 0.3], size=(1000, 1)).astype(np.float32)
    assert of(tests.detect(moved, ALPHA), "job", "chi2").drifted
    unseen = x[10_000:].copy()
    unseen[:200] = 7.0
    found = of(tests.detect(unseen, ALPHA), "job", "chi2")
    assert found.drifted
    assert found.distance > 0.2


def test_too_few_independent_rows_say_so_until_windows_are_merged() -> None:
    x = stream(0.98, 20_000, 1, 11)
    tests = ColumnTests(x[:10_000], ["a"])
    windows = [x[i : i + 1000] + np.float32(9.0) for i in range(10_000, 20_000, 1000)]
    alone = of(tests.detect(windows[0], ALPHA), "a", "ks")
    assert (alone.status, alone.p_value, alone.drifted) == ("insufficient", 1.0, False)
    earlier = [Sketch.of(tests.bins, w) for w in windows[:8]]
    assert of(tests.detect(windows[8], ALPHA, earlier), "a", "ks").drifted


def test_a_reference_too_small_is_refused() -> None:
    with pytest.raises(DataError, match="holds 50 rows; watching for drift needs at least 100"):
        ColumnTests(np.zeros((50, 1), dtype=np.float32), ["a"])


def test_windows_at_the_edge_of_what_can_be_judged() -> None:
    """None of these is an alarm by itself: empty, one row, the reference once more, more rows than the reference."""
    x = stream(0.0, 4000, 2, 17)
    tests = ColumnTests(x[:1000], ["a", "b"])
    for rows in (0, 1):
        found = tests.detect(x[:rows], ALPHA)
        assert found
        assert {item.status for item in found if item.name == "ks"} == {"insufficient"}
        assert not any(item.drifted for item in found)
    assert not any(item.drifted for item in tests.detect(x[:1000], ALPHA))
    larger = tests.detect(x[1000:], ALPHA)
    assert {item.status for item in larger} == {"tested"}
    assert not any(item.drifted for item in larger)
    assert of(tests.detect(x[1000:] + np.float32(1.0), ALPHA), "a", "ks").drifted
