"""What kind of trouble it is: a confusion table over synthetic streams, and the rules one by one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from raymlops.data.schema import learn_contract
from raymlops.errors import DataError
from raymlops.monitor.attribution import loss_parts, mix_of, score_importance
from raymlops.monitor.evidence import Evidence
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.quality import row_losses
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import triage
from raymlops.registry.package import Reference
from raymlops.serving.analysis import VariantStats

NAMES = ("a", "b", "segment")
ROWS = 3000


def world(kind: str, rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Rows, labels, and scores of a model that is right before any change; ``segment`` sets where ``a`` and ``b`` lie."""
    rng = np.random.default_rng(seed)
    shares = [0.1, 0.1, 0.8] if kind == "traffic_mix" else [0.5, 0.3, 0.2]
    segment = rng.choice(3, size=rows, p=shares)
    a, b = rng.normal(segment * 1.0, 1.0), rng.normal(-segment * 0.5, 1.0)
    if kind == "covariate_shift":
        a, b = a + 1.5, b - 1.0
    logit = 1.5 * a + b - 1.0

    def positive(logit: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-logit))

    truth = positive(-logit if kind == "concept_shift" else logit + 2.5 if kind == "prior_shift" else logit)
    y = (rng.random(rows) < truth).astype(float)
    x = np.column_stack((a, b, segment)).astype(np.float32)
    # The model is worst far from where it learnt: inputs that move there cost something.
    scores = np.where(np.abs(a) > 2.5, 0.5, positive(logit))
    if kind == "broken_data":
        x[rng.random(rows) < 0.4, 0] = np.nan
    return x, y, scores


def diagnose(kind: str, seed: int) -> str:
    reference_x, reference_y, reference_scores = world("none", ROWS, seed)
    x, y, scores = world(kind, ROWS, seed + 1000)
    losses = row_losses("binary", reference_y, reference_scores)
    frame = pd.DataFrame(reference_x, columns=list(NAMES)).assign(
        segment=reference_x[:, 2].astype(int).astype(str), y=reference_y.astype(int)
    )
    contract = learn_contract(frame, "y")
    reference = Reference(columns=NAMES, x=reference_x, scores=reference_scores, losses=losses, ordered=False)
    watcher = Watcher(Monitor(window_rows=ROWS, second_opinion="off"), reference, contract, 1)
    watcher.observe(x, scores, np.arange(ROWS))
    watcher.add_outcomes(row_losses("binary", y, scores), np.arange(ROWS))
    report = next(item for item in watcher.step(float(ROWS)) if item.kind == "window")
    parts = loss_parts(
        reference_x, losses, x, y, scores, task="binary", reference_rate=float(reference_y.mean()), seed=seed
    )
    mix = mix_of(reference_x, x, NAMES, report.columns, {2: 3})
    return triage(report, parts=parts, mix=mix).kind


def test_the_confusion_table_over_synthetic_streams() -> None:
    kinds = ("none", "covariate_shift", "prior_shift", "concept_shift", "traffic_mix", "broken_data")
    table = {kind: Counter(diagnose(kind, seed) for seed in range(5)) for kind in kinds}
    assert {kind: row[kind] for kind, row in table.items()} == dict.fromkeys(kinds, 5), table


REPORT = DriftReport(
    window=3, version=1, rows=1000, from_at=0, to_at=1, severity=0, reference_loss=0.1, loss_limit=0.12
)


def item(name: str, column: str, statistic: float, distance: float) -> Evidence:
    return Evidence(
        name=name, column=column, statistic=statistic, p_value=0.0, limit=1e-4, drifted=True, distance=distance
    )


def test_columns_are_ranked_by_distance_times_importance() -> None:
    report = replace(
        REPORT,
        severity=2,
        columns=("far", "near"),
        evidence=(item("ks", "far", 0.5, 0.6), item("ks", "near", 0.2, 0.2), item("missing", "near", 0.01, 0.01)),
    )
    diagnosis = triage(report, importance={"far": 0.01, "near": 0.99})
    assert diagnosis.kind == "covariate_shift"
    assert [guilt.column for guilt in diagnosis.guilty] == ["near", "far"]
    assert json.loads(json.dumps(diagnosis.to_dict()))["veto"] is False


@pytest.mark.parametrize(
    ("statistic", "distance", "before", "broken"),
    [
        (0.4, 0.4, 0.0, True),
        (0.02, 0.01, 0.0, False),
        (-0.4, 0.4, 0.5, False),
        (0.1, 0.1, 0.3, False),
        (0.5, 0.5, 0.3, True),
    ],
)
def test_which_missing_values_are_a_fault(statistic: float, distance: float, before: float, broken: bool) -> None:
    report = replace(REPORT, severity=2, columns=("a",), evidence=(item("missing", "a", statistic, distance),))
    diagnosis = triage(report, missing_before={"a": before})
    assert (diagnosis.kind == "broken_data") == diagnosis.veto == broken
    assert not triage(report, missing_before={"a": before}, categories=("a",)).veto


def test_a_serving_fault_is_found_before_all_else() -> None:
    report = replace(REPORT, severity=4, harm=True, evidence=(item("missing", "a", 0.9, 0.9),), columns=("a",))
    diagnosis = triage(report, stats=VariantStats(requests=200, errors=60, nonfinite=60))
    assert (diagnosis.kind, diagnosis.veto) == ("serving_fault", True)
    assert diagnosis.note == "60 of 200 requests had no usable answer (60 not finite)"
    assert triage(report, stats=VariantStats(requests=10, errors=1)).kind == "broken_data"


def test_parts_sum_to_the_rise_and_need_rows() -> None:
    x, y, scores = world("none", ROWS, 1)
    losses = row_losses("binary", y, scores)
    parts = loss_parts(x, losses, *world("concept_shift", ROWS, 2), task="binary", reference_rate=float(y.mean()))
    assert parts.rise == pytest.approx(parts.covariate + parts.prior + parts.concept)
    assert parts.concept > 0.8 * parts.rise > 0
    with pytest.raises(DataError, match="at least 100 rows a side, not 3000 and 50"):
        loss_parts(x, losses, x[:50], y[:50], scores[:50], task="binary")


def test_importance_tells_the_columns_that_move_the_score() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    found = score_importance(lambda rows: 3 * rows[:, 0] + rows[:, 1], x, NAMES)
    assert found["a"] > 2 * found["b"] > found["segment"] == 0.0
