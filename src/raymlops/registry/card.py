"""The model card: what a version is, made of the facts that made it (Mitchell et al. 2019). One JSON document, pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.compare.slices import MIN_ROWS
from raymlops.explain.explanation import Explanation, importances
from raymlops.gate import GateEvidence, GateReport
from raymlops.search.decision import Decision
from raymlops.search.ensemble import FAMILY

if TYPE_CHECKING:
    from raymlops.data.snapshot import DatasetSnapshot
    from raymlops.search.selection import Leaderboard, Trial

FORMAT = 1
_TRIALS, _BINS = 20, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card is made of.

    Attributes
    ----------
    rows : the version learnt from in the end, those of the gate included
    explanation : of held-out rows by the version itself
    y_test, raw_test, test : labels of the test rows, and what the gated model said before and after calibration
    parent : the champion when this version was made; ``None`` for the first
    run_id : of the search in MLflow
    created_at, data_end : seconds since 1970
    ensemble : what came of one, where it was asked for, see :class:`raymlops.loop.ensembling.Tried`
    """

    name: str
    event_id: str
    created_at: float
    data_end: float | None
    snapshot: DatasetSnapshot
    leaderboard: Leaderboard
    trial: Trial
    rows: int
    report: GateReport
    evidence: GateEvidence
    decision: Decision
    explanation: Explanation
    y_test: NDArray[Any]
    raw_test: NDArray[Any]
    test: NDArray[Any]
    parent: int | None
    run_id: str
    features: str | None
    ensemble: Mapping[str, Any] | None = None


def build_card(facts: CardFacts, package: Mapping[str, Any]) -> dict[str, Any]:
    """The card as JSON takes it; a number that is not finite is ``None``.

    Parameters
    ----------
    package : figures of the package the card lies in, as :func:`raymlops.registry.package.build_package` tells them
    """
    card = {
        "format": FORMAT,
        "name": facts.name,
        "event_id": facts.event_id,
        "created_at": facts.created_at,
        "raymlops": version_of("raymlops"),
        "task": facts.snapshot.contract.task,
        "data": _data(facts),
        "search": _search(facts),
        "gate": facts.report.to_dict(),
        "slices": [item.to_dict() for item in facts.evidence.slices],
        "explanations": _explanations(facts),
        "calibration": _calibration(facts),
        "threshold": facts.decision.threshold.to_dict() if facts.snapshot.contract.task == "binary" else None,
        "package": dict(package),
        "limits": _limits(facts, package),
        "lineage": _lineage(facts),
    }
    plain: dict[str, Any] = _plain(card)
    return plain


def _data(facts: CardFacts) -> dict[str, Any]:
    snapshot = facts.snapshot
    contract = snapshot.contract
    y = np.asarray(facts.y_test, dtype=np.float64)
    if contract.task == "regression":
        label: dict[str, Any] = {"mean": float(y.mean()), "spread": float(y.std())} if len(y) else {}
    else:
        shares = np.bincount(y.astype(int), minlength=len(contract.classes)) / max(1, len(y))
        label = {"classes": list(contract.classes), "shares": shares.tolist()}
    return {
        "snapshot": snapshot.key,
        "fingerprint": snapshot.fingerprint,
        "source": snapshot.source,
        "rows": snapshot.rows,
        "split": snapshot.split.to_dict(),
        "time": snapshot.time,
        "data_end": facts.data_end,
        "label": {"name": contract.label, **label},
        "columns": [column.to_dict() for column in contract.columns],
        "features": facts.features,
        "assessment": snapshot.assessment.to_dict(),
    }


def _search(facts: CardFacts) -> dict[str, Any]:
    board, trial = facts.leaderboard, facts.trial
    statuses = [item.status for item in board.trials]
    return {
        "metric": board.metric,
        "mode": board.mode,
        "trials": {status: statuses.count(status) for status in sorted(set(statuses))},
        "errors": dict(board.errors),
        "fit_s": sum(item.fit_s for item in board.trials),
        "ended": getattr(board, "ended", ""),
        "winner": trial.number,
        "family": trial.family,
        "params": dict(trial.params),
        "validation_score": trial.score,
        "train_score": trial.train_score,
        "test_score": facts.evidence.test_score,
        "baseline_score": facts.evidence.baseline_score,
        "leaderboard": board.to_rows()[:_TRIALS],
        "ensemble": facts.ensemble,
    }


def _explanations(facts: CardFacts) -> dict[str, Any]:
    found = facts.explanation
    return {
        "method": found.method,
        "units": found.units,
        "rows": len(found.contributions),
        "columns": [item.to_dict() for item in importances(found)],
        "permutation": [item.to_dict() for item in facts.evidence.relevance],
    }


def _calibration(facts: CardFacts) -> dict[str, Any] | None:
    if facts.snapshot.contract.task == "regression":
        return None
    return {
        **facts.decision.calibration.to_dict(),
        "reliability": {
            "before": reliability(facts.y_test, facts.raw_test),
            "after": reliability(facts.y_test, facts.test),
        },
    }


def reliability(y: NDArray[Any], p: NDArray[Any]) -> list[dict[str, float]]:
    """Predicted against observed in tenths of the rows by score; for more than two classes, of the class answered.

    Parameters
    ----------
    y, p : ``(n,)`` class indices, and ``(n,)`` or ``(n, k)`` probabilities
    """
    y, p = np.asarray(y), np.asarray(p, dtype=np.float64)
    hit = y == 1 if p.ndim == 1 else p.argmax(axis=1) == y
    said = p if p.ndim == 1 else p.max(axis=1)
    order = np.argsort(said, kind="stable")
    return [
        {"predicted": float(said[part].mean()), "observed": float(hit[part].mean()), "rows": len(part)}
        for part in np.array_split(order, _BINS)
        if len(part)
    ]


def _limits(facts: CardFacts, package: Mapping[str, Any]) -> list[str]:
    """What a reader should not expect of this version, as far as the facts tell."""
    contract, evidence = facts.snapshot.contract, facts.evidence
    said = [
        "Inputs outside the ranges seen in training are answered all the same; categories unseen in it count as missing.",
        f"Scores rest on {evidence.test_rows:,} test rows; slices of fewer than {MIN_ROWS} rows are not judged.",
        "The served model learnt from all rows, the test rows included; the scores are those of the same settings without them.",
        "Contributions say what the model makes of a column, not what the column does in the world.",
    ]
    if not facts.snapshot.split.ordered:
        said.append("The rows have no order in time: how the score holds for later rows is not known.")
    if evidence.champion_saw_rows:
        said.append("The champion it was compared with may have learnt from the test rows.")
    said += [check.message for check in facts.report.checks if check.verdict == "warn"]
    weak = [item for item in evidence.slices if item.candidate is not None and _weak(item.candidate, facts)]
    if weak:
        named = "; ".join(f"{item.name} ({item.candidate:.4f})" for item in weak[:5])
        said.append(f"No better than the best constant over all rows on: {named}.")
    if contract.task != "regression" and facts.decision.calibration.kind == "identity":
        said.append(f"Probabilities are the model's own. {facts.decision.calibration.note}".strip())
    if facts.trial.family == FAMILY:
        said.append(
            "The model is a weighted mean of several: contributions are of that mean, in probabilities or values, not of the members' log-odds."
        )
    if facts.features is not None:
        said.append("Contributions are for the columns that the features function makes, not for what a request holds.")
    if package.get("onnx"):
        said.append(f"Served by the library that trained it: {package['onnx']}.")
    return said


def _weak(score: float, facts: CardFacts) -> bool:
    return not facts.evidence.objective.better(score, facts.evidence.baseline_score)


def _lineage(facts: CardFacts) -> dict[str, Any]:
    return {
        "event_id": facts.event_id,
        "snapshot": facts.snapshot.key,
        "source": facts.snapshot.source,
        "parent": facts.parent,
        "run_id": facts.run_id,
        "rows_learnt_from": facts.rows,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
