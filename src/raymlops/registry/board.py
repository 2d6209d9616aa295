"""A search as the experiment tracking remembers it: the leaderboard after the fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedSearch:
    """One search; ``mode`` is ``""`` where an older release did not say, ``started_at`` seconds since 1970."""

    run_id: str
    experiment_id: str
    event_id: str
    metric: str
    mode: str
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTrial:
    """One configuration and what came of it; what was not logged is ``None``.

    Attributes
    ----------
    status, reason : ``done``, ``stopped`` early, or ``failed`` and why
    error : standard error of the score
    metrics : all other numbers
    """

    number: int
    family: str
    status: str
    reason: str
    score: float | None
    error: float | None
    train_score: float | None
    fit_s: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {name: getattr(self, name) for name in self.__slots__}


def ranked(search: LoggedSearch, trials: Sequence[LoggedTrial]) -> list[LoggedTrial]:
    """Best first: full size before stopped early, and what has no score last."""
    sign = 1.0 if search.mode == "min" or (not search.mode and _is_loss(search.metric)) else -1.0
    return sorted(
        trials,
        key=lambda item: (
            item.status == "failed" or item.score is None,
            item.status != "done",
            0.0 if item.score is None else sign * item.score,
            item.number,
        ),
    )


def _is_loss(metric: str) -> bool:
    return metric in ("log_loss", "brier", "rmse", "mae")
