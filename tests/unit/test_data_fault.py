"""A column goes null: labels tell of harm before the window is full whose rows tell why. No retraining may come of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymlops.data.schema import learn_contract
from raymlops.monitor.insight import Insight
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.report import DriftReport
from raymlops.registry.package import Reference
from raymlops.testing.packages import table


def reports(values: np.ndarray[Any, Any], loss: float) -> tuple[Insight, DriftReport]:
    """What is said of 100 rows of an open window whose labels say that something is wrong."""
    learnt = table(1000)
    x = learnt[["a", "b"]].to_numpy(dtype=np.float32)
    rng = np.random.default_rng(0)
    scores = rng.random(1000)
    reference = Reference(columns=("a", "b"), x=x, scores=scores, losses=np.full(1000, 0.1), ordered=False)
    contract, spec = learn_contract(learnt, "y"), Monitor(window_rows=1000, second_opinion="off")
    watcher, insight = Watcher(spec, reference, contract, 1), Insight(spec)
    insight.follow(1, reference, contract, lambda rows: rng.random(len(rows)), watcher.baseline)
    watcher.observe(values, scores[:100], np.arange(100.0))
    watcher.add_outcomes(np.full(100, loss), np.arange(100.0))
    (report,) = watcher.step(200.0)
    insight.look(report, watcher.newest)
    return insight, report


def test_harm_with_a_column_gone_is_broken_data_and_a_veto() -> None:
    values = table(100, seed=1)[["a", "b"]].to_numpy(dtype=np.float32)
    values[30:, 1] = np.nan
    insight, report = reports(values, 0.9)
    assert (report.kind, report.harm, report.evidence) == ("outcomes", True, ())
    assert insight.diagnosis is not None
    assert insight.diagnosis.veto
    assert insight.diagnosis.note == "values went missing: b (70 of the newest 100 rows)"


def test_harm_with_every_column_there_is_none() -> None:
    values = table(100, seed=1)[["a", "b"]].to_numpy(dtype=np.float32)
    values[:3, 1] = np.nan  # some are always missing somewhere
    insight, report = reports(values, 0.9)
    assert report.kind == "outcomes"
    assert insight.diagnosis is not None
    assert insight.diagnosis.kind == "concept_shift"
