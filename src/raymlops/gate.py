"""The checks a candidate must pass before it may be registered, each with its number and its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymlops.errors import ConfigError, GateRefused
from raymlops.search.objective import Objective

if TYPE_CHECKING:
    from raymlops.data.assess import CheckResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a candidate must reach.

    Attributes
    ----------
    min_score : at least this good on the test rows (at most this much, for a loss); ``None`` asks for nothing
    max_gap : over-fitting allowed, from 0 to 1 (:meth:`raymlops.search.objective.Objective.gap`); ``None`` allows all.
        The default lets ordinary forests and boosted trees pass and stops a model that knows its training rows by heart
    max_p99_ms : p99 of answering one row, in milliseconds; ``None`` allows all
    min_gain : how much better than the champion on the same test rows, in units of the metric. The candidate must be
        better by *more* than this: an equal model is not worth a rollout
    beat_baseline : must be better than the best constant prediction

    Raises
    ------
    ConfigError : when built, naming the field
    """

    min_score: float | None = None
    max_gap: float | None = 0.3
    max_p99_ms: float | None = 50.0
    min_gain: float = 0.0
    beat_baseline: bool = True

    def __post_init__(self) -> None:
        for name in ("min_score", "max_gap", "max_p99_ms", "min_gain"):
            value = getattr(self, name)
            if value is None and name != "min_gain":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name}={value!r} is no limit: give a finite number.")
            if name != "min_score" and value < 0:
                raise ConfigError(f"{name}={value!r} cannot be negative.")
        if self.max_p99_ms == 0:
            raise ConfigError("max_p99_ms=0 would refuse every model: give milliseconds, or None for no limit.")
        if not isinstance(self.beat_baseline, bool):
            raise ConfigError(f"beat_baseline={self.beat_baseline!r} is neither True nor False.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEvidence:
    """What was measured.

    Attributes
    ----------
    train_score, validation_score : of the winning trial, for the gap
    test_score : of the candidate, on rows that neither the search nor the fit has seen
    baseline_score, champion_score : on those same rows; ``None`` when there is no champion
    champion_saw_rows : the champion may have learnt from test rows, so its score flatters it
    p99_ms : of answering one row; ``None`` when not measured
    """

    objective: Objective
    train_score: float
    validation_score: float
    test_score: float
    baseline_score: float
    champion_score: float | None = None
    champion_saw_rows: bool = False
    test_rows: int
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """Every check, passed or not."""

    passed: bool
    checks: tuple[CheckResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable: a number that is not finite is ``None``."""
        return {"passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    def require(self) -> None:
        """Raise :class:`GateRefused`, naming every check that failed, unless all passed."""
        if not self.passed:
            reasons = " ".join(check.message for check in self.checks if not check.passed)
            raise GateRefused(f"The gate refused the candidate: {reasons}", self.to_dict())


def evaluate(gate: Gate, evidence: GateEvidence) -> GateReport:
    """Judge the evidence. Pure: the same evidence gives the same report. Every check is made, also after a failure."""
    checks = (
        _score(gate, evidence),
        _gap(gate, evidence),
        _baseline(gate, evidence),
        _champion(gate, evidence),
        _latency(gate, evidence),
    )
    return GateReport(passed=all(check.passed for check in checks), checks=checks)


def _check(
    name: str, ok: bool | None, value: float | None, limit: float | None, message: str, advice: str = ""
) -> CheckResult:
    """``ok=None`` means the check was not asked for or has nothing to look at."""
    from raymlops.data.assess import CheckResult

    return CheckResult(
        name=name,
        verdict="skipped" if ok is None else "pass" if ok else "fail",
        value=_finite(value),
        limit=_finite(limit),
        message=message,
        advice="" if ok or ok is None else advice,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _score(gate: Gate, evidence: GateEvidence) -> CheckResult:
    objective, value = evidence.objective, evidence.test_score
    said = f"{objective.metric} is {value:.4f} on {evidence.test_rows} test rows"
    if not math.isfinite(value):
        why = f"{objective.metric} is not defined on the {evidence.test_rows} test rows: one class only, or predictions that are not finite."
        return _check("score", False, value, gate.min_score, why, "Give more rows, or another metric.")
    if gate.min_score is None:
        return _check("score", None, value, None, f"{said}; no minimum is set.")
    ok = not objective.better(gate.min_score, value)
    word = "at least" if objective.mode == "max" else "at most"
    return _check(
        "score",
        ok,
        value,
        gate.min_score,
        f"{said}; {word} {gate.min_score:g} is asked for.",
        "More data, features or trials.",
    )


def _gap(gate: Gate, evidence: GateEvidence) -> CheckResult:
    if gate.max_gap is None:
        return _check("gap", None, None, None, "No limit on over-fitting is set.")
    gap = evidence.objective.gap(evidence.train_score, evidence.validation_score, evidence.baseline_score)
    said = (
        f"Over-fitting is {gap:.3f} ({evidence.objective.metric} {evidence.train_score:.4f} on train, "
        f"{evidence.validation_score:.4f} on validation rows); at most {gate.max_gap:g} is allowed."
    )
    # A gap that is not a number is a failure: it means a score that is not one.
    return _check(
        "gap", gap <= gate.max_gap, gap, gate.max_gap, said, "More rows, fewer features, or raise Gate(max_gap=)."
    )


def _baseline(gate: Gate, evidence: GateEvidence) -> CheckResult:
    objective, value, limit = evidence.objective, evidence.test_score, evidence.baseline_score
    said = f"{objective.metric} is {value:.4f}, and a constant prediction reaches {limit:.4f}"
    if not gate.beat_baseline:
        return _check("baseline", None, value, limit, f"{said}; beating it is not asked for.")
    return _check(
        "baseline",
        objective.better(value, limit),
        value,
        limit,
        f"{said}; it must be better.",
        "The features may say nothing about the label.",
    )


def _champion(gate: Gate, evidence: GateEvidence) -> CheckResult:
    objective, value, limit = evidence.objective, evidence.test_score, evidence.champion_score
    if limit is None:
        return _check("champion", None, value, None, "There is no champion to beat.")
    said = (
        f"{objective.metric} is {value:.4f}, and the champion reaches {limit:.4f} on the same {evidence.test_rows} rows"
    )
    note = " The champion may have learnt from these rows, which flatters it." if evidence.champion_saw_rows else ""
    if not math.isfinite(limit):
        return _check(
            "champion", math.isfinite(value), value, limit, f"The champion has no score on the test rows.{note}"
        )
    # Strictly more: an equal model is not worth the risk of a rollout.
    ok = objective.gain(value, limit) > gate.min_gain
    asked = f"it must be better by more than {gate.min_gain:g}." if gate.min_gain else "it must be better."
    return _check("champion", ok, value, limit, f"{said}; {asked}{note}", "The champion stays.")


def _latency(gate: Gate, evidence: GateEvidence) -> CheckResult:
    p99 = evidence.p99_ms
    if gate.max_p99_ms is None or p99 is None:
        why = "No limit on latency is set." if gate.max_p99_ms is None else "Latency was not measured."
        return _check("latency", None, p99, gate.max_p99_ms, why)
    said = f"p99 of one row is {p99:.2f} ms; at most {gate.max_p99_ms:g} ms is allowed."
    return _check(
        "latency", p99 <= gate.max_p99_ms, p99, gate.max_p99_ms, said, "A smaller model, or raise Gate(max_p99_ms=)."
    )
