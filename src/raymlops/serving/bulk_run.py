"""What a bulk run is, and its folder: which parts are done, so that a run that broke off can go on. No Ray.

The output folder holds ``part-*.parquet`` (what was kept of each row, and its prediction), ``_refused/`` (rows against the
contract, with the reason) and ``_raymlops/`` (the run, one record a finished part, the summary). Readers of Parquet folders
pass over names that begin with ``_``. A part's files are in place before its record is, each written under another name and
moved, so a record means a whole part, and a part without one is scored again over what it left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

from raymlops.data.columns import TextKind
from raymlops.data.parts import BLOCK_ROWS, PART_ROWS, Input
from raymlops.errors import ConfigError, DataError
from raymlops.lake import Lake, sha256_of
from raymlops.sketch.observed import Observed

OnBad = Literal["fail", "keep"]
RuntimeName = Literal["onnx", "native"]

RUN, SUMMARY, RECORDS, SEEN, REFUSED = (
    "_raymlops/run.json",
    "_raymlops/summary.json",
    "_raymlops/parts",
    "_raymlops/seen",
    "_refused",
)
SAMPLE_ROWS = 10_000
_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What every part of a run shares.

    Attributes
    ----------
    package_key, digest : where the version's package lies in the lake, and what its manifest must hash to
    runtime : what predicts; fixed for a run, because two runtimes may differ in the last bits
    keep : columns of the input that go to the output; ``None`` keeps those the contract does not name
    on_bad : ``fail`` stops at the first row that is refused, ``keep`` puts such rows aside with the reason
    kinds : how to read CSV columns before a features function sees them
    """

    endpoint: str
    version: int
    package_key: str
    digest: str
    runtime: RuntimeName
    source: Input
    output: str
    keep: tuple[str, ...] | None = None
    on_bad: OnBad = "fail"
    kinds: dict[str, TextKind] = field(default_factory=dict)
    block_rows: int = BLOCK_ROWS
    file_rows: int = PART_ROWS

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its resumption, JSON-able."""
        return {
            "format": _FORMAT,
            "endpoint": self.endpoint,
            "version": self.version,
            "digest": self.digest,
            "keep": None if self.keep is None else list(self.keep),
            "parts": len(self.source.parts),
            "cuts": sha256_of(repr([(part.start, part.stop) for part in self.source.parts]).encode()),
            "input": self.source.to_dict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """A finished part: ``rows = scored + refused``; ``files`` maps each key in the output to its size in bytes."""

    number: int
    rows: int
    scored: int
    refused: int
    files: dict[str, int]


def begun_run(output: str) -> dict[str, Any] | None:
    """What ``run.json`` says of the run in a folder; ``None`` when there is none.

    Raises
    ------
    ConfigError : the folder holds something else, or cannot be looked at
    """
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(output)
        if filesystem.exists(f"{root}/{RUN}"):
            body: dict[str, Any] = json.loads(filesystem.cat_file(f"{root}/{RUN}"))
            return body
        found = filesystem.exists(root) and (not filesystem.isdir(root) or filesystem.ls(root, detail=False))
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(f"The output {output!r} cannot be used: {error}. Give a folder or a fsspec URL.") from error
    if found:
        raise ConfigError(f"The output {output!r} holds something that is no run of raymlops: give an empty folder.")
    return None


def open_run(bulk: Bulk, *, resume: bool) -> tuple[Lake, dict[int, PartRecord]]:
    """The output, with ``run.json`` in it, and the parts that are done.

    Raises
    ------
    ConfigError : the folder holds a run and ``resume`` was not given, or another run, or cannot be written
    """
    begun = begun_run(bulk.output)
    lake = Lake(bulk.output)
    if begun is None:
        try:
            lake.write(RUN, json.dumps({**bulk.identity(), "runtime": bulk.runtime}, indent=1).encode())
        except OSError as error:
            raise ConfigError(
                f"The output {bulk.output!r} cannot be written: {error}. Give a folder that can."
            ) from error
        return lake, {}
    done = finished_parts(lake)
    check_same_run(bulk, begun)
    if not resume:
        raise ConfigError(
            f"The output {bulk.output!r} holds a run of version {begun['version']} of {begun['endpoint']!r} with "
            f"{len(done)} of {begun['parts']} parts done: resume it with --resume, or give an empty folder."
        )
    return lake, done


def check_same_run(bulk: Bulk, begun: dict[str, Any]) -> None:
    """Raises :class:`ConfigError` naming what differs between this run and the one that was begun."""
    now = json.loads(json.dumps(bulk.identity()))
    differs = [name for name in now if now[name] != begun.get(name)]
    # What follows from something else that differs is not said again.
    for cause, effects in (("version", ("digest",)), ("input", ("parts", "cuts"))):
        differs = [name for name in differs if cause not in differs or name not in effects]
    if not differs:
        return
    words = {
        "input": "other input files (or the same ones, changed)",
        "parts": "parts of another size",
        "cuts": "parts of another size",
        "version": f"version {begun['version']}, not {bulk.version}",
        "endpoint": f"endpoint {begun['endpoint']!r}, not {bulk.endpoint!r}",
        "keep": f"kept columns {begun['keep']}, not {now['keep']}",
    }
    said = ", ".join(
        words.get(name, f"another {name}") for name in differs if name != "digest" or differs == ["digest"]
    )
    raise ConfigError(f"The output {bulk.output!r} holds a run with {said}: give an empty folder.")


def finished_parts(lake: Lake) -> dict[int, PartRecord]:
    """Records whose files are all there."""
    done = {}
    for key in lake.keys(RECORDS):
        record = PartRecord(**json.loads(lake.read(key)))
        if all(lake.exists(name) for name in record.files):
            done[record.number] = record
    return done


def write_seen(lake: Lake, number: int, seen: Observed) -> None:
    """Keep what was seen of one part."""
    lake.write(f"{SEEN}/{number:05d}.json", json.dumps(seen.to_dict()).encode())


def read_seen(lake: Lake, numbers: Sequence[int]) -> Observed:
    """What was seen of finished parts together: all scored rows counted, and a sample of at most 10,000.

    Raises
    ------
    DataError : no part is named
    """
    if not numbers:
        raise DataError("A run without a finished part has nothing to show.")
    parts = (Observed.from_dict(json.loads(lake.read(f"{SEEN}/{number:05d}.json"))) for number in sorted(numbers))
    return reduce(lambda so_far, part: (so_far + part).limit(SAMPLE_ROWS), parts)


def totals(records: Iterable[PartRecord]) -> tuple[int, int, int]:
    """Rows, scored, refused over parts."""
    held = list(records)
    return sum(r.rows for r in held), sum(r.scored for r in held), sum(r.refused for r in held)
