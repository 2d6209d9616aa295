"""Do the newest rows look like the older ones? Measured between blocks of time, so that the usual to and fro is no alarm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from raymlops.data.assess.facts import Floats, Table
from raymlops.data.assess.models import Sample
from raymlops.data.assess.result import CheckResult, Verdict, result

_BLOCKS = 16
_NEW = 4  # the newest blocks of these
_SURE = 5.0
_CELLS = 20


def stability(table: Table, sample: Sample) -> Iterator[CheckResult]:
    """Distance (Kolmogorov-Smirnov; for texts total variation) of a column's newest quarter from its older rows.

    Only named when the blocks of the newest quarter are also surely unlike the older blocks: a column that always
    wanders is no news.
    """
    if table.times is None or len(sample.y) < 20 * _BLOCKS:
        return
    limit, worst, found = table.spec.limit("stability"), ("", 0.0), 0
    for index, column in enumerate(table.inputs):
        values = sample.x[:, index].astype(np.float64)
        if column.constant or np.isnan(values).mean() > 0.9:
            continue
        distance, sure = _moved(values, column.kind == "text")
        worst = max(worst, (column.name, distance), key=lambda pair: pair[1])
        if distance > limit and sure:
            found += 1
            message = f"Column {column.name!r} moved: its newest quarter is {distance:.2f} away from its older rows."
            advice = "Ask what changed (a unit, a source, a rule); leave out what no longer holds, or the column."
            yield result(f"stability:{column.name}", "warn", distance, limit, message, advice)
    if not found and worst[0]:
        message = (
            f"The column that moved most is {worst[0]!r}: its newest quarter is {worst[1]:.2f} from its older rows."
        )
        yield result("stability", "pass", worst[1], limit, message)


def label_stability(table: Table, sample: Sample) -> Iterator[CheckResult]:
    if table.times is None or len(sample.y) < 20 * _BLOCKS:
        return
    limit = table.spec.limit("label_stability")
    distance, sure = _moved(sample.y, table.task != "regression")
    verdict: Verdict = "warn" if distance > limit and sure else "pass"
    message = f"The label's newest quarter is {distance:.2f} away from its older rows."
    advice = "Train on recent rows (search=Search(recency=True)), and find out whether the label is counted as before."
    yield result("label_stability", verdict, distance, limit, message, advice)


def _moved(values: Floats, coded: bool) -> tuple[float, bool]:
    """How far the newest blocks are from the older ones, and whether that is more than blocks differ among themselves."""
    cells = _cells(values, coded)
    blocks = np.array_split(cells, _BLOCKS)
    shares = np.stack([np.bincount(block[block >= 0], minlength=_CELLS) for block in blocks]).astype(np.float64)
    totals = shares.sum(axis=1, keepdims=True)
    if (totals == 0).any():
        return 0.0, False
    shares /= totals
    new, old = shares[-_NEW:], shares[:-_NEW]
    apart = _apart(new.mean(axis=0), old.mean(axis=0), coded)
    # Along the direction in which they differ, blocks have one number each: Welch's t of the two groups.
    along = shares @ (new.mean(axis=0) - old.mean(axis=0))
    error = np.sqrt(along[-_NEW:].var(ddof=1) / _NEW + along[:-_NEW].var(ddof=1) / (_BLOCKS - _NEW))
    return apart, bool(along[-_NEW:].mean() - along[:-_NEW].mean() > _SURE * error)


def _apart(one: Floats, other: Floats, coded: bool) -> float:
    gap = one - other
    return float(np.abs(gap).sum() / 2 if coded else np.abs(np.cumsum(gap)).max())


def _cells(values: Floats, coded: bool) -> npt.NDArray[np.intp]:
    """Values as cells of about equal counts; of codes the commonest, and the rest in one; -1 when missing."""
    missing = np.isnan(values)
    if coded:
        found = np.minimum(np.where(missing, 0, values), _CELLS - 1).astype(np.intp)
    else:
        edges = np.unique(np.quantile(values[~missing], np.linspace(0, 1, _CELLS + 1)[1:-1]))
        found = np.searchsorted(edges, values, side="left").astype(np.intp)
    return np.where(missing, -1, found)


def filling(table: Table) -> Iterator[CheckResult]:
    """Columns that began or stopped being filled in: their share of missing values changes over time."""
    if table.times is None or table.rows < 20 * _BLOCKS:
        return
    limit, found, worst = table.spec.limit("filling"), 0, 0.0
    for column in table.inputs:
        if not 0.005 * column.rows < column.missing < column.rows:
            continue
        gone = column.codes < 0 if column.codes is not None else column.series.isna().to_numpy()
        shares = np.array([block.mean() for block in np.array_split(gone[table.order], _BLOCKS)])
        change = float(shares[-_NEW // 2 :].mean() - shares[: _BLOCKS // 2].mean())
        started = float(shares[-_BLOCKS // 2 :].mean() - shares[: _NEW // 2].mean())
        change = change if abs(change) >= abs(started) else started
        worst = max(worst, abs(change))
        if abs(change) > limit:
            found += 1
            what = "stops" if change > 0 else "begins"
            message = (
                f"Column {column.name!r} {what} being filled in: missing in {shares[0]:.0%} of the oldest and "
                f"{shares[-1]:.0%} of the newest rows."
            )
            advice = "A model learns what it will not be told, or was not: drop it, or train on rows of one kind."
            yield result(f"filling:{column.name}", "warn", abs(change), limit, message, advice)
    if not found:
        yield result("filling", "pass", worst, limit, "Columns are filled in over time as they ever were.")
