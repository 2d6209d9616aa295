"""The gate's checks, one by one, and the sentences they say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from raymlops.compare.paired import Comparison
from raymlops.compare.relevance import Relevance
from raymlops.compare.slices import Slice
from raymlops.data.assess import CheckResult
from raymlops.errors import ConfigError, GateRefused
from raymlops.gate import Gate, GateEvidence, GateReport, evaluate
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


def check(name: str, gate: Gate, **changes: Any) -> CheckResult:
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
        ({"max_size_mb": 0}, "max_size_mb=0 would refuse every model: give megabytes, or None for no limit."),
        ({"min_certainty": 1.0}, "min_certainty=1.0 is never reached: give a share below 1."),
        ({"slice_rule": "some"}, "slice_rule='some' is not known: give 'asked', 'all' or 'none'."),
        (
            {"slices": {"old": 3}},
            "slices={'old': 3} is no mapping of names to expressions: give such as {'young': 'age < 25'}.",
        ),
    ],
)
def test_a_gate_that_cannot_work_is_refused_when_built(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(**arguments)
    assert str(caught.value) == sentence


# --- the five of practice ----------------------------------------------------------------------------


def assessed(name: str, verdict: Any, message: str = "said", advice: str = "do") -> CheckResult:
    return CheckResult(name=name, verdict=verdict, value=1.0, limit=2.0, message=message, advice=advice)


def test_the_assessment_answers_whether_the_data_are_enough_and_good() -> None:
    checks = (
        assessed("rows", "warn", "300 rows are few.", "Get more."),
        assessed("missing:a", "fail", "Column 'a' is empty.", "Drop it."),
        assessed("constant", "pass"),
    )
    enough, quality = (check(name, Gate(), assessment=checks) for name in ("enough_data", "data_quality"))
    assert (enough.verdict, enough.message, enough.advice) == ("warn", "Enough data: 300 rows are few.", "Get more.")
    assert (quality.verdict, quality.value) == ("fail", 1.0)
    assert quality.message == "The data's quality: Column 'a' is empty."
    assert [item["name"] for item in quality.evidence["checks"]] == ["missing:a"]
    fine = check("data_quality", Gate(), assessment=checks[2:])
    assert fine.message == "The data's quality: all 1 checks of the assessment passed."
    assert check("enough_data", Gate(), assessment=checks[2:]).verdict == "skipped"


def test_a_model_that_cannot_even_follow_its_own_rows_underfits() -> None:
    failed = check("underfit", Gate(), train_score=0.501, train_baseline=0.5)
    assert failed.verdict == "fail"
    assert failed.message == (
        "On the rows it learnt from, the candidate goes 0.2% of the way from the best constant (roc_auc 0.5000) to "
        "perfection: it reaches 0.5010; at least 0.5% is asked for."
    )
    assert check("underfit", Gate(min_skill=None), train_score=0.5).verdict == "skipped"
    assert check("underfit", Gate(min_skill=0.5), objective=RMSE, train_score=2.0, train_baseline=5.0).passed
    assert not check("underfit", Gate(min_skill=0.7), objective=RMSE, train_score=2.0, train_baseline=5.0).passed


IDLE = Relevance(column="b", loss=0.0, error=0.1, matters=False)
USED = Relevance(column="a", loss=1.0, error=0.1, matters=True)
SURE = Comparison(
    gain=0.1, low=0.05, high=0.2, level=0.9, certainty=0.9, method="single rows", rows=1000, replicates=500
)
UNSURE = replace(SURE, low=-0.05)


def test_columns_that_say_nothing_refuse_only_when_the_score_says_nothing_either() -> None:
    failed = check("related", Gate(), relevance=(IDLE,), against_baseline=UNSURE)
    assert failed.message == (
        "Shuffling any one column on held-out rows changes nothing, and the score cannot be told from a constant's."
    )
    assert failed.verdict == "fail"
    twins = check("related", Gate(), relevance=(IDLE, replace(IDLE, column="c")), against_baseline=SURE)
    assert (twins.verdict, twins.value) == ("warn", 0.0)
    half = check("related", Gate(), relevance=(USED, IDLE), against_baseline=UNSURE)
    assert (half.verdict, half.message) == ("pass", "1 of 2 columns matter on held-out rows; idle: b.")


# --- worth a rollout ---------------------------------------------------------------------------------


def test_the_champion_check_tells_how_sure_it_is_and_may_ask_for_more() -> None:
    said = check("champion", Gate(), champion_score=0.74, against_champion=SURE)
    assert said.passed
    assert said.message.endswith(
        "it must be better. The gain is +0.1000, 90% interval +0.0500 to +0.2000 (single rows); sure to 90%, 50% is asked for."
    )
    assert said.evidence["paired_bootstrap"]["low"] == 0.05
    assert not check("champion", Gate(min_certainty=0.95), champion_score=0.74, against_champion=SURE).passed
    assert check("champion", Gate(min_certainty=0.85), champion_score=0.74, against_champion=SURE).passed
    unknown = check("champion", Gate(min_certainty=0.85), champion_score=0.74)
    assert unknown.message.endswith("How sure that is cannot be told from these rows, and 85% is asked for.")
    assert not unknown.passed


PART = Slice(
    name="c = x", asked=False, rows=80, candidate=0.6, champion=0.8, rise=0.1, error=0.01, p_value=1e-9, worse=True
)


def test_slices_that_were_asked_for_refuse_and_others_warn_unless_told_otherwise() -> None:
    worse = {"slices": (PART,), "champion_score": 0.8}
    warned = check("slices", Gate(), **worse)
    assert (warned.verdict, warned.value) == ("warn", 1.0)
    assert warned.message == "On 1 of 1 slices the candidate is worse than the champion: c = x (80 rows, p 1.0e-09)."
    assert check("slices", Gate(slice_rule="all"), **worse).verdict == "fail"
    asked = {**worse, "slices": (replace(PART, asked=True),)}
    assert check("slices", Gate(), **asked).verdict == "fail"
    assert check("slices", Gate(slice_rule="none"), **asked).verdict == "warn"
    held = {**worse, "slices": (replace(PART, worse=False),)}
    assert check("slices", Gate(), **held).message == "On none of 1 slices the candidate is worse than the champion."
    assert check("slices", Gate(), slices=(replace(PART, p_value=None),)).verdict == "skipped"


def test_latency_says_whether_the_features_function_is_in_it() -> None:
    assert check("latency", Gate(), features_timed=True).message == (
        "p99 of one row is 2.00 ms, the features function included; at most 50 ms is allowed."
    )
    assert "without the features function" in check("latency", Gate(), features_timed=False).message


def test_size_is_limited_when_a_limit_is_set() -> None:
    assert check("size", Gate(), size_mb=3.0).message == "The package has 3.00 MB; no limit is set."
    failed = check("size", Gate(max_size_mb=2), size_mb=3.0)
    assert (failed.verdict, failed.message) == ("fail", "The package has 3.00 MB; at most 2 MB are allowed.")


def test_the_report_comes_back_whole_from_json() -> None:
    evidence = replace(
        GOOD,
        champion_score=0.8,
        against_champion=SURE,
        relevance=(USED, IDLE),
        slices=(PART,),
        assessment=(assessed("rows", "warn"),),
        size_mb=1.0,
    )
    report = evaluate(Gate(), evidence)
    again = GateReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again == report
