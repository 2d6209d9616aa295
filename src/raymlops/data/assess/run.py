"""All checks in order: the cheap ones first, and quick models only where there is something to learn from."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from raymlops.data.assess import basics, leaks, learning, numbers, repeats, spelling, stability, times
from raymlops.data.assess.facts import Facts, Floats, Table, facts_of, times_of
from raymlops.data.assess.models import sample_of
from raymlops.data.assess.result import Assessment, CheckResult, listed, result
from raymlops.data.assess.spec import QUICK_MODELS, Assess
from raymlops.data.schema import DataContract, Task, infer_task
from raymlops.errors import ConfigError, DataError, nearest

Check = Callable[[Table], Iterable[CheckResult]]

_PLAIN: tuple[tuple[str, Check], ...] = (
    ("rows", basics.rows),
    ("columns", basics.columns),
    ("label", basics.label),
    ("time", times.time),
    ("missing", basics.missing),
    ("constant", basics.constant),
    ("near_constant", basics.near_constant),
    ("types", spelling.types),
    ("mixed_types", spelling.mixed_types),
    ("numbers_as_text", spelling.numbers_as_text),
    ("encoding", spelling.encoding),
    ("spelling", spelling.spelling),
    ("categories", spelling.categories),
    ("infinite", numbers.infinite),
    ("huge", numbers.huge),
    ("sentinel", numbers.sentinel),
    ("outliers", numbers.outliers),
    ("negative", numbers.negative),
    ("identifier", repeats.identifier),
    ("duplicate_ids", repeats.duplicate_ids),
    ("duplicate_rows", repeats.duplicate_rows),
    ("duplicate_columns", repeats.duplicate_columns),
    ("overlap", repeats.overlap),
    ("skewed_key", repeats.skewed_key),
    ("future", times.future),
    ("dates", times.dates),
    ("timezone", times.zones),
    ("gaps", times.gaps),
    ("freshness", times.freshness),
    ("time_travel", times.time_travel),
    ("filling", stability.filling),
    ("slices", repeats.slices),
)
_LEAST = 50  # of fewer rows nothing can be said but that they are too few
_FIRST = ("rows", "label", "time")
_MODELLED = ("number", "boolean", "text", "duration")
_FITTED = ("leak", "disguise", "stability", "label_stability", *QUICK_MODELS)
_NEEDED = ("rows", "label", "classes", "time", "missing", "constant")


def run(
    frame: pd.DataFrame,
    contract: DataContract | str,
    time: str | None,
    task: Task | None,
    spec: Assess,
    now: float | None,
) -> Assessment:
    """See :func:`raymlops.data.assess.assess`."""
    label = contract if isinstance(contract, str) else contract.label
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if label not in frame.columns:
        raise DataError(f"The data has no label column {label!r}.{nearest(label, map(str, frame.columns))}")
    if repeated:
        message = f"Columns {listed(repeated)} appear more than once."
        one = result("columns", "fail", len(repeated), 0, message, "Rename or drop them.", columns=repeated)
        return Assessment(checks=tuple(_judged([one], spec)), rows=len(frame))
    table = _table(frame, contract, time, task, spec, clock.time() if now is None else now)
    if not table.names:
        message = f"The data has no column besides {listed([name for name in (label, time, spec.key) if name])}."
        one = result("columns", "fail", 0, 1, message, "There is nothing to learn from.")
        return Assessment(checks=tuple(_judged([one], spec)), rows=len(frame))
    checks: list[CheckResult] = []
    for name, check in _PLAIN:
        if spec.on(name) and (table.rows >= _LEAST or name in _FIRST):
            checks += check(table)
    stopped = [check for check in checks if check.check in _NEEDED and not check.passed]
    if stopped or table.rows < _LEAST:
        for name in ("leak", "predictive"):
            checks.append(result(name, "skipped", None, None, "Not looked for: the rows or the label failed first."))
    else:
        checks += _modelled(table)
    return Assessment(checks=tuple(_judged(checks, spec)), rows=len(frame))


def _modelled(table: Table) -> Iterator[CheckResult]:
    """The checks that fit something, on a sample; a column that leaks is left out of what comes after."""
    spec = table.spec
    told = [column for column in table.inputs if column.kind in _MODELLED and not repeats.names_rows(column)]
    table = replace(table, names=tuple(column.name for column in told))
    if not table.names or not any(spec.on(name) for name in _FITTED):
        return
    sample = sample_of(table)
    single = leaks.alone(table, sample)
    if spec.on("leak"):
        yield from leaks.leaks(table, single)
    if spec.on("disguise"):
        yield from leaks.disguise(table, sample, single)
    if spec.on("collapse"):
        yield from leaks.collapse(table, sample)
    if spec.on("stability"):
        yield from stability.stability(table, sample)
    if spec.on("label_stability"):
        yield from stability.label_stability(table, sample)
    honest = [name for name in table.names if single[name].score < spec.limit("leak")]
    if not honest:
        return
    if len(honest) < len(table.names):
        table = replace(table, names=tuple(honest))
        sample = sample_of(table)
    if spec.on("predictive"):
        yield from learning.predictive(table, sample)
    if spec.on("enough_rows"):
        yield from learning.enough_rows(table, sample)
    if spec.on("unrelated"):
        yield from learning.unrelated(table, sample, single)


def _judged(checks: Iterable[CheckResult], spec: Assess) -> Iterator[CheckResult]:
    """The verdicts as the spec overrides them."""
    for check in checks:
        override = spec.override(check.name)
        if override == "off":
            continue
        if override == "warn" and check.verdict == "fail":
            yield replace(check, verdict="warn")
        elif override == "fail" and check.verdict == "warn":
            yield replace(check, verdict="fail")
        else:
            yield check


def _table(
    frame: pd.DataFrame, contract: DataContract | str, time: str | None, task: Task | None, spec: Assess, now: float
) -> Table:
    label = contract if isinstance(contract, str) else contract.label
    for what, named in (("key", [spec.key] if spec.key else []), ("slices", list(spec.slices))):
        for name in named:
            if name not in frame.columns:
                hint = nearest(name, map(str, frame.columns))
                raise ConfigError(f"Assess({what}=...) names a column {name!r} that is not there.{hint}")
    if isinstance(contract, str):
        left_out = {label, time, spec.key}
        names = [str(name) for name in frame.columns if name not in left_out]
        task = task or infer_task(frame[label])
    else:
        task, names = task or contract.task, list(contract.names)
    time = time if time in frame.columns else None
    frame = frame.rename(columns=str) if not all(isinstance(name, str) for name in frame.columns) else frame
    columns: dict[str, Facts] = {name: facts_of(name, frame[name]) for name in names}
    times, dated = (None, False) if time is None else times_of(frame[time])
    if time is not None:
        columns[time] = facts_of(time, frame[time])
    y, classes = _label(frame[label], task)
    return Table(
        frame=frame,
        spec=spec,
        label=label,
        time=time,
        task=task,
        names=tuple(names),
        now=now,
        columns=columns,
        y=y,
        classes=classes,
        times=times,
        dated=dated,
    )


def _label(series: pd.Series, task: Task) -> tuple[Floats, tuple[object, ...]]:
    """The label as numbers ``(n,)``, NaN where it is none, and the classes in the order of their codes."""
    if task == "regression":
        if series.dtype.kind in "iufb":
            return series.to_numpy(dtype=np.float64, na_value=np.nan), ()
        return pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan), ()
    codes, classes = pd.factorize(series.astype(object), sort=False)
    order = sorted(range(len(classes)), key=lambda index: (str(type(classes[index])), classes[index]))
    rank = np.full(len(classes) + 1, np.nan)
    rank[order] = np.arange(len(classes))
    return rank[codes], tuple(classes[index] for index in order)
