"""What stops a hopeless run before training, and what only warns."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest

from raymlops.data.assess import QUICK_MODELS, Assess, Assessment, CheckResult, require
from raymlops.data.assess import assess as assess_all
from raymlops.data.schema import learn_contract
from raymlops.errors import AssessmentFailed

# What quick models find is in tests/property/test_assess_tables.py.
assess = partial(assess_all, spec=Assess().without(*QUICK_MODELS))


@pytest.fixture
def good() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3))
    y = (x[:, 0] + rng.normal(size=600) > 0).astype(int)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": rng.choice(["u", "v"], 600), "y": y})


def named(assessment: Assessment, name: str) -> CheckResult:
    return next(check for check in assessment.checks if check.name == name)


def test_clean_data_passes_and_survives_json(good: pd.DataFrame) -> None:
    assessment = assess_all(good, learn_contract(good, "y"))
    assert assessment.passed
    assert not assessment.failures
    assert {check.verdict for check in assessment.checks} == {"pass"}
    assert Assessment.from_dict(json.loads(json.dumps(assessment.to_dict()))) == assessment
    require(assessment)


def test_too_few_rows(good: pd.DataFrame) -> None:
    assessment = assess(good.head(150), "y")
    assert named(assessment, "leak").verdict == "skipped"
    with pytest.raises(AssessmentFailed, match="There are 150 rows; at least 200 are needed") as caught:
        require(assessment)
    assert caught.value.details["checks"][0]["name"] == "rows"


def test_one_class_and_a_rare_class(good: pd.DataFrame) -> None:
    with pytest.raises(AssessmentFailed, match="The label 'y' holds one class only: 1"):
        require(assess(good.assign(y=1), "y", task="binary"))
    rare = good.assign(y=np.r_[np.ones(5, int), np.zeros(595, int)])
    with pytest.raises(AssessmentFailed, match="Class 1 of 'y' has 5 rows; at least 20 of each class"):
        require(assess(rare, "y"))


def test_a_missing_label_and_a_missing_time(good: pd.DataFrame) -> None:
    with pytest.raises(AssessmentFailed, match="The label 'y' is missing in 1 rows"):
        require(assess(good.assign(y=good.y.where(good.index > 0)), "y"))
    late = good.assign(t=pd.Series(pd.date_range("2026", periods=600, freq="h")).where(good.index > 1))
    with pytest.raises(AssessmentFailed, match="The time 't' is missing or unreadable in 2 rows"):
        require(assess(late, "y", "t"))


def test_empty_columns(good: pd.DataFrame) -> None:
    holes = good.assign(half=good.a.where(good.index % 10 < 4), none=good.a.where(good.index < 10))
    assessment = assess(holes, "y")
    assert named(assessment, "missing:half").verdict == "warn"
    assert "Column 'none' is missing in 98.3% of the rows." in named(assessment, "missing:none").message
    assert assessment.passed
    only_holes = good.assign(
        **{name: good[name].where(good.index < 10) for name in good.columns if name not in ("y", "t")}
    )
    with pytest.raises(AssessmentFailed, match="Every column is missing in more than 95% of the rows"):
        require(assess(only_holes, "y", "t" if "t" in good else None))


def test_constants(good: pd.DataFrame) -> None:
    assert named(assess(good.assign(k=1), "y"), "constant").verdict == "warn"
    constant = pd.DataFrame({"k": 1, "m": "x", "y": good.y})
    with pytest.raises(AssessmentFailed, match="Every column is constant: 'k', 'm'"):
        require(assess(constant, "y"))


def test_duplicates_warn(good: pd.DataFrame) -> None:
    assessment = assess(pd.concat([good, good.assign(a2=good.a)]).assign(a2=lambda f: f.a), "y")
    assert named(assessment, "duplicate_rows").verdict == "warn"
    assert "'a' and 'a2'" in named(assessment, "duplicate_columns").message
    assert assessment.passed


@pytest.mark.parametrize("make", ["equal", "noisy", "text"])
def test_a_leaking_column_is_named(good: pd.DataFrame, make: str) -> None:
    rng = np.random.default_rng(1)
    leaks = {
        "equal": good.y,
        "noisy": good.y * 5.0 + rng.uniform(0, 1, len(good)),
        "text": good.y.map({0: "open", 1: "closed"}),
    }
    with pytest.raises(AssessmentFailed, match=r"Column 'answer' alone predicts the label 'y'.*drop=\('answer',\)"):
        require(assess(good.assign(answer=leaks[make]), "y"))


def test_leaks_in_regression_and_multiclass(good: pd.DataFrame) -> None:
    price = good.assign(y=good.a * 3 + good.b)
    assert assess(price, "y").passed
    cents = assess(price.assign(cents=price.y * 100 + 7), "y")
    assert [check.name for check in cents.failures] == ["leak:cents"]
    grades = good.assign(y=pd.cut(good.a, [-9, -0.5, 0.5, 9], labels=["low", "mid", "high"]).astype(str))
    assert assess(grades.drop(columns="a"), "y").passed
    coded = grades.assign(code=grades.y.map({"low": 3, "mid": 1, "high": 2}))
    assert [check.name for check in assess(coded.drop(columns="a"), "y").failures] == ["leak:code"]
