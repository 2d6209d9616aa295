"""One behaviour, every detector: finds a shift, is silent without one, and a NaN never means fine."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from raymlops.errors import ConfigError, DataError
from raymlops.monitor.alibi import AlibiDetector
from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.evidence import JOINT, Detector, Window

COLUMNS = ("a", "b", "job")
ALPHA = 1e-3
Build = Callable[[NDArray[np.float32]], Detector]
BUILDS: dict[str, Build] = {
    "own": lambda x: ColumnTests(x, COLUMNS, categories={2: 4}),
    "alibi tabular": lambda x: AlibiDetector(x, COLUMNS, categories={2: 4}),
    "alibi ks": lambda x: AlibiDetector(x, COLUMNS, categories={2: 4}, kind="ks"),
    "alibi cvm": lambda x: AlibiDetector(x, COLUMNS, categories={2: 4}, kind="cvm"),
    "alibi chisquare": lambda x: AlibiDetector(x, COLUMNS, categories={2: 4}, kind="chisquare"),
}


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    return BUILDS[request.param]


def rows(n: int, seed: int) -> NDArray[np.float32]:
    """Two numbers and a category of which one declared code never comes."""
    rng = np.random.default_rng(seed)
    return np.column_stack((rng.normal(size=(n, 2)), rng.choice(3, p=[0.5, 0.3, 0.2], size=n))).astype(np.float32)


def moved(detector: Detector, window: NDArray[np.float32]) -> set[str]:
    return {item.column for item in detector.detect(window, ALPHA) if item.drifted}


def test_silent_without_a_shift(build: Build) -> None:
    detector = build(rows(3000, 0))
    assert [moved(detector, rows(1000, seed)) for seed in range(1, 9)] == [set()] * 8


def test_finds_a_shift_in_its_column(build: Build) -> None:
    window = rows(1000, 1)
    window[:, 1] += 0.5
    assert moved(build(rows(3000, 0)), window) == {"b"}


def test_finds_other_categories(build: Build) -> None:
    window = rows(1000, 1)
    window[:300, 2] = 3.0
    assert moved(build(rows(3000, 0)), window) == {"job"}


@pytest.mark.parametrize("column", [0, 2])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_missing_values_are_a_change(build: Build, column: int, share: float) -> None:
    window = rows(1000, 1)
    window[: int(1000 * share), column] = np.nan
    assert moved(build(rows(3000, 0)), window) == {COLUMNS[column]}


def test_missing_values_hide_no_shift(build: Build) -> None:
    """Plain KSDrift: three standard deviations and ten per cent NaN give p = NaN and no alarm, for good."""
    reference, window = rows(3000, 0), rows(1000, 1)
    reference[::10, 0], window[::10, 0] = np.nan, np.nan
    detector = build(reference)
    assert moved(detector, window) == set()
    window[:, 0] += 3.0
    assert moved(detector, window) == {"a"}


def test_infinite_values_are_a_change(build: Build) -> None:
    window = rows(1000, 1)
    window[:300, 0] = np.inf
    assert moved(build(rows(3000, 0)), window) == {"a"}


def test_another_width_is_refused(build: Build) -> None:
    with pytest.raises(DataError, match="3 columns"):
        build(rows(3000, 0)).detect(np.zeros((500, 4), dtype=np.float32), ALPHA)


def test_row_order_within_the_window_does_not_matter(build: Build) -> None:
    detector, window = build(rows(3000, 0)), rows(1000, 1)
    assert repr(detector.detect(window, ALPHA)) == repr(detector.detect(window[::-1], ALPHA))


def test_alibi_refuses_an_unknown_kind_and_a_short_window() -> None:
    with pytest.raises(ConfigError, match="kind='mmd' is no detector: give one of tabular, ks, cvm"):
        AlibiDetector(rows(300, 0), COLUMNS, kind="mmd")
    with pytest.raises(DataError, match="needs 20 rows of 3 columns"):
        AlibiDetector(rows(300, 0), COLUMNS).detect(rows(1, 1), ALPHA)


@pytest.mark.parametrize("kind", ["fet", "classifier"])
def test_alibi_missing_rates_and_all_columns_together(kind: str) -> None:
    reference = rows(3000, 0)
    reference[::20, 0] = np.nan
    detector = AlibiDetector(reference, COLUMNS, categories={2: 4}, kind=kind)
    quiet = [rows(1000, seed) for seed in range(1, 6)]
    for window in quiet:
        window[::20, 0] = np.nan
    assert [moved(detector, window) for window in quiet] == [set()] * 5
    holes = quiet[0].copy()
    holes[:300, 1] = np.nan
    assert moved(detector, holes) == ({"b"} if kind == "fet" else {JOINT})
    shifted = quiet[0].copy()
    shifted[:, 1] += 0.5
    assert moved(detector, shifted) == (set() if kind == "fet" else {JOINT})


def test_alibi_tells_when_a_model_grows_unsure() -> None:
    def scored(seed: int, sure: float) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        return np.column_stack((rng.normal(size=1000), 1 / (1 + np.exp(-sure * rng.normal(size=1000))))).astype(
            np.float32
        )

    detector = AlibiDetector(np.vstack([scored(seed, 3.0) for seed in range(3)]), ("a", "(score)"), kind="uncertainty")
    assert [moved(detector, scored(seed, 3.0)) for seed in range(10, 15)] == [set()] * 5
    assert moved(detector, scored(20, 1.0)) == {"(score)"}
    lost = scored(21, 3.0)
    lost[:200, 1] = np.nan
    assert moved(detector, lost) == {"(score)"}
    with pytest.raises(ConfigError, match="judges a binary model's probabilities, which 'job' does not hold"):
        AlibiDetector(rows(300, 0), COLUMNS, kind="uncertainty")


def test_state_of_every_detector_survives_json(build: Build) -> None:
    reference = rows(3000, 0)
    bins = ColumnTests(reference, COLUMNS, categories={2: 4}).bins
    one, other = build(reference), build(reference)
    one.update(Window.of(bins, rows(1000, 1), ALPHA))
    other.load_state(json.loads(json.dumps(one.state_dict())))
    window = Window.of(bins, rows(60, 2), ALPHA)
    assert repr(one.update(window)) == repr(other.update(window))
