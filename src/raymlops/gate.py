"""The checks a candidate must pass before it may be registered, each with its number, its limit and its evidence.

The five of practice come first: not enough data, poor data, over-fitting, under-fitting, columns that say nothing about
the label. The others ask whether the candidate is worth a rollout: its score, the champion, slices, latency, size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raymlops.compare.paired import Comparison
from raymlops.compare.relevance import Relevance
from raymlops.compare.slices import Slice, check_slices
from raymlops.errors import ConfigError, GateRefused
from raymlops.search.objective import Objective

if TYPE_CHECKING:
    from raymlops.data.assess import CheckResult, Verdict

# The assessment's checks, by the question of practice that they answer; all others are about the data's quality.
_ENOUGH = frozenset({"rows", "label", "classes", "enough_rows", "slices"})
_RELATED = frozenset({"predictive", "unrelated"})
_NAMED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a candidate must reach.

    Attributes
    ----------
    min_score : at least this good on the test rows (at most this much, for a loss); ``None`` asks for nothing
    max_gap : over-fitting allowed, from 0 to 1 (:meth:`raymlops.search.objective.Objective.gap`); ``None`` allows all.
        The default lets ordinary forests and boosted trees pass and stops a model that knows its training rows by heart
    min_skill : under-fitting: the least share of the way from the best constant to perfection that the candidate must go on
        the rows it learnt from; ``None`` asks for nothing
    max_p99_ms : p99 of answering one row, in milliseconds, the ``features`` function's time included; ``None`` allows all
    min_gain : how much better than the champion on the same test rows, in units of the metric. The candidate must be
        better by *more* than this: an equal model is not worth a rollout
    min_certainty : share of the paired bootstrap's replicates in which it must be so. At 0.5, the default, or below it is
        reported and refuses nothing, because a canary follows: :attr:`min_gain` alone decides. 0.95 asks for evidence before it
    beat_baseline : must be better than the best constant prediction
    max_size_mb : of the package, in megabytes (10**6 bytes); ``None`` allows all
    slices : more slices to watch, as pandas expressions over the columns by name, such as ``{"young": "age < 25"}``
    slice_rule : ``"asked"`` refuses a candidate that is worse than the champion on a slice of :attr:`slices`, ``"all"`` also on
        one that was found in the data, ``"none"`` on none; what does not refuse warns

    Raises
    ------
    ConfigError : when built, naming the field
    """

    min_score: float | None = None
    max_gap: float | None = 0.3
    min_skill: float | None = 0.005
    max_p99_ms: float | None = 50.0
    min_gain: float = 0.0
    min_certainty: float = 0.5
    beat_baseline: bool = True
    max_size_mb: float | None = None
    slices: Mapping[str, str] = field(default_factory=dict)
    slice_rule: Literal["asked", "all", "none"] = "asked"

    def __post_init__(self) -> None:
        for name in ("min_score", "max_gap", "min_skill", "max_p99_ms", "min_gain", "min_certainty", "max_size_mb"):
            value = getattr(self, name)
            if value is None and name not in ("min_gain", "min_certainty"):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name}={value!r} is no limit: give a finite number.")
            if name != "min_score" and value < 0:
                raise ConfigError(f"{name}={value!r} cannot be negative.")
        for name, unit in (("max_p99_ms", "milliseconds"), ("max_size_mb", "megabytes")):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name}=0 would refuse every model: give {unit}, or None for no limit.")
        if self.min_certainty >= 1:
            raise ConfigError(f"min_certainty={self.min_certainty!r} is never reached: give a share below 1.")
        if not isinstance(self.beat_baseline, bool):
            raise ConfigError(f"beat_baseline={self.beat_baseline!r} is neither True nor False.")
        check_slices(self.slices)
        if self.slice_rule not in ("asked", "all", "none"):
            raise ConfigError(f"slice_rule={self.slice_rule!r} is not known: give 'asked', 'all' or 'none'.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEvidence:
    """What was measured.

    Attributes
    ----------
    train_score, validation_score : of the winning trial, for the gap
    train_baseline : score of the best constant on the rows learnt from; ``None`` when not known
    test_score : of the candidate, on rows that neither the search nor the fit has seen
    baseline_score, champion_score : on those same rows; ``None`` when there is no champion
    champion_saw_rows : the champion may have learnt from test rows, so its score flatters it
    against_champion, against_baseline : paired comparisons on those rows
    assessment : the checks the data went through before the search; ``None`` when there were none
    relevance : of each column to what the candidate says
    slices : the candidate on parts of the test rows
    p99_ms : of answering one row; ``None`` when not measured
    features_timed : whether that holds the ``features`` function's time; ``None`` without such a function
    size_mb : of the package
    """

    objective: Objective
    train_score: float
    validation_score: float
    test_score: float
    baseline_score: float
    train_baseline: float | None = None
    champion_score: float | None = None
    champion_saw_rows: bool = False
    against_champion: Comparison | None = None
    against_baseline: Comparison | None = None
    assessment: Sequence[CheckResult] | None = None
    relevance: Sequence[Relevance] = ()
    slices: Sequence[Slice] = ()
    test_rows: int
    p99_ms: float | None = None
    features_timed: bool | None = None
    size_mb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """Every check, passed or not."""

    passed: bool
    checks: tuple[CheckResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, read back by :meth:`from_dict`: a number that is not finite is ``None``."""
        return {"passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateReport:
        from raymlops.data.assess import CheckResult

        return cls(passed=data["passed"], checks=tuple(CheckResult.from_dict(check) for check in data["checks"]))

    def require(self) -> None:
        """Raise :class:`GateRefused`, naming every check that failed, unless all passed."""
        if not self.passed:
            reasons = " ".join(check.message for check in self.checks if not check.passed)
            raise GateRefused(f"The gate refused the candidate: {reasons}", self.to_dict())


def evaluate(gate: Gate, evidence: GateEvidence) -> GateReport:
    """Judge the evidence. Pure: the same evidence gives the same report. Every check is made, also after a failure."""
    checks = (
        _assessed(evidence, "enough_data", "Enough data", lambda name: name in _ENOUGH),
        _assessed(evidence, "data_quality", "The data's quality", lambda name: name not in _ENOUGH | _RELATED),
        _gap(gate, evidence),
        _skill(gate, evidence),
        _related(evidence),
        _score(gate, evidence),
        _baseline(gate, evidence),
        _champion(gate, evidence),
        _slices(gate, evidence),
        _latency(gate, evidence),
        _size(gate, evidence),
    )
    return GateReport(passed=all(check.passed for check in checks), checks=checks)


def _check(
    name: str,
    ok: bool | Verdict | None,
    value: float | None,
    limit: float | None,
    message: str,
    advice: str = "",
    evidence: Mapping[str, Any] | None = None,
) -> CheckResult:
    """``ok=None`` means the check was not asked for or has nothing to look at."""
    from raymlops.data.assess import CheckResult

    verdict: Verdict = ok if isinstance(ok, str) else "skipped" if ok is None else "pass" if ok else "fail"
    return CheckResult(
        name=name,
        verdict=verdict,
        value=_finite(value),
        limit=_finite(limit),
        message=message,
        advice=advice if verdict in ("fail", "warn") else "",
        evidence=_plain(evidence or {}),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _plain(value: Any) -> Any:
    """The evidence as JSON takes it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


# --- the five of practice ----------------------------------------------------------------------------


def _assessed(evidence: GateEvidence, name: str, what: str, mine: Any) -> CheckResult:
    """The worst of the assessment's checks on one question."""
    if evidence.assessment is None:
        return _check(name, None, None, None, f"{what}: not assessed.")
    checks = [check for check in evidence.assessment if mine(check.name.split(":")[0])]
    if not checks:
        return _check(name, None, None, None, f"{what}: the assessment had no check for it.")
    bad = [check for check in checks if check.verdict in ("fail", "warn")]
    verdict: Verdict = "fail" if any(not check.passed for check in bad) else "warn" if bad else "pass"
    said = " ".join(check.message for check in bad) or f"all {len(checks)} checks of the assessment passed."
    advice = " ".join(dict.fromkeys(check.advice for check in bad if check.advice))
    shown = {"checks": [check.to_dict() for check in (bad or checks)[:_NAMED]]}
    return _check(name, verdict, len(bad), 0, f"{what}: {said}", advice, shown)


def _gap(gate: Gate, evidence: GateEvidence) -> CheckResult:
    if gate.max_gap is None:
        return _check("overfit", None, None, None, "No limit on over-fitting is set.")
    gap = evidence.objective.gap(evidence.train_score, evidence.validation_score, evidence.baseline_score)
    said = (
        f"Over-fitting is {gap:.3f} ({evidence.objective.metric} {evidence.train_score:.4f} on train, "
        f"{evidence.validation_score:.4f} on validation rows); at most {gate.max_gap:g} is allowed."
    )
    scores = {"train": evidence.train_score, "validation": evidence.validation_score}
    # A gap that is not a number is a failure: it means a score that is not one.
    return _check(
        "overfit",
        gap <= gate.max_gap,
        gap,
        gate.max_gap,
        said,
        "More rows, fewer features, or raise Gate(max_gap=).",
        scores,
    )


def _skill(gate: Gate, evidence: GateEvidence) -> CheckResult:
    objective, value = evidence.objective, evidence.train_score
    base = evidence.baseline_score if evidence.train_baseline is None else evidence.train_baseline
    if gate.min_skill is None:
        return _check("underfit", None, None, None, "No limit on under-fitting is set.")
    perfect = 1.0 if objective.mode == "max" else 0.0
    way = abs(perfect - base)
    skill = objective.gain(value, base) / way if way > 0 else math.nan
    said = (
        f"On the rows it learnt from, the candidate goes {skill:.1%} of the way from the best constant "
        f"({objective.metric} {base:.4f}) to perfection: it reaches {value:.4f}; at least {gate.min_skill:.1%} is asked for."
    )
    if not math.isfinite(skill):
        return _check("underfit", None, skill, gate.min_skill, "A constant is perfect here, or a score is not defined.")
    advice = "More flexible candidates, more trials, or features that say more."
    return _check(
        "underfit", skill >= gate.min_skill, skill, gate.min_skill, said, advice, {"train": value, "constant": base}
    )


def _related(evidence: GateEvidence) -> CheckResult:
    columns = evidence.relevance
    checked = _assessed(evidence, "related", "Columns and label", lambda name: name in _RELATED)
    if not columns:
        return checked
    idle = [item.column for item in columns if not item.matters]
    matter = len(columns) - len(idle)
    shown = {"columns": [item.to_dict() for item in columns], "assessment": checked.evidence.get("checks", [])}
    named = ", ".join(idle[:_NAMED]) + (f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else "")
    sure = evidence.against_baseline is not None and evidence.against_baseline.low > 0
    if matter == 0 and not sure:
        said = (
            "Shuffling any one column on held-out rows changes nothing, and the score cannot be told from a constant's."
        )
        return _check("related", False, 0, 1, said, "Features that have to do with the label.", shown)
    said = f"{matter} of {len(columns)} columns matter on held-out rows" + (f"; idle: {named}." if idle else ".")
    verdict: Verdict = "warn" if 2 * matter < len(columns) or checked.verdict in ("warn", "fail") else "pass"
    return _check(
        "related", verdict, matter, 1, said, "Idle columns cost latency and can only drift: drop them.", shown
    )


# --- worth a rollout ---------------------------------------------------------------------------------


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
        _compared(evidence.against_baseline),
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
    paired = evidence.against_champion
    if paired is not None:
        # Skewed replicates never overrule the score by themselves: only a certainty above the even chance was asked for.
        ok = ok and (gate.min_certainty <= 0.5 or paired.certainty >= gate.min_certainty)
        note = (
            f" The gain is {paired.gain:+.4f}, {paired.level:.0%} interval {paired.low:+.4f} to {paired.high:+.4f} "
            f"({paired.method}); sure to {paired.certainty:.0%}, {gate.min_certainty:.0%} is asked for.{note}"
        )
    elif gate.min_certainty > 0.5:
        ok = False
        note = f" How sure that is cannot be told from these rows, and {gate.min_certainty:.0%} is asked for.{note}"
    return _check("champion", ok, value, limit, f"{said}; {asked}{note}", "The champion stays.", _compared(paired))


def _compared(paired: Comparison | None) -> dict[str, Any]:
    return {} if paired is None else {"paired_bootstrap": paired.to_dict()}


def _slices(gate: Gate, evidence: GateEvidence) -> CheckResult:
    parts = evidence.slices
    tested = [item for item in parts if item.p_value is not None]
    shown = {"slices": [item.to_dict() for item in parts]}
    if not tested:
        why = (
            "There is no champion to compare slices with."
            if evidence.champion_score is None
            else "No slice is large enough."
        )
        return _check("slices", None, None, 0, why, evidence=shown)
    worse = [item for item in tested if item.worse]
    if not worse:
        said = f"On none of {len(tested)} slices the candidate is worse than the champion."
        return _check("slices", True, 0, 0, said, evidence=shown)
    refuse = gate.slice_rule == "all" or (gate.slice_rule == "asked" and any(item.asked for item in worse))
    named = "; ".join(f"{item.name} ({item.rows} rows, p {item.p_value:.1e})" for item in worse[:5])
    said = f"On {len(worse)} of {len(tested)} slices the candidate is worse than the champion: {named}."
    advice = "Look at these rows; more of them, or weights, may help. Gate(slice_rule=) says which slices may refuse."
    return _check("slices", "fail" if refuse else "warn", len(worse), 0, said, advice, shown)


def _latency(gate: Gate, evidence: GateEvidence) -> CheckResult:
    p99 = evidence.p99_ms
    if gate.max_p99_ms is None or p99 is None:
        why = "No limit on latency is set." if gate.max_p99_ms is None else "Latency was not measured."
        return _check("latency", None, p99, gate.max_p99_ms, why)
    with_features = {
        None: "",
        True: ", the features function included",
        False: ", without the features function, which no row was at hand for",
    }[evidence.features_timed]
    said = f"p99 of one row is {p99:.2f} ms{with_features}; at most {gate.max_p99_ms:g} ms is allowed."
    return _check(
        "latency",
        p99 <= gate.max_p99_ms,
        p99,
        gate.max_p99_ms,
        said,
        "A smaller model, or raise Gate(max_p99_ms=).",
        {"features_timed": evidence.features_timed},
    )


def _size(gate: Gate, evidence: GateEvidence) -> CheckResult:
    size = evidence.size_mb
    if size is None:
        return _check("size", None, None, gate.max_size_mb, "The size was not measured.")
    if gate.max_size_mb is None:
        return _check("size", None, size, None, f"The package has {size:.2f} MB; no limit is set.")
    said = f"The package has {size:.2f} MB; at most {gate.max_size_mb:g} MB are allowed."
    return _check(
        "size", size <= gate.max_size_mb, size, gate.max_size_mb, said, "A smaller model, or raise Gate(max_size_mb=)."
    )
