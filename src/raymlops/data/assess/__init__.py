"""Is the data enough, clean, related, predictive and honest? A verdict before any training, so that a hopeless run stops early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlops.data.assess.result import Assessment, CheckResult, Verdict, require
from raymlops.data.assess.spec import CHECKS, QUICK_MODELS, Assess

if TYPE_CHECKING:  # results and spec must stay light: pandas and scikit-learn are imported where they work
    import pandas as pd

    from raymlops.data.schema import DataContract, Task

__all__ = ["CHECKS", "QUICK_MODELS", "Assess", "Assessment", "CheckResult", "Verdict", "assess", "require"]


def assess(
    frame: pd.DataFrame,
    contract: DataContract | str,
    time: str | None = None,
    task: Task | None = None,
    *,
    spec: Assess | None = None,
    now: float | None = None,
) -> Assessment:
    """Check ``frame`` (inputs, label and time) before training.

    The same frame, spec and ``now`` give the same assessment.

    Parameters
    ----------
    contract : the learned contract, or the label's name; with a name every other column but ``time`` is an input
    task : taken from the contract, else inferred from the label
    spec : limits, verdicts and budget; ``None`` for the defaults
    now : wall seconds, for dates in the future and for freshness; the system's clock when ``None``

    Raises
    ------
    DataError : the label column is not there, or holds text of too many kinds to be classes
    ConfigError : the spec names a key or a slice column that is not there
    """
    from raymlops.data.assess.run import run

    return run(frame, contract, time, task, spec or Assess(), now)
