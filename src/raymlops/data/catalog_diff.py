"""Two snapshots side by side: rows, contract, figures of the columns, files and code."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from raymlops.data.contract_diff import Change, diff_contracts
from raymlops.data.snapshot import DatasetSnapshot
from raymlops.data.snapshot_profile import ColumnProfile

_MAX_LINES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A column whose figures are others.

    Attributes
    ----------
    by : how far: the mean's difference in standard deviations of the older, or the difference of the share of nulls or
        of the most frequent texts, whichever is most (from 0, without unit)
    before, after : the figures in words
    """

    column: str
    by: float
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDiff:
    """From one snapshot to another.

    Attributes
    ----------
    same_rows : both hold the same rows, in whatever order
    moved : the columns in both whose figures differ, the furthest first
    code : a unified diff of the functions, line by line
    """

    rows: tuple[int, int]
    same_rows: bool
    contract: tuple[Change, ...]
    moved: tuple[Moved, ...]
    files_gone: tuple[str, ...]
    files_come: tuple[str, ...]
    code: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff_snapshots(old: DatasetSnapshot, new: DatasetSnapshot) -> SnapshotDiff:
    """What is different in ``new``."""
    before = {column.name: column for column in old.profile}
    after = {column.name: column for column in new.profile}
    moved = [_moved(before[name], after[name]) for name in before if name in after]
    files = (set(old.origin.files), set(new.origin.files))
    return SnapshotDiff(
        rows=(old.rows, new.rows),
        same_rows=bool(old.content) and old.content == new.content,
        contract=diff_contracts(old.contract, new.contract),
        moved=tuple(sorted((item for item in moved if item is not None), key=lambda item: -item.by)),
        files_gone=tuple(sorted(files[0] - files[1])),
        files_come=tuple(sorted(files[1] - files[0])),
        code=_code(old, new),
    )


def _moved(old: ColumnProfile, new: ColumnProfile) -> Moved | None:
    before, after = _figures(old), _figures(new)
    if before == after:
        return None
    nulls = abs(new.nulls / max(1, new.rows) - old.nulls / max(1, old.rows))
    by = [nulls]
    if old.mean is not None and new.mean is not None:
        by.append(abs(new.mean - old.mean) / (old.std or abs(old.mean) or 1.0))
    shares = [{text: count / max(1, item.rows) for text, count in item.top} for item in (old, new)]
    by += [abs(shares[0].get(text, 0.0) - shares[1].get(text, 0.0)) for text in shares[0].keys() | shares[1].keys()]
    return Moved(column=old.name, by=max(by), before=before, after=after)


def _figures(column: ColumnProfile) -> str:
    parts = [f"{column.nulls / max(1, column.rows):.2%} null", f"{column.distinct:,} distinct"]
    if column.mean is not None and column.std is not None:
        parts.append(f"mean {column.mean:.4g} ± {column.std:.4g}")
    if column.minimum is not None and column.maximum is not None:
        parts.append(f"{column.minimum:.4g} to {column.maximum:.4g}")
    parts += [f"{text!r} {count / max(1, column.rows):.1%}" for text, count in column.top[:3]]
    return ", ".join(parts)


def _code(old: DatasetSnapshot, new: DatasetSnapshot) -> tuple[str, ...]:
    texts = [{code.role: (code.name, code.source, code.digest) for code in item.origin.code} for item in (old, new)]
    lines: list[str] = []
    for role in sorted(texts[0].keys() | texts[1].keys()):
        before, after = (text.get(role, ("nothing", "", "")) for text in texts)
        if before[2] == after[2]:
            continue
        names = (f"{role}: {before[0]}", f"{role}: {after[0]}")
        made = list(difflib.unified_diff(before[1].splitlines(), after[1].splitlines(), *names, lineterm=""))
        lines += made or [f"{role}: {before[0]} is another now; Python had no text of it to compare"]
    return tuple(lines[:_MAX_LINES])
