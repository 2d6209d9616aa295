"""What the monitor's figures mean for one endpoint, kept over versions and crashes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from raymlops.data.schema import learn_contract
from raymlops.monitor.attribution import LossParts, Suspect
from raymlops.monitor.evidence import Evidence
from raymlops.monitor.examine import Examination
from raymlops.monitor.insight import Insight
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis, Guilt
from raymlops.registry.package import Reference
from raymlops.search.probe import Probe
from raymlops.testing.packages import table

FRAME = table(2000)
CONTRACT = learn_contract(FRAME, "y")
X, Y = CONTRACT.encode(FRAME), CONTRACT.encode_label(FRAME.y)
ROWS = X[:0]  # none has come one by one
MOVED = Evidence(
    name="ks", column="a", statistic=0.4, p_value=1e-9, limit=1e-4, drifted=True, distance=0.3, effective_rows=500.0
)
WINDOW = DriftReport(
    window=3,
    version=1,
    rows=1000,
    from_at=10.0,
    to_at=20.0,
    severity=2,
    evidence=(MOVED,),
    columns=("a",),
    reference_loss=0.1,
    loss_limit=0.12,
)
HARM = replace(
    WINDOW, kind="outcomes", rows=0, severity=4, harm=True, may_retrain=True, evidence=(), columns=(), loss=0.3
)


PROBE = Probe(gain=0.1, standard_error=0.01, gains=True, rows=100, note="", loss=0.1)


def score(x: Any) -> Any:
    return 1 / (1 + np.exp(-2 * np.nan_to_num(x).sum(axis=1)))


def following(version: int = 1) -> Insight:
    scores = score(X)
    reference = Reference(columns=CONTRACT.names, x=X, scores=scores, losses=(scores - Y) ** 2, ordered=True)
    insight = Insight(Monitor(second_opinion="off"))
    baseline = Watcher(Monitor(second_opinion="off"), reference, CONTRACT, version).baseline
    insight.follow(version, reference, CONTRACT, score, baseline)
    return insight


def test_harm_told_between_two_windows_is_diagnosed_with_what_the_newest_window_showed() -> None:
    insight = following()
    insight.look(WINDOW, ROWS)
    told = insight.look(HARM, ROWS)
    assert (told.evidence, told.columns, told.harm) == ((MOVED,), ("a",), True)
    assert insight.diagnosis is not None
    assert insight.diagnosis.kind == "covariate_shift"
    assert [item.column for item in insight.diagnosis.guilty] == ["a"]
    alone = following().look(HARM, ROWS)
    assert alone.evidence == ()


def test_rows_that_lack_a_column_are_a_veto_before_their_window_is_full() -> None:
    insight = following()
    x = X[:300].copy()
    insight.look(HARM, x)
    assert insight.diagnosis is not None
    assert insight.diagnosis.kind == "concept_shift"
    x[-100:-60, 1] = np.nan
    insight.look(HARM, x)
    assert insight.diagnosis.veto
    assert insight.diagnosis.note == "values went missing: b (40 of the newest 100 rows)"


def test_a_probes_parts_name_the_kind_until_the_harm_is_over() -> None:
    insight = following()
    parts = LossParts(rise=0.2, covariate=0.15, prior=0.0, concept=0.05, effective=300.0)
    report = insight.look(replace(HARM, evidence=(MOVED,), columns=("a",)), ROWS)
    insight.examined(Examination(probe=PROBE, parts=parts), report, ROWS)
    assert insight.diagnosis is not None
    assert (insight.diagnosis.kind, insight.diagnosis.covariate) == ("covariate_shift", 0.15)
    insight.look(replace(WINDOW, window=4, evidence=(), columns=(), severity=0), ROWS)
    assert (insight.diagnosis.kind, insight.diagnosis.covariate) == ("none", None)
    insight.look(HARM, ROWS)
    assert insight.diagnosis.covariate is None


def test_of_a_changed_concept_the_columns_it_changed_along_are_guilty_although_none_moved() -> None:
    insight = following()
    parts = LossParts(rise=0.2, covariate=0.0, prior=0.0, concept=0.2, effective=300.0)
    found = Examination(probe=PROBE, parts=parts, suspects=(Suspect(column="b", share=0.3),))
    insight.examined(found, insight.look(replace(HARM, evidence=(MOVED,), columns=("a",)), ROWS), ROWS)
    assert insight.diagnosis is not None
    assert [(item.column, item.what) for item in insight.diagnosis.guilty] == [("b", "concept"), ("a", "ks")]
    assert insight.diagnosis.note.endswith("the champion is wrong along b")


def test_windows_are_kept_small_and_survive_a_crash() -> None:
    insight = following()
    many = tuple(replace(MOVED, column=f"c{i}", distance=0.01 * (i + 1)) for i in range(30))
    for number in range(300):
        insight.look(replace(WINDOW, window=number, evidence=many), ROWS)
    insight.look(HARM, ROWS)  # no window
    again = Insight(Monitor(second_opinion="off"))
    again.load(json.loads(json.dumps(insight.to_dict())))
    assert again.to_dict() == insight.to_dict()
    assert len(again.windows) == 120
    assert again.windows[-1]["window"] == 299
    assert list(again.windows[-1]["moved"]) == [f"c{i}" for i in range(29, 21, -1)]
    assert again.windows[-1]["kind"] == "covariate_shift"


def test_a_diagnosis_survives_its_json_form() -> None:
    guilt = Guilt(column="a", distance=0.2, importance=1.5, weight=0.3, what="wasserstein")
    found = Diagnosis(kind="broken_data", note="values went missing: a", guilty=(guilt,), concept=0.4)
    assert Diagnosis.from_dict(json.loads(json.dumps(found.to_dict()))) == found
