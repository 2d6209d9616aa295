"""DriftReport: what one look at a version's traffic found. The monitor writes it; policies, triage and people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raymlops.monitor.estimate import PerformanceEstimate
from raymlops.monitor.evidence import Evidence
from raymlops.monitor.wild import WildRow
from raymlops.sketch.profile import SCORE

__all__ = ["SCORE", "DriftReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """What one look found.

    Attributes
    ----------
    window : number of the window, from 1; kind ``outcomes`` tells of harm that began between two windows
    rows, sampled_rows : served in the window, and how many of them were seen one by one: by the classifier, the estimate, the
        second opinion and the search for wild rows. Column tests and bets count every row
    severity : 0 nothing; 1 sure but small; 2 columns moved, the score did not; 3 the score moved, or the estimated loss is
        above what is accepted; 4 measured harm
    confirmed : windows in a row, up to this one, with severity 3 or more; those that only carry an estimate along are not counted
    alpha : budget that was spent on columns and score in this window, half of the deployment's
    alarms_per_month : false alarms that the whole budget allows in 30 days of such traffic; ``None`` when unknown
    loss, loss_rows : mean of the newest outcomes (at most a window's worth) and how many were ever seen
    reference_loss, loss_limit, loss_evidence : what was promised, what is accepted, capital of the bets (alarm at 1)
    estimate : performance without labels, when something moved and too few labels came; binary models only. It and the second
        opinion may be up to 10 s older than the window (``monitor/opinions.py``)
    estimated_harm : the lower end of the estimated loss's interval is above ``loss_limit``
    wild, wild_rows : the strangest rows of the window one by one, at most 20, and how many were flagged in all
    harm : the loss detector has alarmed and the newest outcomes are above the limit (see ``LossDetector``)
    change_at : served time at which the change behind the harm began, as the losses tell it
    columns : that moved by ``min_distance`` or more, most first; ``(score)`` is the model's own output and ``(joint)``
        stands for a change in how columns hang together
    may_retrain : severity 4, or severity 3 twice in a row while there are too few labels to measure the loss
    reference_rows : held-out rows that columns and score are compared with; 0 in reports of earlier releases
    iid_assumed : the reference has no time order, so autocorrelation could not be counted
    """

    window: int
    kind: Literal["window", "outcomes"] = "window"
    version: int | None = None
    rows: int
    sampled_rows: int = 0
    from_at: float
    to_at: float
    severity: int
    confirmed: int = 0
    alpha: float = 0.0
    alarms_per_month: float | None = None
    evidence: tuple[Evidence, ...] = ()
    columns: tuple[str, ...] = ()
    loss: float | None = None
    loss_rows: int = 0
    reference_loss: float
    loss_limit: float
    loss_evidence: float = 0.0
    harm: bool = False
    change_at: float | None = None
    estimate: PerformanceEstimate | None = None
    estimated_harm: bool = False
    wild: tuple[WildRow, ...] = ()
    wild_rows: int = 0
    may_retrain: bool = False
    reference_rows: int = 0
    iid_assumed: bool = False
    second_opinion: dict[str, Any] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> DriftReport:
        estimate = body.get("estimate")
        parts = {
            "evidence": tuple(Evidence.from_dict(item) for item in body["evidence"]),
            "columns": tuple(body["columns"]),
            "estimate": None if estimate is None else PerformanceEstimate.from_dict(estimate),
            "wild": tuple(WildRow.from_dict(item) for item in body.get("wild", ())),
        }
        return cls(**{**body, **parts})
