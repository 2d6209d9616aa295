"""What the steward saw in one turn: all that the controller decides by, beside the state."""

from __future__ import annotations

from dataclasses import dataclass

from raymlops.loop.ports import JobStatus, ProbeFailed
from raymlops.monitor.examine import Examination
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis
from raymlops.serving.analysis import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the steward saw: both versions of a rollout, or of a provisional promotion, since it began; the newest drift
    report; ``labelled`` rows since the champion's training; the retraining job.

    ``diagnosis``, ``burning`` and ``forecast`` are those of :func:`raymlops.retrain.decide_retrain`; ``examination`` is what
    the probe under way came to, ``None`` while it runs or when there is none.
    """

    now: float
    comparison: Comparison | None = None
    confirmation: Comparison | None = None
    report: DriftReport | None = None
    labelled: int = 0
    job: JobStatus | None = None
    job_log: str = ""
    diagnosis: Diagnosis | None = None
    burning: str = ""
    forecast: Forecast | None = None
    examination: Examination | ProbeFailed | None = None
