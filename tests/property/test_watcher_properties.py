"""A restart at any moment changes nothing: the same reports follow, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymlops.data.schema import Column, DataContract
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.report import SCORE
from raymlops.registry.package import Reference
from raymlops.sketch.observed import Observed, keys_of
from raymlops.sketch.profile import with_score

RNG = np.random.default_rng(0)
X = np.column_stack((RNG.normal(size=(4000, 2)), RNG.integers(0, 3, 4000))).astype(np.float32)
LIVE = np.column_stack((RNG.normal(size=(2400, 2)), RNG.integers(0, 4, 2400))).astype(np.float32)
LIVE[1200:, 1] = LIVE[1200:, 0] + 0.5
LIVE[::13, 0] = np.nan
LOSSES = (RNG.uniform(size=2400) < np.linspace(0.1, 0.5, 2400)) * 1.0
FREE = {"nullable": True, "minimum": None, "maximum": None}
CONTRACT = DataContract(
    columns=(
        Column(name="a", kind="number", **FREE),
        Column(name="b", kind="number", **FREE),
        Column(name="job", kind="category", categories=("x", "y", "z"), **FREE),
    ),
    label="y",
    task="regression",
    classes=(),
)
REFERENCE = Reference(
    columns=("a", "b", "job"), x=X, scores=X[:, 1].astype(float), losses=np.abs(X[:, 0]).astype(float), ordered=True
)


def watcher() -> Watcher:
    return Watcher(Monitor(window_rows=400, min_rows=300, second_opinion="off"), REFERENCE, CONTRACT, 1)


def restarts_change_nothing(
    feed: Callable[[Watcher, NDArray[np.intp]], None], cuts: list[int], restarts: list[bool]
) -> list[dict[str, Any]]:
    """Reports of a watcher that is fed parts of the traffic and one that starts again between them, which are the same."""
    steady, restarted = watcher(), watcher()
    found: list[list[str]] = [[], []]
    for part, restart in zip(np.split(np.arange(2400), sorted(cuts)), restarts, strict=False):
        for told, watch in zip(found, (steady, restarted), strict=True):
            feed(watch, part)
            told += [json.dumps(report.to_dict()) for report in watch.step(float(part[-1]))]
        if restart:
            state = json.dumps(restarted.state_dict())
            assert len(state) < 1_000_000
            restarted = watcher()
            restarted.load_state(json.loads(state))
    assert found[0] == found[1]
    assert json.dumps(steady.state_dict()) == json.dumps(restarted.state_dict())
    return [json.loads(report) for report in found[0]]


RESTARTS = st.lists(st.booleans(), min_size=9, max_size=9)
CUTS = st.lists(st.integers(1, 2399), max_size=8, unique=True)


@given(cuts=CUTS, restarts=RESTARTS)
@settings(max_examples=25, deadline=None)
def test_reports_do_not_depend_on_restarts(cuts: list[int], restarts: list[bool]) -> None:
    def feed(watch: Watcher, part: NDArray[np.intp]) -> None:
        watch.observe(LIVE[part], LIVE[part, 1], part.astype(float), [f"r{i}" for i in part])
        watch.add_outcomes(LOSSES[part], part.astype(float))

    assert len(restarts_change_nothing(feed, cuts, restarts)) >= 6


def observed(part: NDArray[np.intp], first: int, start: int, limit: int | None) -> Observed:
    rows = with_score(LIVE[part], LIVE[part, 1])
    ids = [f"r{i}" for i in part]
    return Observed.of(watcher().bins, rows, part.astype(float), keys_of(first, len(part), start), ids, limit=limit)


@given(cuts=CUTS, restarts=RESTARTS, limit=st.integers(20, 400))
@settings(max_examples=25, deadline=None)
def test_reports_of_counts_and_samples_do_not_depend_on_restarts(
    cuts: list[int], restarts: list[bool], limit: int
) -> None:
    def feed(watch: Watcher, part: NDArray[np.intp]) -> None:
        watch.take(observed(part, int(part[0]), 9, limit))

    reports = restarts_change_nothing(feed, cuts, restarts)
    assert all(report["rows"] >= 400 and report["sampled_rows"] <= report["rows"] for report in reports)
    assert 2400 - sum(report["rows"] for report in reports) < 400


@given(cuts=CUTS, gateways=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_whole_samples_give_the_reports_of_their_rows(cuts: list[int], gateways: int) -> None:
    rows, counts = watcher(), watcher()
    found: list[list[str]] = [[], []]
    for turn, part in enumerate(np.split(np.arange(2400), sorted(cuts))):
        rows.observe(LIVE[part], LIVE[part, 1], part.astype(float), [f"r{i}" for i in part])
        counts.take(observed(part, int(part[0]), turn % gateways, None))
        for told, watch in zip(found, (rows, counts), strict=True):
            told += [json.dumps(report.to_dict()) for report in watch.step(float(part[-1]))]
    assert found[0] == found[1]


@given(order=st.permutations(range(6)), limit=st.integers(50, 300))
@settings(max_examples=25, deadline=None)
def test_the_order_of_gateways_does_not_matter_to_what_is_counted(order: list[int], limit: int) -> None:
    parts = [observed(np.arange(g, 2400, 6), 0, g * 2**60, limit) for g in range(6)]
    reports = []
    for sequence in (range(6), order):
        watch = watcher()
        for gateway in sequence:
            watch.take(parts[gateway])
        (report,) = watch.step(2400.0)
        reports.append(report)
    assert reports[0].rows == 2400
    of_counts = [[e for e in report.evidence if e.name != "classifier"] for report in reports]
    assert repr(of_counts[0]) == repr(of_counts[1])
    assert {row.request_id for row in reports[0].wild} == {row.request_id for row in reports[1].wild}


@given(column=st.integers(0, 3), rows=st.integers(400, 3000), limit=st.integers(30, 200))
@settings(max_examples=25, deadline=None)
def test_a_column_without_values_is_never_fine(column: int, rows: int, limit: int) -> None:
    x = np.resize(X[:2000], (rows, 3)).copy()
    scores = x[:, 1].astype(float)
    if column < 3:
        x[:, column] = np.nan
    else:
        scores[:] = np.nan
    watch = watcher()
    watch.take(Observed.of(watch.bins, with_score(x, scores), 0.0, keys_of(0, rows), limit=limit))
    (report,) = watch.step(0.0)
    name = ("a", "b", "job", SCORE)[column]
    of_column = {e.name: e for e in report.evidence if e.column == name}
    assert of_column["missing"].drifted
    assert of_column["missing"].distance > 0.9
    values = of_column["chi2" if name == "job" else "ks"]
    assert (values.drifted, values.distance) == (True, 1.0)
    assert name in report.columns
    assert report.severity == (3 if name == SCORE else 2)
