"""Rows, columns and the label: whether there is anything to learn from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from raymlops.data.assess.facts import FLOAT32_MAX, Table
from raymlops.data.assess.result import CheckResult, Verdict, listed, result
from raymlops.data.assess.spelling import folded

_WIDE = 30


def rows(table: Table) -> Iterator[CheckResult]:
    limit = table.spec.limit("rows")
    verdict: Verdict = "pass" if table.rows >= limit else "fail"
    message = f"There are {table.rows} rows; at least {limit:g} are needed."
    yield result("rows", verdict, table.rows, limit, message, "Collect more rows or widen the time range.")


def columns(table: Table) -> Iterator[CheckResult]:
    """More columns than a tenth of the rows: any model can find a pattern in that many by chance."""
    limit = table.spec.limit("columns")
    share = len(table.names) / max(table.rows, 1)
    wide = share > limit and len(table.names) >= _WIDE
    message = f"There are {len(table.names)} input columns for {table.rows} rows."
    advice = "Drop columns or collect rows: with so many columns some follow the label by chance."
    yield result("columns", "warn" if wide else "pass", share, limit, message, advice)


def label(table: Table) -> Iterator[CheckResult]:
    """A label in every row; for a regression a finite number that varies, for classes two of them with enough rows each."""
    series = table.frame[table.label]
    name, missing = repr(table.label), int(series.isna().sum())
    if missing:
        message = f"The label {name} is missing in {missing} rows."
        yield result("label", "fail", missing, 0, message, "Drop those rows.")
    elif table.task == "regression":
        usable = np.abs(table.y) <= FLOAT32_MAX
        bad, distinct = int((~usable).sum()), len(np.unique(table.y[usable]))
        what = f"holds values that are not finite numbers in {bad} rows" if bad else f"has {distinct} distinct values"
        good = not bad and distinct >= 2
        advice = "A regression needs a finite number that varies."
        yield result("label", "pass" if good else "fail", distinct, 2, f"The label {name} {what}.", advice)
    else:
        yield from _classes(table, name)


def _classes(table: Table, name: str) -> Iterator[CheckResult]:
    found = np.bincount(table.y[~np.isnan(table.y)].astype(np.intp), minlength=len(table.classes))
    if len(found) < 2:
        only = ", ".join(map(repr, table.classes)) or "none"
        message = f"The label {name} holds one class only: {only}."
        yield result("classes", "fail", len(found), 2, message, "Train on rows of at least two classes.")
        return
    least = table.spec.limit("classes")
    rarest = int(np.argmin(found))
    count, share = int(found[rarest]), float(found[rarest]) / max(table.rows, 1)
    which = repr(table.classes[rarest])
    twins = folded([str(value) for value in table.classes if isinstance(value, str)])
    if twins:
        message = f"Classes of {name} differ only by case or blanks: {'; '.join(map(listed, twins))}."
        yield result("classes", "fail", len(twins), 0, message, "Write each class in one way.")
        return
    message = f"Class {which} of {name} has {count} rows; at least {least:g} of each class are needed."
    good = count >= least
    advice = "Collect more of it, or merge or drop it."
    yield result("classes", "pass" if good else "fail", count, least, message, advice)
    if good:
        limit = table.spec.limit("imbalance")
        message = f"Class {which} of {name} is {share:.2%} of the rows."
        advice = "Judge by average precision, not by accuracy; weigh or sample the classes; expect wide intervals."
        yield result("imbalance", "pass" if share >= limit else "warn", share, limit, message, advice)


def missing(table: Table) -> Iterator[CheckResult]:
    """Empty columns are worth a warning each; only when there is nothing but them is a training hopeless."""
    limit, nearly = table.spec.limit("missing"), 0.95
    shares = {c.name: c.missing / c.rows if c.rows else 0.0 for c in table.inputs}
    if shares and min(shares.values()) > nearly:
        message = f"Every column is missing in more than {nearly:.0%} of the rows."
        yield result("missing", "fail", min(shares.values()), nearly, message, "Check the source and its joins.")
        return
    empty = [(name, share) for name, share in shares.items() if share > limit]
    for name, share in empty:
        what = "is empty" if share == 1.0 else f"is missing in {share:.1%} of the rows"
        advice = f"Drop it: drop=({name!r},)."
        yield result(f"missing:{name}", "warn", share, limit, f"Column {name!r} {what}.", advice)
    if not empty:
        worst = max(shares.values(), default=0.0)
        message = f"The emptiest column is missing in {worst:.1%} of the rows."
        yield result("missing", "pass", worst, limit, message)


def constant(table: Table) -> Iterator[CheckResult]:
    same = [column.name for column in table.inputs if column.constant and column.missing < column.rows]
    empty = [column.name for column in table.inputs if column.missing == column.rows]
    if same and len(same) + len(empty) == len(table.names):
        message = f"Every column is constant: {listed(same + empty)}."
        yield result("constant", "fail", len(same), len(table.names), message, "There is nothing to learn from.")
    elif same:
        message = f"These columns are constant: {listed(same)}."
        advice = "Drop them: they tell the model nothing."
        yield result("constant", "warn", len(same), 0, message, advice, columns=same)
    else:
        yield result("constant", "pass", 0, 0, "Every column varies.")


def near_constant(table: Table) -> Iterator[CheckResult]:
    limit, found, most = table.spec.limit("near_constant"), 0, ("", 0.0)
    for column in table.inputs:
        if column.constant or column.missing == column.rows:
            continue
        value, share = column.mode
        if share >= limit:
            found += 1
            shown = f"{value:g}" if isinstance(value, float) else repr(value)
            message = f"Column {column.name!r} is {shown} in {share:.2%} of the rows."
            advice = "A model hardly learns from the rest: check the join that made it, group rare values, or drop it."
            yield result(f"near_constant:{column.name}", "warn", share, limit, message, advice)
        most = max(most, (column.name, share), key=lambda pair: pair[1])
    if not found:
        message = f"The most uneven column is {most[0]!r}: one value in {most[1]:.1%} of the rows."
        yield result("near_constant", "pass", most[1], limit, message if most[0] else "No column is mostly one value.")
