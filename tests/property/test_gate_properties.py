"""What holds of the gate for every candidate."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from raymlops.compare.paired import Comparison
from raymlops.gate import Gate, GateEvidence, GateReport, evaluate
from raymlops.search.objective import METRICS, Objective

SCORE = st.floats(min_value=-1e6, max_value=1e6) | st.just(float("nan"))
OBJECTIVES = st.sampled_from(
    [
        Objective.of(metric, task)
        for metric in METRICS
        for task in (("regression",) if metric in ("rmse", "mae", "r2") else ("binary",))
    ]
)
GATES = st.builds(
    Gate,
    min_score=st.none() | st.floats(-1e3, 1e3),
    max_gap=st.none() | st.floats(0, 1),
    max_p99_ms=st.none() | st.floats(0.1, 1e3),
    min_gain=st.floats(0, 1),
    beat_baseline=st.booleans(),
    min_certainty=st.floats(0, 0.99),
    min_skill=st.none() | st.floats(0, 1),
)
COMPARISONS = st.builds(
    Comparison,
    gain=st.floats(-1, 1),
    low=st.floats(-1, 1),
    high=st.floats(-1, 1),
    level=st.just(0.9),
    certainty=st.floats(0, 1),
    method=st.just("single rows"),
    rows=st.integers(1, 100),
    replicates=st.integers(50, 500),
)
EVIDENCE = st.builds(
    GateEvidence,
    objective=OBJECTIVES,
    train_score=SCORE,
    validation_score=SCORE,
    test_score=SCORE,
    baseline_score=SCORE,
    champion_score=st.none() | SCORE,
    champion_saw_rows=st.booleans(),
    train_baseline=st.none() | SCORE,
    against_champion=st.none() | COMPARISONS,
    against_baseline=st.none() | COMPARISONS,
    test_rows=st.integers(0, 10**6),
    p99_ms=st.none() | st.floats(0, 1e4),
)


@settings(deadline=None)
@given(gate=GATES, evidence=EVIDENCE)
def test_it_passes_exactly_when_no_check_fails_and_the_report_is_json(gate: Gate, evidence: GateEvidence) -> None:
    report = evaluate(gate, evidence)
    assert report.passed == all(check.verdict != "fail" for check in report.checks)
    assert evaluate(gate, evidence) == report
    assert GateReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


@settings(deadline=None)
@given(gate=GATES, evidence=EVIDENCE)
def test_a_candidate_that_passes_is_strictly_better_than_the_champion(gate: Gate, evidence: GateEvidence) -> None:
    if evidence.champion_score is not None and evaluate(gate, evidence).passed:
        assert evidence.objective.better(evidence.test_score, evidence.champion_score)


@settings(deadline=None)
@given(gate=GATES, evidence=EVIDENCE)
def test_no_candidate_replaces_itself(gate: Gate, evidence: GateEvidence) -> None:
    assert not evaluate(gate, replace(evidence, champion_score=evidence.test_score)).passed


@settings(deadline=None)
@given(gate=GATES, evidence=EVIDENCE, step=st.floats(1e-3, 1e3))
def test_a_better_test_score_never_turns_a_pass_into_a_refusal(gate: Gate, evidence: GateEvidence, step: float) -> None:
    better = evidence.test_score + (step if evidence.objective.mode == "max" else -step)
    if evaluate(gate, evidence).passed:
        assert evaluate(gate, replace(evidence, test_score=better)).passed
