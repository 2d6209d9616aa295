"""What a check found, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raymlops.errors import AssessmentFailed

Verdict = Literal["pass", "fail", "warn", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check: what was measured, where the limit lay, what to do.

    Attributes
    ----------
    name : the check, followed by ``:COLUMN`` when it is about one column
    evidence : more figures for a machine and for the page, JSON-serialisable
    """

    name: str
    verdict: Verdict
    value: float | None
    limit: float | None
    message: str
    advice: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Warnings and skipped checks pass."""
        return self.verdict != "fail"

    @property
    def check(self) -> str:
        """The name without the column."""
        return self.name.partition(":")[0]

    @property
    def column(self) -> str | None:
        """The column it is about, when it is about one."""
        return self.name.partition(":")[2] or None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        plain = {name: getattr(self, name) for name in ("name", "verdict", "value", "limit", "message", "advice")}
        return plain | ({"evidence": dict(self.evidence)} if self.evidence else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CheckResult:
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Every check on one frame of ``rows`` rows."""

    checks: tuple[CheckResult, ...]
    rows: int

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def warnings(self) -> tuple[CheckResult, ...]:
        return tuple(check for check in self.checks if check.verdict == "warn")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, read back by :meth:`from_dict`."""
        return {"rows": self.rows, "passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Assessment:
        return cls(checks=tuple(CheckResult.from_dict(check) for check in data["checks"]), rows=data["rows"])


def require(assessment: Assessment) -> None:
    """Raise :class:`AssessmentFailed`, listing each failed check with its number and advice, unless all passed."""
    if not assessment.passed:
        reasons = " ".join(f"{check.message} {check.advice}".strip() for check in assessment.failures)
        raise AssessmentFailed(f"The data is not fit to train on. {reasons}", assessment.to_dict())


def result(
    name: str,
    verdict: Verdict,
    value: float | None,
    limit: float | None,
    message: str,
    advice: str = "",
    **evidence: Any,
) -> CheckResult:
    """Advice is for those who need it: a check that passed gives none. A number that is not finite is ``None``."""
    return CheckResult(
        name=name,
        verdict=verdict,
        value=_finite(value),
        limit=_finite(limit),
        message=message,
        advice="" if verdict == "pass" else advice,
        evidence=evidence,
    )


def listed(names: list[str], most: int = 10) -> str:
    """Names in quotes, at most ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
