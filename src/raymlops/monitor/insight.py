"""What the monitor's figures mean for one endpoint: diagnosis, error budget, and forecast, kept over its versions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymlops.clock import seconds
from raymlops.monitor.attribution import LossParts, Mix, Suspect, mix_of, score_importance
from raymlops.monitor.examine import Examination
from raymlops.monitor.forecast import Forecast, forecast
from raymlops.monitor.ledger import LossLedger
from raymlops.monitor.slo import ErrorBudget
from raymlops.monitor.triage import Diagnosis, triage
from raymlops.serving.analysis import VariantStats

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.monitor.monitor import Monitor
    from raymlops.monitor.quality import LossBaseline
    from raymlops.monitor.report import DriftReport
    from raymlops.registry.package import Reference

_KEPT_VERSIONS = 64
_KEPT_WINDOWS, _KEPT_COLUMNS = 120, 8
_NEWEST_ROWS = 100


class Insight:
    """A plain class; its owner's lock protects it. What it must not forget is small: see :meth:`to_dict`.

    Attributes
    ----------
    spec : by which it was made
    diagnosis : of the newest report of the version followed; ``None`` before there is one
    ledger : losses of every version by when their rows were served
    windows : of the newest 120 windows what the report page draws, JSON
    """

    def __init__(self, spec: Monitor) -> None:
        self.spec = spec
        self.ledger = LossLedger(max(seconds(spec.max_age, "max_age"), 1.0))
        self.diagnosis: Diagnosis | None = None
        self.forecast: Forecast | None = None
        self.windows: deque[dict[str, Any]] = deque(maxlen=_KEPT_WINDOWS)
        self._budget = None if spec.slo is None else ErrorBudget(spec.slo)
        self._version: int | None = None
        self._reference: Reference | None = None
        self._promised: dict[int, tuple[float, float]] = {}
        self._importance: dict[str, float] = {}
        self._missing: dict[str, float] = {}
        self._categories: dict[int, int] = {}
        self._known_by_name: frozenset[str] = frozenset()
        self._stats = VariantStats()
        self._parts: LossParts | None = None
        self._suspects: tuple[Suspect, ...] = ()
        self._window: DriftReport | None = None

    def follow(
        self,
        version: int,
        reference: Reference,
        contract: DataContract,
        predict: Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]],
        baseline: LossBaseline,
    ) -> None:
        """Another version is the champion."""
        sizes = {column.name: len(column.categories) for column in contract.columns if column.kind == "category"}
        self._known_by_name = frozenset(sizes)
        self._categories = {i: sizes[name] for i, name in enumerate(reference.columns) if name in sizes}
        self._importance = score_importance(predict, reference.x, reference.columns)
        self._missing = dict(zip(reference.columns, (~np.isfinite(reference.x)).mean(axis=0).tolist(), strict=True))
        self._promised[version] = (baseline.mean, baseline.limit)
        for old in sorted(self._promised)[:-_KEPT_VERSIONS]:
            del self._promised[old]
        self._version, self._reference, self.diagnosis = version, reference, None
        self._stats, self._parts, self._suspects, self._window = VariantStats(), None, (), None

    def take_up(
        self, report: DriftReport | None, diagnosis: Diagnosis | None, body: Mapping[str, Any] | None = None
    ) -> None:
        """The newest report of the version followed, its diagnosis and :meth:`of_version`, from before a crash."""
        self.diagnosis = diagnosis
        self._window = report  # one between two windows has the evidence of the window before it
        if report is not None:
            self.forecast = self._forecast()
        if body is None:
            return  # an earlier release kept none
        self._stats = VariantStats.from_dict(body["stats"])
        self._parts = None if body["parts"] is None else LossParts(**body["parts"])
        self._suspects = tuple(Suspect(**item) for item in body["suspects"])
        self.forecast = None if body["forecast"] is None else Forecast(**body["forecast"])

    def of_version(self) -> dict[str, Any]:
        """What a restart needs of the version followed, beside :meth:`to_dict`, JSON."""
        return {
            "stats": self._stats.to_dict(),
            "parts": None if self._parts is None else self._parts.to_dict(),
            "suspects": [item.to_dict() for item in self._suspects],
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
        }

    def answered(self, version: int, stats: VariantStats, now: float) -> None:
        """What a version answered since the last call; every version's callers share one budget."""
        if self._budget is not None:
            self._budget.add(stats, now)
        if version == self._version:
            self._stats = self._stats + stats

    def look(self, report: DriftReport, newest: NDArray[np.floating[Any]]) -> DriftReport:
        """Diagnose a report and forecast anew; ``newest`` rows ``(k, d)`` of the version's traffic, oldest first. Harm that is told between two windows brings no evidence of its own: it gets
        that of the newest window of the same version, with its budget, and the report is given back with it."""
        if report.kind == "window":
            self._window = report
        elif self._window is not None and self._window.version == report.version:
            window = self._window
            report = replace(
                report,
                evidence=window.evidence,
                columns=window.columns,
                alpha=window.alpha,
                alarms_per_month=window.alarms_per_month,
            )
        if not report.harm:
            self._parts, self._suspects = None, ()  # of a rise that is over
        self.diagnosis = self._triage(report, newest)
        if report.kind == "window":
            self._stats = VariantStats()
            self.windows.append(_drawn(report, self.diagnosis))
        self.forecast = self._forecast()
        return report

    def examined(self, found: Examination, report: DriftReport | None, newest: NDArray[np.floating[Any]]) -> None:
        """A probe has split the rise of the champion's loss: the newest report is diagnosed with that."""
        self._parts, self._suspects = found.parts, found.suspects
        if report is not None:
            self.diagnosis = self._triage(report, newest)

    def _forecast(self) -> Forecast:
        found = (self.ledger.life(version, *promised) for version, promised in self._promised.items())
        return forecast([life for life in found if life is not None], self.spec.tolerance)

    def _triage(self, report: DriftReport, newest: NDArray[np.floating[Any]]) -> Diagnosis:
        return triage(
            report,
            importance=self._importance,
            missing_before=self._missing,
            categories=self._known_by_name,
            parts=self._parts,
            suspects=self._suspects,
            mix=self._mix(report, newest),
            stats=self._stats,
            newest=self._newest(newest),
        )

    def burning(self, now: float) -> str:
        """Why changes must wait, or ``""``."""
        return "" if self._budget is None else self._budget.burning(now)

    def summary(self) -> dict[str, Any]:
        """Diagnosis and forecast, JSON."""
        return {
            "diagnosis": None if self.diagnosis is None else self.diagnosis.to_dict(),
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
        }

    def _newest(self, x: NDArray[np.floating[Any]]) -> dict[str, tuple[int, int]]:
        """Missing values among the newest rows, by column."""
        if self._reference is None:
            return {}
        x = x[-_NEWEST_ROWS:]
        missing = (~np.isfinite(x)).sum(axis=0).tolist()
        return {name: (int(count), len(x)) for name, count in zip(self._reference.columns, missing, strict=True)}

    def _mix(self, report: DriftReport, x: NDArray[np.floating[Any]]) -> Mix | None:
        if self._reference is None or len(x) < 100 or len(report.columns) < 2:
            return None
        return mix_of(self._reference.x, x, self._reference.columns, report.columns, self._categories)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ledger": self.ledger.to_dict(),
            "promised": {str(version): list(pair) for version, pair in self._promised.items()},
            "budget": None if self._budget is None else self._budget.to_dict(),
            "windows": list(self.windows),
        }

    def load(self, body: Mapping[str, Any] | None) -> None:
        """Take up what :meth:`to_dict` gave; ``None`` from a release that kept none."""
        if body is None:
            return
        self.ledger.load(body["ledger"])
        self.windows.extend(body.get("windows", ()))
        self._promised = {int(version): (pair[0], pair[1]) for version, pair in body["promised"].items()}
        if self._budget is not None and body["budget"] is not None:
            self._budget.load(body["budget"])


def _drawn(report: DriftReport, diagnosis: Diagnosis) -> dict[str, Any]:
    moved: dict[str, float] = {}
    for item in report.evidence:
        if item.drifted and item.distance > 0:
            moved[item.column] = round(max(moved.get(item.column, 0.0), item.distance), 4)
    most = sorted(moved.items(), key=lambda item: (-item[1], item[0]))[:_KEPT_COLUMNS]
    return {
        "window": report.window,
        "version": report.version,
        "from": report.from_at,
        "to": report.to_at,
        "rows": report.rows,
        "severity": report.severity,
        "kind": diagnosis.kind,
        "loss": report.loss,
        "limit": report.loss_limit,
        "moved": dict(most),
    }
