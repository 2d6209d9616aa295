"""How much of the past a retraining learns from, chosen by back-test, with the benefit of the doubt for all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymlops.search.probe import LEAST, probe
from raymlops.search.selection import compare_windows, refit

if TYPE_CHECKING:
    from raymlops.data.schema import DataContract
    from raymlops.data.snapshot import Arrays
    from raymlops.search.estimators import Floats
    from raymlops.search.selection import Search, SearchResult, Trial


def choose_window(
    arrays: Arrays,
    contract: DataContract,
    spec: Search,
    *,
    ordered: bool,
    max_gap: float | None = None,
    change_row: int | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """:func:`compare_windows`, but a part of the rows is learnt from only where it is better than all of them by more than
    one standard error on the validation rows (Breiman et al. 1984, the one standard error rule).

    The newest rows of a stream are few, so the best of four windows on them is often the best by chance; a window too
    short costs for as long as its model serves.

    Raises
    ------
    ConfigError : a metric or candidates that do not fit the task
    SearchFailed : no fit gave a model
    """
    result = compare_windows(
        arrays, contract, spec, ordered=ordered, max_gap=max_gap, change_row=change_row, on_trial=on_trial
    )
    whole = next(
        (
            trial
            for trial in result.leaderboard.ranked
            if trial.family == result.trial.family and trial.params.get("recent", 1.0) == 1.0
        ),
        None,
    )
    if whole is None or whole is result.trial:
        return result
    all_rows = replace(result, trial=whole)
    # Too few rows to tell: the benefit of the doubt is with all of the past.
    if len(arrays.y_validation) >= LEAST:
        losses = [_losses(choice, arrays) for choice in (all_rows, result)]
        if probe(*losses).sure:
            return result
    x = np.concatenate([arrays.x_train, arrays.x_validation])
    y = np.concatenate([arrays.y_train, arrays.y_validation])
    return replace(all_rows, estimator=refit(all_rows, x, y))


def _losses(result: SearchResult, arrays: Arrays) -> NDArray[np.float64]:
    """Loss of each validation row under the trial fitted on the train rows: squared error of the probabilities, absolute
    error of values where that is the metric, else squared."""
    said: Floats = refit(result, arrays.x_train, arrays.y_train).predict(arrays.x_validation)
    truth = arrays.y_validation
    if said.ndim == 2:
        wrong = said - (truth[:, None] == np.arange(said.shape[1]))
        return np.asarray((wrong**2).sum(axis=1), dtype=np.float64)
    error = np.abs(said - truth)
    return np.asarray(error if result.leaderboard.metric == "mae" else error**2, dtype=np.float64)
