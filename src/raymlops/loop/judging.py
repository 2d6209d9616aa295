"""What the gate looks at, measured: the candidate and the champion on the same test rows. No Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raymlops.compare.paired import best_constant, compare
from raymlops.compare.relevance import relevance
from raymlops.compare.slices import asked_masks, found_masks, judge_slices
from raymlops.data.schema import Column, DataContract
from raymlops.data.served import ARRIVED
from raymlops.data.snapshot import Arrays, DatasetSnapshot
from raymlops.errors import ContractViolation
from raymlops.explain.explainers import explainer_for
from raymlops.explain.explanation import Explanation
from raymlops.gate import Gate, GateEvidence
from raymlops.monitor.quality import row_losses
from raymlops.registry.package import REFERENCE_ROWS, Reference
from raymlops.registry.version import ModelVersion
from raymlops.search.decision import Decision
from raymlops.search.estimators import Estimator
from raymlops.search.probe import held_out_predictions
from raymlops.search.selection import SearchResult
from raymlops.serving.predictor import Predictor, measure_latency

# What a request may hold for a column of whose values nothing is known: a text that is also a time.
_STANDS_FOR: dict[str, Any] = {"number": 1.0, "integer": 1, "boolean": True, "category": "2026-01-31 12:00:00"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """The champion on the candidate's test rows: what it said, by its own threshold for a metric of decisions.

    ``saw`` tells that it may have learnt from some of them.
    """

    prediction: NDArray[np.float64]
    saw: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """p99 of one row in milliseconds, and whether the ``features`` function's time is in it (``None``: there is none)."""

    p99_ms: float
    features_timed: bool | None


def measure(
    gate: Gate,
    result: SearchResult,
    snapshot: DatasetSnapshot,
    arrays: Arrays,
    decision: Decision,
    *,
    test_frame: pd.DataFrame,
    rival: Rival | None,
    timing: Timing,
    size_mb: float,
) -> GateEvidence:
    """All evidence for :func:`raymlops.gate.evaluate`.

    Parameters
    ----------
    test_frame : the test rows as the snapshot holds them, for the slices that the gate names
    """
    objective, ordered, contract = result.problem.objective, snapshot.split.ordered, snapshot.contract

    def said(x: NDArray[np.float32]) -> NDArray[np.float64]:
        return decision.for_metric(objective, decision.apply(result.estimator.predict(x)))

    y, candidate = arrays.y_test, said(arrays.x_test)
    champion = None if rival is None else rival.prediction
    columns = relevance(objective, said, arrays.x_test, y, contract.names, ordered=ordered, seed=result.problem.seed)
    masks = found_masks(contract, arrays.x_test, [item.column for item in columns])
    constant = best_constant(objective, contract.task, arrays.y_train, y)
    return GateEvidence(
        objective=objective,
        train_score=result.trial.train_score,
        validation_score=result.trial.score,
        train_baseline=objective.baseline(arrays.y_train, arrays.y_train),
        test_score=objective.score(y, candidate),
        baseline_score=objective.baseline(arrays.y_train, y),
        champion_score=None if champion is None else objective.score(y, champion),
        champion_saw_rows=rival is not None and rival.saw,
        against_champion=None
        if champion is None
        else compare(objective, y, candidate, champion, task=contract.task, ordered=ordered, min_gain=gate.min_gain),
        against_baseline=compare(objective, y, candidate, constant, task=contract.task, ordered=ordered),
        assessment=snapshot.assessment.checks,
        relevance=columns,
        slices=judge_slices(
            objective, y, candidate, champion, masks, asked=asked_masks(gate.slices, test_frame), ordered=ordered
        ),
        test_rows=len(y),
        p99_ms=timing.p99_ms,
        features_timed=timing.features_timed,
        size_mb=size_mb,
    )


def time_one_row(predictor: Predictor, x: NDArray[np.float32], sent: Mapping[str, Any] | None = None) -> Timing:
    """How long the package takes to answer one row.

    Without a ``features`` function the row is an encoded one turned back into a request's. With one, it is ``sent``, a row that
    was served; else one made of the encoded row where that still holds a raw column, and of plain values where not. When
    the function does not take such a row, its time is left out and the timing says so.

    Parameters
    ----------
    x : ``(n_features,)`` float32, a test row
    """
    row = predictor.contract.decode_row(x)
    if predictor.features is None:
        try:
            predictor.encode([row])
        except ContractViolation:
            # A rule over exact values does not survive the way through float32: the matrix is timed instead of the row.
            return Timing(p99_ms=measure_latency(predictor, x.reshape(1, -1)), features_timed=None)
        return Timing(p99_ms=measure_latency(predictor, row), features_timed=None)
    for given in (sent, raw_row(predictor.raw or (), predictor.contract, row)):
        if given is None:
            continue
        try:
            predictor.encode([given])
        except ContractViolation:
            continue
        return Timing(p99_ms=measure_latency(predictor, given), features_timed=True)
    return Timing(p99_ms=measure_latency(predictor, x.reshape(1, -1)), features_timed=False)


def raw_row(columns: tuple[Column, ...], contract: DataContract, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A request row for the columns a ``features`` function takes; ``None`` when they are not known."""
    kinds = {column.name: column.kind for column in contract.columns}
    made = {
        column.name: row[column.name]
        if kinds.get(column.name) == column.kind and row[column.name] is not None
        else _STANDS_FOR[column.kind]
        for column in columns
    }
    return made or None


def served_row(served: pd.DataFrame) -> dict[str, Any] | None:
    """The newest row, as a JSON request holds it."""
    if not len(served):
        return None
    row: dict[str, Any] = json.loads(served.tail(1).to_json(orient="records", date_format="iso"))[0]
    return row


def held_out(
    snapshot: DatasetSnapshot,
    arrays: Arrays,
    result: SearchResult,
    decision: Decision,
    unseen: NDArray[np.floating[Any]] | None = None,
) -> Reference:
    """The held-out rows in time order, with what a model says of them that has not learnt from them: what a package keeps for
    the monitor. ``unseen`` as in :func:`held_out_predictions`."""
    x = np.concatenate([arrays.x_validation, arrays.x_test])[-REFERENCE_ROWS:]
    y = np.concatenate([arrays.y_validation, arrays.y_test])[-REFERENCE_ROWS:]
    prediction = decision.apply(held_out_predictions(result, arrays, unseen))[-REFERENCE_ROWS:]
    task = snapshot.contract.task
    scores = prediction.argmax(axis=1).astype(float) if task == "multiclass" else prediction
    return Reference(
        columns=snapshot.contract.names,
        x=x,
        scores=scores,
        losses=row_losses(task, y, scores),
        ordered=snapshot.split.ordered,
    )


def explained(estimator: Estimator, contract: DataContract, reference: Reference) -> Explanation:
    """Held-out rows explained for a card; as many as take a second or two, spread over the reference."""
    explainer = explainer_for(estimator, contract, reference.x)
    count = min(len(reference.x), max(20, explainer.most_rows // 5 if explainer.costly else explainer.most_rows))
    return explainer.explain(reference.x[np.linspace(0, len(reference.x) - 1, count).astype(int)])


def may_have_seen(version: ModelVersion, snapshot: DatasetSnapshot, arrays: Arrays) -> bool:
    """Whether a version may have learnt from the test rows; the same answer for every row it cannot rule out."""
    if arrays.time_test is None:
        return True
    oldest = float(np.min(arrays.time_test))
    if version.tags.get("time") == (snapshot.time or ""):
        return version.data_end is None or oldest <= version.data_end
    # Served rows carry the wall time of their arrival: what arrived after a version was made is new to it.
    return snapshot.time != ARRIVED or oldest <= version.created_at
