"""When one fit is spread over workers: the rows against a worker's memory. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from raymlops.errors import ConfigError

Distributed = bool | Literal["auto"]
_ROW_BYTES = 32  # label, weight, prediction, gradient and hessian of a row, as XGBoost holds them
_VALUE_BYTES = 6  # one byte binned, four as a float of a batch or a thinned copy, one while they are binned
_HEADROOM = 0.7  # of a worker's memory: the process itself, its libraries, the validation rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Fits on all rows are spread over ``workers``; trials see at most ``share`` of the train rows, which one worker holds."""

    workers: int
    share: float


def fit_bytes(rows: int, columns: int, classes: int) -> int:
    """What a worker needs for a fit of XGBoost on ``rows``, beside the shared copy of them."""
    return rows * (columns * _VALUE_BYTES + _ROW_BYTES * max(1, classes - 1 if classes > 2 else 1))


def plan_spread(
    wanted: Distributed, *, rows: int, columns: int, classes: int, worker_bytes: float, workers: int, able: bool
) -> Spread | None:
    """Whether, and over how many workers, the last fits are spread.

    Parameters
    ----------
    wanted : ``"auto"`` spreads when the rows do not fit one worker
    rows : of the largest fit
    worker_bytes : memory of one worker
    workers : that the cluster has CPUs for
    able : a family that can be spread is among the candidates

    Raises
    ------
    ConfigError : it was asked for, and no family can, or there is one worker only
    """
    if wanted is False:
        return None
    share = _HEADROOM * worker_bytes / fit_bytes(max(rows, 1), columns, classes)
    if wanted == "auto" and (share >= 1.0 or not able or workers < 2):
        return None
    if not able:
        raise ConfigError(
            "distributed=True spreads a fit of XGBoost, and none of the candidates is candidates.xgboost()."
        )
    if workers < 2:
        raise ConfigError(f"distributed=True needs CPUs for two workers, and the cluster has {workers}.")
    return Spread(workers=min(workers, max(2, math.ceil(1.0 / share))), share=min(1.0, share))


def check_distributed(given: Any) -> None:
    """Raises :class:`ConfigError` for what is none of ``"auto"``, ``True`` and ``False``."""
    if given != "auto" and not isinstance(given, bool):
        raise ConfigError(
            f"distributed={given!r}: give 'auto' (when the rows do not fit one worker's memory), True or False."
        )
