"""A restart at any moment changes nothing: the same reports follow, bit for bit."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.data.schema import Column, DataContract
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.registry.package import Reference

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


@given(
    cuts=st.lists(st.integers(1, 2399), max_size=8, unique=True),
    restarts=st.lists(st.booleans(), min_size=9, max_size=9),
)
@settings(max_examples=25, deadline=None)
def test_reports_do_not_depend_on_restarts(cuts: list[int], restarts: list[bool]) -> None:
    steady, restarted = watcher(), watcher()
    found: list[list[str]] = [[], []]
    for part, restart in zip(np.split(np.arange(2400), sorted(cuts)), restarts, strict=False):
        ids = [f"r{i}" for i in part]
        for told, watch in zip(found, (steady, restarted), strict=True):
            watch.observe(LIVE[part], LIVE[part, 1], part.astype(float), ids)
            watch.add_outcomes(LOSSES[part], part.astype(float))
            told += [json.dumps(report.to_dict()) for report in watch.step(float(part[-1]))]
        if restart:
            state = json.dumps(restarted.state_dict())
            assert len(state) < 1_000_000
            restarted = watcher()
            restarted.load_state(json.loads(state))
    assert found[0] == found[1]
    assert len(found[0]) >= 6
    assert json.dumps(steady.state_dict()) == json.dumps(restarted.state_dict())
