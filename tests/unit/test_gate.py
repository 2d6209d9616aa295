"""The gate's checks, one by one, and the sentences they say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from raymlops.errors import ConfigError, GateRefused
from raymlops.gate import Check, Gate, GateEvidence, evaluate
from raymlops.search.objective import Objective

AUC = Objective.of("roc_auc", "binary")
RMSE = Objective.of("rmse", "regression")
GOOD = GateEvidence(
    objective=AUC,
    train_score=0.9,
    validation_score=0.85,
    test_score=0.84,
    baseline_score=0.5,
    test_rows=1000,
    p99_ms=2.0,
)


def check(name: str, gate: Gate, **changes: Any) -> Check:
    report = evaluate(gate, replace(GOOD, **changes))
    return next(item for item in report.checks if item.name == name)


def test_a_good_first_candidate_passes_and_every_check_is_in_the_report() -> None:
    report = evaluate(Gate(min_score=0.8), GOOD)
    assert report.passed
    assert [item.name for item in report.checks] == [
        "enough_data",
        "data_quality",
        "overfit",
        "underfit",
        "related",
        "score",
        "baseline",
        "champion",
        "slices",
        "latency",
        "size",
    ]
    assert {item.name for item in report.checks if item.verdict == "pass"} == {
        "overfit",
        "underfit",
        "score",
        "baseline",
        "latency",
    }
    assert {item.verdict for item in report.checks} == {"pass", "skipped"}
    report.require()


def test_the_score_must_reach_the_minimum_in_the_metrics_direction() -> None:
    failed = check("score", Gate(min_score=0.9))
    assert (failed.verdict, failed.value, failed.limit) == ("fail", 0.84, 0.9)
    assert failed.message == "roc_auc is 0.8400 on 1000 test rows; at least 0.9 is asked for."
    assert check("score", Gate(min_score=0.84)).passed
    assert check("score", Gate(min_score=3.0), objective=RMSE, test_score=2.0, baseline_score=5.0).passed
    assert not check("score", Gate(min_score=1.0), objective=RMSE, test_score=2.0, baseline_score=5.0).passed


def test_a_score_that_is_not_defined_fails_without_a_minimum_too() -> None:
    failed = check("score", Gate(), test_score=float("nan"))
    assert not failed.passed
    assert (
        failed.message
        == "roc_auc is not defined on the 1000 test rows: one class only, or predictions that are not finite."
    )


def test_over_fitting_is_limited() -> None:
    failed = check("overfit", Gate(max_gap=0.1), train_score=1.0)
    assert failed.message == (
        "Over-fitting is 0.150 (roc_auc 1.0000 on train, 0.8500 on validation rows); at most 0.1 is allowed."
    )
    assert check("overfit", Gate(), train_score=1.0).passed
    assert check("overfit", Gate(max_gap=None), train_score=1.0).verdict == "skipped"
    assert not check("overfit", Gate(), train_score=float("nan")).passed


def test_a_constant_must_be_beaten() -> None:
    assert not check("baseline", Gate(), test_score=0.5).passed
    assert check("baseline", Gate(beat_baseline=False), test_score=0.5).verdict == "skipped"


def test_an_equal_model_does_not_replace_the_champion() -> None:
    assert check("champion", Gate(), champion_score=0.83).passed
    equal = check("champion", Gate(), champion_score=0.84)
    assert (
        equal.message == "roc_auc is 0.8400, and the champion reaches 0.8400 on the same 1000 rows; it must be better."
    )
    assert not equal.passed
    assert not check("champion", Gate(min_gain=0.02), champion_score=0.83).passed
    assert check("champion", Gate(), objective=RMSE, test_score=1.0, champion_score=1.1).passed


def test_a_champion_that_saw_the_rows_is_noted() -> None:
    noted = check("champion", Gate(), champion_score=0.9, champion_saw_rows=True)
    assert noted.message.endswith("it must be better. The champion may have learnt from these rows, which flatters it.")


def test_a_champion_without_a_score_is_beaten_by_any() -> None:
    assert check("champion", Gate(), champion_score=float("nan")).passed
    assert not check("champion", Gate(), champion_score=float("nan"), test_score=float("nan")).passed


def test_latency_is_limited_when_it_was_measured() -> None:
    failed = check("latency", Gate(max_p99_ms=1.0))
    assert failed.message == "p99 of one row is 2.00 ms; at most 1 ms is allowed."
    assert check("latency", Gate(), p99_ms=None).verdict == "skipped"


def test_a_refusal_names_every_reason_and_carries_the_evidence_as_json() -> None:
    report = evaluate(Gate(min_score=0.9, max_p99_ms=1.0), replace(GOOD, champion_score=float("inf")))
    with pytest.raises(GateRefused) as caught:
        report.require()
    assert str(caught.value) == (
        "The gate refused the candidate: roc_auc is 0.8400 on 1000 test rows; at least 0.9 is asked for. "
        "p99 of one row is 2.00 ms; at most 1 ms is allowed."
    )
    assert json.loads(json.dumps(caught.value.details, allow_nan=False))["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_gap": -0.1}, "max_gap=-0.1 cannot be negative."),
        ({"min_gain": None}, "min_gain=None is no limit: give a finite number."),
        ({"min_score": float("nan")}, "min_score=nan is no limit: give a finite number."),
        ({"max_p99_ms": 0}, "max_p99_ms=0 would refuse every model: give milliseconds, or None for no limit."),
        ({"min_score": "high"}, "min_score='high' is no limit: give a finite number."),
        ({"beat_baseline": 1}, "beat_baseline=1 is neither True nor False."),
    ],
)
def test_a_gate_that_cannot_work_is_refused_when_built(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(**arguments)
    assert str(caught.value) == sentence
