"""One protocol, every detector of the budget: silent on what has not changed, finds what has, and goes on from its state."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from raymlops.monitor.alibi import AlibiDetector
from raymlops.monitor.budget import SHARES
from raymlops.monitor.drift import ColumnTests
from raymlops.monitor.evidence import JOINT, Detector, Window
from raymlops.monitor.joint import JointBets
from raymlops.monitor.persistent import PersistentBets

COLUMNS = ("a", "b", "c", "job", "(score)")
CATEGORIES = {3: 4}
ALPHA = 1e-3
ROWS = 1000


def rows(n: int, seed: int) -> NDArray[np.float32]:
    """Three numbers of which two hang together, a category of which one declared code never comes, and a score."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    x[:, 1] = 0.6 * x[:, 0] + 0.8 * x[:, 1]
    job = rng.choice(3, p=[0.5, 0.3, 0.2], size=n)
    return np.column_stack((x, job, 1 / (1 + np.exp(-x.sum(axis=1))))).astype(np.float32)


REFERENCE = rows(5000, 0)
TESTS = ColumnTests(REFERENCE, COLUMNS, categories=CATEGORIES)


def persistent() -> Detector:
    return PersistentBets(
        TESTS.bins, TESTS.reference, TESTS.times, share=SHARES.persistent, categories=frozenset(CATEGORIES)
    )


def joint() -> Detector:
    cells = TESTS.bins.locate(REFERENCE)
    return JointBets(TESTS.bins, TESTS.reference, cells, TESTS.times, share=SHARES.joint)


BUILDS: dict[str, Callable[[], Detector]] = {
    "columns": lambda: ColumnTests(REFERENCE, COLUMNS, categories=CATEGORIES, share=SHARES.columns),
    "persistent": persistent,
    "classifier": joint,
    "alibi": lambda: AlibiDetector(REFERENCE, COLUMNS, categories=CATEGORIES),
}


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Callable[[], Detector]:
    return BUILDS[request.param]


def window(seed: int, change: str = "") -> Window:
    x = rows(ROWS, seed)
    rng = np.random.default_rng(seed + 1000)
    if change == "mean":
        x[:, 0] += 0.5
    elif change == "correlation":
        x[:, 1] = rng.normal(size=ROWS)
    elif change == "category":
        x[:300, 3] = 3.0
    elif change == "prediction":
        x[:, 4] = np.clip(x[:, 4] + 0.15, 0, 1)
    elif change == "missing":
        x[rng.uniform(size=ROWS) < 0.2, 0] = np.nan
    elif change == "range":
        x[:50, 0] = 50.0
    return Window.of(TESTS.bins, x, ALPHA)


def found(detector: Detector, change: str, windows: int = 4) -> set[str]:
    """Columns that are said to have moved in any of some windows, after two quiet ones."""
    seeds = range(1, 3 + windows)
    told = [detector.update(window(seed, change if seed > 2 else "")) for seed in seeds]
    return {item.column for evidence in told for item in evidence if item.drifted}


def test_silent_without_a_change(build: Callable[[], Detector]) -> None:
    assert found(build(), "", 10) == set()


CHANGED = {"mean": "a", "category": "job", "prediction": "(score)", "missing": "a", "range": "a"}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("name", ["columns", "persistent"])
def test_a_change_of_a_column_is_found_in_that_column(name: str, change: str) -> None:
    assert found(BUILDS[name](), change) == {CHANGED[change]}


@pytest.mark.parametrize("change", ["mean", "category", "prediction", "missing"])
def test_the_second_opinion_sees_what_moves_the_ranks(change: str) -> None:
    assert found(BUILDS["alibi"](), change) == {CHANGED[change]}


def test_a_change_of_all_columns_together_is_the_classifiers(build: Callable[[], Detector]) -> None:
    detector = build()
    assert found(detector, "correlation") == ({JOINT} if isinstance(detector, JointBets) else set())


@pytest.mark.parametrize("change", ["", "mean", "missing"])
def test_it_goes_on_from_its_state_and_that_is_json(build: Callable[[], Detector], change: str) -> None:
    one, other = build(), build()
    for seed in range(1, 4):
        one.update(window(seed, change))
    other.load_state(json.loads(json.dumps(one.state_dict())))
    for seed in range(4, 6):
        assert repr(one.update(window(seed, change))) == repr(other.update(window(seed, change)))


def test_evidence_is_named_sized_and_within_its_share(build: Callable[[], Detector]) -> None:
    detector = build()
    evidence = detector.update(window(1, "mean"))
    assert evidence
    assert {item.column for item in evidence} <= {*COLUMNS, JOINT}
    for item in evidence:
        assert item.drifted == (item.p_value <= item.limit)
        assert 0.0 <= item.p_value <= 1.0
        assert item.status == "tested" or not item.drifted
    share = {"columns": SHARES.columns, "persistent": SHARES.persistent, "classifier": SHARES.joint}.get(
        detector.name, 1.0
    )
    assert sum(item.limit for item in evidence) <= ALPHA * share * (1 + 1e-9)


def test_too_few_rows_are_insufficient_and_not_fine() -> None:
    few = Window.of(TESTS.bins, rows(20, 1), ALPHA)
    for name in ("columns", "persistent", "classifier"):
        values = [
            item for item in BUILDS[name]().update(few) if item.name in ("ks", "chi2", "persistent", "classifier")
        ]
        assert values
        assert {item.status for item in values} == {"insufficient"}, name
