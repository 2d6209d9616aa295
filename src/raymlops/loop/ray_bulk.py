"""`raymlops batch`: a version's package over files, with the same contract as a request, and a drift report beside the rows.

The live monitor is not told: a batch of old rows would close its windows, and its false-alarm budget is for traffic.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raymlops.clock import SystemClock
from raymlops.data.columns import kinds_of
from raymlops.data.parts import PART_BYTES, PART_ROWS, Input, inferred_schema, plan_input
from raymlops.data.sources import Format
from raymlops.errors import ConfigError, ContractViolation, DataError, UnknownVersion, nearest
from raymlops.lake import Lake
from raymlops.loop.ports import Progress, Silent
from raymlops.loop.ray_connect import connect
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.report import DriftReport
from raymlops.registry.package import download
from raymlops.serving.bulk import choose_runtime
from raymlops.serving.bulk_run import SUMMARY, Bulk, OnBad, PartRecord, begun_run, open_run, read_seen, totals
from raymlops.serving.predictor import Predictor
from raymlops.serving.ray_batch import actor_count, package_cache, score_parts
from raymlops.settings import Settings
from raymlops.store import Store

_LEAST_FOR_DRIFT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What a finished run did; ``_raymlops/summary.json`` in the output holds the same.

    Attributes
    ----------
    rows : of the input; each is scored or refused
    resumed : parts that an earlier run had done
    seconds, rows_per_s : of this run, over the rows it scored or refused itself
    drift : the monitor's report on all scored rows as one window against the version's reference, or ``None`` below 100 rows
    """

    endpoint: str
    version: int
    digest: str
    runtime: str
    output: str
    rows: int
    scored: int
    refused: int
    parts: int
    resumed: int
    seconds: float
    rows_per_s: float
    drift: dict[str, Any] | None


def batch(
    endpoint: str,
    *,
    input: str | Sequence[str],
    output: str,
    settings: Settings,
    version: int | None = None,
    format: Format | None = None,
    keep: Sequence[str] | None = None,
    on_bad: OnBad = "fail",
    resume: bool = False,
    part_rows: int | None = None,
    part_bytes: int = PART_BYTES,
    progress: Progress | None = None,
) -> BatchResult:
    """Score files; see :meth:`raymlops.Endpoint.batch`."""
    progress = progress or Silent()
    part_rows = PART_ROWS if part_rows is None else part_rows
    if on_bad not in ("fail", "keep"):
        raise ConfigError(f"on_bad={on_bad!r} is not known.{nearest(str(on_bad), ('fail', 'keep'))}")
    if format not in (None, "csv", "parquet"):
        raise ConfigError(f"format={format!r} is not a format.{nearest(str(format), ('csv', 'parquet'))}")
    for name, value in (("part_rows", part_rows), ("part_bytes", part_bytes)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={value!r} cannot be: give a whole number from 1.")
    progress.stage("plan", "looking at the input")
    began = begun_run(output)
    source = plan_input(
        [input] if isinstance(input, str) else list(input), format, part_rows=part_rows, part_bytes=part_bytes
    )
    number = version if version is not None else _default_version(settings, endpoint, began if resume else None)
    package_key, digest = _package(settings, endpoint, number)
    folder = download(Lake(settings.lake), package_key, package_cache(settings, digest), digest)
    predictor = Predictor.load(folder, number, digest)
    _check_columns(predictor, source, keep)
    bulk = Bulk(
        endpoint=endpoint,
        version=number,
        package_key=package_key,
        digest=digest,
        runtime=began["runtime"] if began else choose_runtime(folder, predictor),
        source=source,
        output=output,
        keep=None if keep is None else tuple(source.columns if "all" in keep else keep),
        on_bad=on_bad,
        kinds=kinds_of(inferred_schema(source)) if predictor.features is not None and source.separator else {},
        file_rows=part_rows,
    )
    lake, done = open_run(bulk, resume=resume)
    resumed = len(done)
    began_at = time.monotonic()
    todo = [part.number for part in source.parts if part.number not in done]
    if todo:
        connect(settings)
        actors = actor_count(len(todo))
        progress.stage("score", f"version {number}, {bulk.runtime}, {len(todo)} parts on {actors} actors")
        for record in score_parts(bulk, todo, settings, actors):
            done[record.number] = record
            progress.note(_so_far(done, resumed, len(source.parts), time.monotonic() - began_at))
    seconds = time.monotonic() - began_at
    _check_counts(source, done)
    progress.stage("report", "drift against the version's reference")
    rows, scored, refused = totals(done.values())
    fresh = totals(done[number] for number in todo)[0]
    result = BatchResult(
        endpoint=endpoint,
        version=number,
        digest=digest,
        runtime=bulk.runtime,
        output=output,
        rows=rows,
        scored=scored,
        refused=refused,
        parts=len(source.parts),
        resumed=resumed,
        seconds=round(seconds, 3),
        rows_per_s=round(fresh / seconds, 1) if fresh else 0.0,
        drift=_drift(predictor, lake, done),
    )
    lake.write(SUMMARY, json.dumps(asdict(result), indent=1).encode())
    return result


def _default_version(settings: Settings, endpoint: str, began: dict[str, Any] | None) -> int:
    """The version of the run that goes on, else the champion."""
    if began is not None:
        return int(began["version"])
    store = Store(settings.store)
    body = store.get("routing", endpoint)
    store.close()
    if body is None:
        raise UnknownVersion(f"{endpoint!r} has no champion yet: run its pipeline first, or name a version.")
    return int(body["champion"])


def _package(settings: Settings, endpoint: str, version: int) -> tuple[str, str]:
    """Key and digest of a version's package. Raises :class:`UnknownVersion` with the versions there are."""
    store = Store(settings.store)
    body = store.get("versions", f"{endpoint}/{version}")
    known = [name.rsplit("/", 1)[1] for name in store.names("versions") if name.startswith(f"{endpoint}/")]
    store.close()
    if body is None:
        there = ", ".join(sorted(known, key=int)) or "none"
        raise UnknownVersion(f"The store knows no version {version} of {endpoint!r}. Known: {there}.")
    return str(body["package_key"]), str(body["digest"])


def _check_columns(predictor: Predictor, source: Input, keep: Sequence[str] | None) -> None:
    """Refuse what would fail in every part, before any part is begun."""
    for name in keep or ():
        if name != "all" and name not in source.columns:
            raise ConfigError(f"The input has no column {name!r} to keep.{nearest(name, source.columns)}")
    if predictor.features is not None:
        return
    lost = [name for name in predictor.contract.names if name not in source.columns]
    if lost:
        others = [name for name in source.columns if name not in predictor.contract.names]
        hint = nearest(lost[0], others) if others else ""
        raise ContractViolation(
            f"The input lacks {', '.join(map(repr, lost[:10]))}, which version {predictor.version} needs.{hint}",
            {"missing": lost[:10]},
        )


def _check_counts(source: Input, done: dict[int, PartRecord]) -> None:
    """Every part once, and as many rows as the files promised."""
    lost = [part.number for part in source.parts if part.number not in done]
    if lost:
        raise DataError(f"Parts {lost[:10]} were not scored: run it again with --resume.")
    for file in source.files:
        numbers = [part.number for part in source.parts if part.file == file.name]
        rows = sum(done[number].rows for number in numbers)
        if file.rows is not None and rows != file.rows:
            raise DataError(f"{file.name} holds {file.rows} rows, and {rows} were scored or refused.")


def _drift(predictor: Predictor, lake: Lake, done: dict[int, PartRecord]) -> dict[str, Any] | None:
    """The monitor's word on one window: every scored row counted, a sample looked at, against the version's reference."""
    now = SystemClock().now()
    seen = replace(read_seen(lake, list(done)), from_at=now, to_at=now)
    if seen.rows < _LEAST_FOR_DRIFT:
        return None
    spec = replace(Monitor(), window_rows=seen.rows, second_opinion="off")
    watcher = Watcher(spec, predictor.reference, predictor.contract, predictor.version, predictor.profile)
    watcher.take(seen)
    report: DriftReport = watcher.step(now)[0]
    return report.to_dict()


def _so_far(done: dict[int, PartRecord], resumed: int, parts: int, seconds: float) -> str:
    rows, _, refused = totals(done.values())
    said = f"{len(done)} of {parts} parts, {rows:,} rows"
    said += f", {refused:,} refused" if refused else ""
    return said + (f", {resumed} parts were done before" if resumed else "") + f", {seconds:.0f} s"
