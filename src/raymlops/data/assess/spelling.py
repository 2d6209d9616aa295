"""What is wrong with texts: decoded wrongly, spelt in several ways, or numbers in disguise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from raymlops.data.assess.facts import Facts, Table
from raymlops.data.assess.result import CheckResult, Verdict, listed, result

_NUMBER = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*%?\s*")
# UTF-8 bytes read as Latin-1 or Windows-1252: a lead byte (Ã, Â, â, Ð …) followed by what continuation bytes become.
_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
)
_BROKEN = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f]")
_MOST = 50_000


def texts(table: Table) -> list[Facts]:
    return [column for column in table.inputs if column.kind == "text" and column.categories]


def encoding(table: Table) -> Iterator[CheckResult]:
    """Texts that were decoded with the wrong character set, or hold characters that no text has."""
    found = False
    for column in texts(table):
        bad = [value for value in column.categories[:_MOST] if not value.isascii() and _misread(value)]
        bad += [value for value in column.categories[:_MOST] if _BROKEN.search(value)]
        if bad:
            found = True
            message = (
                f"Column {column.name!r} holds texts decoded with the wrong character set in {len(set(bad))} of its "
                f"{len(column.categories)} values: {listed(bad, 3)}."
            )
            advice = "Read the file with the character set it was written in (encoding='utf-8')."
            yield result(f"encoding:{column.name}", "warn", len(set(bad)), 0, message, advice)
    if not found:
        yield result("encoding", "pass", 0, 0, "No text looks as if it was decoded wrongly.")


def _misread(value: str) -> bool:
    if not _MOJIBAKE.search(value):
        return False
    for wrong in ("cp1252", "latin-1"):
        try:
            if len(value.encode(wrong).decode("utf-8")) < len(value):
                return True
        except UnicodeError:
            continue
    return False


def spelling(table: Table) -> Iterator[CheckResult]:
    found = False
    for column in texts(table):
        twins = folded(column.categories[:_MOST])
        if twins:
            found = True
            shown = "; ".join(listed(group, 3) for group in twins[:3])
            message = f"Values of column {column.name!r} differ only by case or blanks: {shown}."
            advice = "Write each value in one way in features=: .str.strip().str.lower()."
            yield result(f"spelling:{column.name}", "warn", len(twins), 0, message, advice)
    if not found:
        yield result("spelling", "pass", 0, 0, "No two values differ only by case or blanks.")


def folded(values: Iterable[str]) -> list[list[str]]:
    """Groups of values that are one when case and blanks do not count."""
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault(" ".join(value.casefold().split()), []).append(value)
    return [group for group in groups.values() if len(group) > 1]


def categories(table: Table) -> Iterator[CheckResult]:
    """More distinct values than a contract takes, or so many that most rows have one of their own."""
    limit, found, most = table.spec.limit("categories"), False, ("", 0)
    for column in texts(table):
        count, present = len(column.categories), column.rows - column.missing
        scattered = count > 50 and count > present / 2
        if count > limit or scattered:
            found = True
            verdict: Verdict = "fail" if count > limit else "warn"
            message = f"Column {column.name!r} holds {count} distinct texts in {present} rows."
            advice = "It is free text or an identifier: group its values in features=, or drop it."
            yield result(f"categories:{column.name}", verdict, count, limit, message, advice)
        most = max(most, (column.name, count), key=lambda pair: pair[1])
    if not found and most[0]:
        message = f"The text column with most distinct values is {most[0]!r} with {most[1]}."
        yield result("categories", "pass", most[1], limit, message)


def numbers_as_text(table: Table) -> Iterator[CheckResult]:
    """Columns of text that are numbers but for a few values, which made them text when they were read."""
    limit, found = table.spec.limit("numbers_as_text"), False
    for column in texts(table):
        part = column.categories[:_MOST]
        counts = column.counts[: len(part)]
        numeric = [bool(_NUMBER.fullmatch(value)) for value in part]
        share = float(counts[numeric].sum()) / max(float(counts.sum()), 1.0)
        if share >= limit and len(part) > 5:
            found = True
            others = [value for value, is_number in zip(part, numeric, strict=True) if not is_number]
            because = f" all but {listed(others, 3)}" if others else ""
            message = f"Column {column.name!r} is text, but {share:.1%} of its values are numbers:{because or ' all'}."
            advice = "Read it as a number (decimal sign, null_values), so that 10 lies after 9."
            yield result(f"numbers_as_text:{column.name}", "warn", share, limit, message, advice)
    if not found:
        yield result("numbers_as_text", "pass", 0, limit, "No text column holds numbers.")


def types(table: Table) -> Iterator[CheckResult]:
    """Columns of a type that no model takes; the contract refuses them."""
    other = [column for column in table.inputs if column.kind in ("time", "duration", "other")]
    for column in other:
        what = {"time": "times", "duration": "durations"}.get(column.kind, f"values of type {_example(column)}")
        message = f"Column {column.name!r} holds {what}, which models do not take."
        advice = "Make numbers of it in features= (hour of day, days since …), name it as time=, or drop it."
        yield result(f"types:{column.name}", "fail" if column.kind == "other" else "warn", 1, 0, message, advice)
    if not other:
        yield result("types", "pass", 0, 0, "Every column is of a type that models take.")


def mixed_types(table: Table) -> Iterator[CheckResult]:
    mixed = [column for column in table.inputs if column.kind == "mixed"]
    for column in mixed:
        counts = column.series.dropna().map(lambda value: type(value).__name__).value_counts()
        kinds = ", ".join(f"{count} {name}" for name, count in counts.items())
        rare = column.series.dropna().map(lambda value: type(value).__name__) == counts.index[-1]
        example = column.series.dropna()[rare].iloc[0]
        message = f"Column {column.name!r} mixes types ({kinds}); for example {str(example)[:60]!r}."
        advice = "Make it numbers, booleans or text in features=, or drop it."
        yield result(f"mixed_types:{column.name}", "fail", int(counts.iloc[1:].sum()), 0, message, advice)
    if not mixed:
        yield result("mixed_types", "pass", 0, 0, "No column mixes types.")


def _example(column: Facts) -> str:
    present = column.series.dropna()
    return type(present.iloc[0]).__name__ if len(present) else str(column.series.dtype)
