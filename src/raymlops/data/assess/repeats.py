"""Rows, columns and identifiers that repeat where they should not, or never do where they should."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from raymlops.data.assess.facts import Facts, Table
from raymlops.data.assess.numbers import words
from raymlops.data.assess.result import CheckResult, Verdict, listed, result

_ID = re.compile(r"(^|_)(id|ids|uuid|guid|key|pk|identifier|index|rownum|row_number|serial)(_|$)|^(row|unnamed_0)$")
_NATURAL = 2.0


def identifier(table: Table) -> Iterator[CheckResult]:
    """Columns whose every row has a value of its own, of a kind that counts or names: they tell which row it is, not
    what it is like."""
    found = []
    for column in table.inputs:
        if not names_rows(column):
            continue
        found.append(column.name)
        message = f"Column {column.name!r} has a value of its own in each of the {column.rows} rows: it names the row."
        advice = f"Drop it: drop=({column.name!r},)."
        yield result(f"identifier:{column.name}", "warn", column.rows, 0, message, advice)
    if not found:
        yield result("identifier", "pass", 0, 0, "No input names the row.")


def names_rows(column: Facts) -> bool:
    """Whether the column counts or names the rows."""
    if column.missing or column.rows < 20:
        return False
    if column.kind == "text":
        return column.distinct
    if column.kind != "number" or not column.finite.size:
        return False
    # Large numbers seldom repeat in few rows; a run of whole numbers without holes is a count of the rows.
    whole = column.whole or bool((column.finite == np.floor(column.finite)).all())
    run = float(column.finite.max()) - float(column.finite.min()) < 2 * column.rows
    return whole and (run or _ID.search(words(column.name)) is not None) and column.distinct


def duplicate_ids(table: Table) -> Iterator[CheckResult]:
    """A column that is called an identifier, or is the declared key of single rows, and repeats a few times."""
    found = False
    for column in table.inputs:
        if column.kind not in ("number", "text") or not _ID.search(words(column.name)) or column.distinct:
            continue
        present = column.rows - column.missing
        kinds = len(column.categories) if column.codes is not None else len(np.unique(column.finite))
        repeated = present - kinds
        if 0 < repeated <= 0.2 * present:
            found = True
            message = f"Identifier {column.name!r} is repeated in {repeated} of {present} rows."
            advice = "Look for rows that were loaded twice or joined to several; keep one of each."
            yield result(f"duplicate_ids:{column.name}", "warn", repeated, 0, message, advice)
    if not found:
        yield result("duplicate_ids", "pass", 0, 0, "No identifier is repeated.")


def duplicate_rows(table: Table) -> Iterator[CheckResult]:
    limit = table.spec.limit("duplicate_rows")
    whole = table.hashed[1]
    share = _repeated(whole)
    natural = 0.0
    if share > limit:
        natural = _repeated_by_chance(table)
    verdict: Verdict = "warn" if share > limit and share > _NATURAL * natural else "pass"
    chance = f" ({natural:.1%} would by chance)" if natural else ""
    message = f"{share:.1%} of the rows repeat another row{chance}."
    advice = "Repeated rows that fall on both sides of a split flatter the score: keep one of each."
    yield result("duplicate_rows", verdict, share, limit, message, advice)


def _repeated(hashes: npt.NDArray[np.uint64]) -> float:
    return float(pd.Series(hashes).duplicated().mean()) if len(hashes) else 0.0


def _repeated_by_chance(table: Table) -> float:
    """Rows that repeat another when each column is shuffled by itself: few columns of few values repeat of themselves."""
    rng = np.random.default_rng(table.spec.seed)
    rows = np.zeros(table.rows, dtype=np.uint64)
    for column in table.inputs:
        rows = (rows ^ column.hashes()[rng.permutation(table.rows)]) * np.uint64(0x9E3779B97F4A7C15)
    return _repeated(rows)


def duplicate_columns(table: Table) -> Iterator[CheckResult]:
    first: dict[bytes, str] = {}
    twins = []
    for name, digest in table.hashed[2].items():
        if table.columns[name].missing == table.rows:
            continue  # empty columns are named for being empty
        if digest in first:
            twins.append((first[digest], name))
        first.setdefault(digest, name)
    if not twins:
        yield result("duplicate_columns", "pass", 0, 0, "No column repeats another.")
        return
    message = "These columns hold the same values: " + ", ".join(f"{a!r} and {b!r}" for a, b in twins[:10]) + "."
    pairs = [list(pair) for pair in twins]
    yield result("duplicate_columns", "warn", len(twins), 0, message, "Drop one of each.", pairs=pairs)


def overlap(table: Table) -> Iterator[CheckResult]:
    """Rows that a split puts on both sides: test rows, the newest 15 % (without a time, any 15 %), that train holds too."""
    limit = table.spec.limit("overlap")
    if table.rows < 20:
        return
    order = table.order if table.times is not None else np.random.default_rng(table.spec.seed).permutation(table.rows)
    cut = table.rows - max(1, round(0.15 * table.rows))
    hashes = table.hashed[1][order]
    share = float(np.isin(hashes[cut:], hashes[:cut]).mean())
    unusual = share > limit and (_repeated(table.hashed[1]) > _NATURAL * _repeated_by_chance(table))
    message = f"{share:.1%} of the rows a split would test on are in train too."
    advice = "Keep one of each row, or split by what they have in common: split=SplitBy(group=...)."
    yield result("overlap", "warn" if unusual else "pass", share, limit, message, advice)


def skewed_key(table: Table) -> Iterator[CheckResult]:
    """One key with most of the rows: the model learns it alone, and one task of a join does all the work."""
    key = table.spec.key
    if key is None:
        return
    counts = table.frame[key].value_counts(dropna=False)
    limit = table.spec.limit("skewed_key")
    share = float(counts.iloc[0]) / max(table.rows, 1) if len(counts) else 0.0
    message = f"Key {key!r} has {len(counts)} values; {counts.index[0]!r} has {share:.1%} of the rows."
    advice = "Look for a default value or a failed join; train on a sample of it."
    yield result(f"skewed_key:{key}", "warn" if share > limit else "pass", share, limit, message, advice)


def slices(table: Table) -> Iterator[CheckResult]:
    """Values of a column with too few test rows (15 % of theirs) to be judged by themselves.

    Only slices that were declared are warned of; of others the number is told.
    """
    limit = table.spec.limit("slices")
    names = table.spec.slices or tuple(c.name for c in table.inputs if c.kind == "text" and len(c.categories) <= 50)
    small: dict[str, list[str]] = {}
    for name in names:
        counts = table.frame[name].value_counts()
        few = [f"{name}={value}" for value, count in counts.items() if 0.15 * count < limit]
        if few:
            small[name] = few
    total = [one for few in small.values() for one in few]
    advice = "Collect more rows of them, join small ones, or judge them together."
    if table.spec.slices and small:
        for name, few in small.items():
            message = f"{len(few)} slices of {name!r} have fewer than {limit:g} expected test rows: {listed(few, 5)}."
            yield result(f"slices:{name}", "warn", len(few), limit, message, advice)
        return
    message = f"{len(total)} slices have fewer than {limit:g} expected test rows" + (
        f": {listed(total, 5)}." if total else "."
    )
    yield result("slices", "pass", len(total), limit, message)
