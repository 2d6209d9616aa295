"""The command line about data: the catalog, contracts, where a prediction came from, and parity of features."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raymlops.errors import ConfigError, ContractViolation, DataError
from raymlops.settings import Settings

if TYPE_CHECKING:
    from raymlops.data.catalog import Catalog, DatasetVersion
    from raymlops.data.contract_diff import Change
    from raymlops.data.schema import DataContract

data = typer.Typer(
    no_args_is_help=True, name="data", help="What the models learned from: the catalog and the contracts."
)
contract = typer.Typer(no_args_is_help=True, name="contract", help="Data contracts: write, compare, check.")
data.add_typer(contract)
out, err = Console(), Console(stderr=True)

Ref = Annotated[str, typer.Argument(help="NAME (the newest), NAME@3, NAME@tag, NAME@FINGERPRINT.")]
Given = Annotated[str, typer.Argument(help="A file of YAML, or NAME[@VERSION] in the catalog.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
_COLORS = {"+": "green", "-": "red", "~": "yellow"}


def _catalog() -> Catalog:
    from raymlops.data.catalog import Catalog

    return Catalog.open()


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _dump(body: Any) -> None:
    typer.echo(json.dumps(body))


# --- the catalog ---------------------------------------------------------------------------------------


@data.command("list")
def list_(
    search: Annotated[
        str | None, typer.Option(help="A word in name, owner, description, tags, files, functions.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The name of a column that is there.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only versions with this tag.")] = None,
    removed: Annotated[bool, typer.Option("--removed", help="Also versions whose rows were removed.")] = False,
    as_json: Json = False,
) -> None:
    """The versions of all data sets, or of those that fit."""
    found = _catalog().list(search=search, column=column, tag=tag, removed=removed)
    if as_json:
        _dump([item.to_dict() for item in found])
        return
    table = Table("version", "rows", "columns", "from", "made", "tags")
    for item in found:
        gone = " (removed)" if item.removed_at is not None else ""
        files = ", ".join(item.origin["files"][:2]) or item.source
        table.add_row(
            item.ref + gone,
            f"{item.rows:,}",
            str(len(item.columns)),
            files[:60],
            _when(item.created_at),
            " ".join(item.tags),
        )
    out.print(table)


@data.command()
def show(
    ref: Ref,
    code: Annotated[bool, typer.Option("--code", help="Print the functions that made it.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print Spark's plan.")] = False,
    as_json: Json = False,
) -> None:
    """One version: columns in figures, where it came from, what was trained on it."""
    from raymlops.data.lineage import ancestors

    catalog = _catalog()
    version = catalog.get(ref)
    about = catalog.dataset(version.name)
    snapshot = None if version.removed_at is not None else catalog.snapshot(version.ref)
    uses = catalog.uses(version.snapshot_key)
    parents = [item.ref for item in ancestors(catalog, version)]
    if as_json:
        from dataclasses import asdict

        body: dict[str, Any] = {"dataset": asdict(about), "version": version.to_dict(), "parents": parents}
        body |= {"uses": [asdict(use) for use in uses], "needed_by": catalog.needed_by(version)}
        _dump(body | {"snapshot": snapshot.to_dict() if snapshot is not None else None})
        return
    if code or plan:
        if snapshot is None:
            raise DataError(f"The rows of {version.ref} were removed, and code and plan with them.")
        for item in snapshot.origin.code if code else ():
            out.print(
                f"# {item.role}: {item.name}, SHA-256 {item.digest}", markup=False, highlight=False, soft_wrap=True
            )
            out.print(item.source or "# Python had no text of it", markup=False, highlight=False, soft_wrap=True)
        if plan:
            out.print(snapshot.origin.plan or "no Spark made it", markup=False, highlight=False, soft_wrap=True)
        return
    facts = Table(show_header=False, box=None)
    rows = {
        "version": f"{version.ref}, {version.rows:,} rows, made {_when(version.created_at)}",
        "content": version.content,
        "owner": about.owner,
        "description": about.description,
        "tags": " ".join(version.tags),
        "kept": ", ".join(_kept(about)),
        "from": ", ".join([version.source, *version.origin["files"][:5]]),
        "code": ", ".join(f"{part['name']} ({part['digest'][:12]})" for part in version.origin["code"]),
        "rows of": ", ".join(parents),
        "trained": ", ".join(map(str, uses)),
        "removed": "" if version.removed_at is None else _when(version.removed_at),
    }
    for word, text in rows.items():
        if text:
            facts.add_row(word, text)
    out.print(facts)
    if snapshot is not None:
        out.print(_figures(snapshot.profile, version))


def _kept(about: Any) -> list[str]:
    kept = [f"the newest {about.keep_versions}"] if about.keep_versions else []
    return kept + ([f"{about.keep_days:g} days"] if about.keep_days else [])


def _figures(profile: Any, version: DatasetVersion) -> Table:
    table = Table("column", "kind", "nulls", "distinct", "min", "median", "max", "mean ± std", "most frequent")
    for column in profile:
        number = [
            "" if value is None else f"{value:.5g}"
            for value in (column.minimum, column.quantiles.get("0.5"), column.maximum)
        ]
        if column.kind == "time":
            number = [
                text and _when(float(value))
                for text, value in zip(
                    number, (column.minimum, column.quantiles.get("0.5"), column.maximum), strict=True
                )
            ]
        spread = (
            ""
            if column.mean is None or column.std is None or column.kind == "time"
            else f"{column.mean:.4g} ± {column.std:.3g}"
        )
        top = ", ".join(f"{text} {count / max(1, column.rows):.0%}" for text, count in column.top[:3])
        kind = version.columns.get(column.name, column.kind)
        table.add_row(
            column.name,
            kind,
            f"{column.nulls / max(1, column.rows):.1%}",
            f"{column.distinct:,}",
            *number,
            spread,
            top[:40],
        )
    return table


@data.command()
def diff(old: Ref, new: Ref, as_json: Json = False) -> None:
    """What is different between two versions: rows, contract, figures, files, code."""
    from raymlops.data.catalog_diff import diff_snapshots

    catalog = _catalog()
    found = diff_snapshots(catalog.snapshot(old), catalog.snapshot(new))
    if as_json:
        _dump(found.to_dict())
        return
    same = ", the same rows" if found.same_rows else ""
    out.print(f"rows: {found.rows[0]:,} → {found.rows[1]:,}{same}")
    _print_changes(found.contract)
    if found.moved:
        table = Table("column", "moved by", "before", "after")
        for item in found.moved:
            table.add_row(item.column, f"{item.by:.3g}", item.before, item.after)
        out.print(table)
    for sign, files in (("-", found.files_gone), ("+", found.files_come)):
        for name in files:
            out.print(f"{sign} file {name}", style=_COLORS[sign], markup=False, highlight=False)
    for line in found.code:
        out.print(line, style=_COLORS.get(line[:1]), markup=False, highlight=False, soft_wrap=True)


def _print_changes(changes: tuple[Change, ...]) -> None:
    for change in changes:
        out.print(str(change), style=_COLORS[change.sign], markup=False, highlight=False, soft_wrap=True)


@data.command()
def tag(
    ref: Ref,
    names: Annotated[list[str], typer.Argument(help="Tags.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take them off instead.")] = False,
    as_json: Json = False,
) -> None:
    """Put tags on a version; tagged versions are never removed by themselves."""
    catalog = _catalog()
    version = catalog.untag(ref, *names) if remove else catalog.tag(ref, *names)
    _dump(version.to_dict()) if as_json else out.print(f"{version.ref}: {' '.join(version.tags) or 'no tags'}")


@data.command()
def rm(
    ref: Ref,
    force: Annotated[bool, typer.Option("--force", help="Also when a model or a retraining needs it.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a version's rows; what is known of it stays in the catalog."""
    version = _catalog().remove(ref, force=force)
    _dump(version.to_dict()) if as_json else out.print(f"{version.ref}: {version.rows:,} rows removed")


@data.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="A data set.")],
    owner: Annotated[str | None, typer.Option(help="Whom to ask.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is.")] = None,
    keep_versions: Annotated[int | None, typer.Option(help="Keep the newest that many; 0: all.")] = None,
    keep_days: Annotated[float | None, typer.Option(help="Keep versions that long; 0: for ever.")] = None,
    as_json: Json = False,
) -> None:
    """Say whose a data set is and what it is, and how much of it is kept."""
    from dataclasses import asdict

    about = _catalog().describe(
        name, owner=owner, description=description, keep_versions=keep_versions, keep_days=keep_days
    )
    if as_json:
        _dump(asdict(about))
        return
    kept = f"keeps {' and '.join(_kept(about)) or 'everything'}"
    out.print("; ".join(part for part in (name, about.owner, about.description, kept) if part), markup=False)


# --- contracts -----------------------------------------------------------------------------------------


def _contract(given: str) -> DataContract:
    from raymlops.data.contract_text import read

    if given.endswith((".yaml", ".yml")) or Path(given).is_file():
        return read(given).complete()
    return _catalog().snapshot(given).contract


@contract.command("show")
def contract_show(given: Given, as_json: Json = False) -> None:
    """A contract as YAML, to edit and to give to Pipeline(contract=...)."""
    from raymlops.data.contract_text import to_yaml

    found = _contract(given)
    _dump(found.to_dict()) if as_json else typer.echo(to_yaml(found), nl=False)


@contract.command("diff")
def contract_diff(old: Given, new: Given, as_json: Json = False) -> None:
    """What changed between two contracts, and whether rows are refused now that were accepted."""
    from dataclasses import asdict

    from raymlops.data.contract_diff import diff_contracts

    changes = diff_contracts(_contract(old), _contract(new))
    if as_json:
        _dump([asdict(change) for change in changes])
    elif changes:
        _print_changes(changes)
    else:
        out.print("the same")


@contract.command("check")
def contract_check(
    file: Annotated[Path, typer.Argument(help="A contract, whole or in part.")],
    rows: Annotated[str, typer.Argument(help="A CSV or Parquet file.")],
    label: Annotated[str | None, typer.Option(help="The label's column, when the contract does not name it.")] = None,
    time_column: Annotated[str | None, typer.Option("--time", help="The column with each row's time.")] = None,
    as_json: Json = False,
) -> None:
    """Check a file against a contract as training would; exit code 1 when it does not keep it."""
    from raymlops.cli_target import read_frame
    from raymlops.data.contract_text import read
    from raymlops.data.snapshot import times_in

    declared = read(file)
    name = label or declared.label
    if name is None:
        raise ConfigError(f"{file} names no label: give --label.")
    frame = read_frame(rows, name, time_column, ())
    if time_column is not None:
        frame = frame.assign(**{time_column: times_in(frame[time_column])})
    hidden = tuple(key for key in declared.keys if key not in declared.columns and key not in (name, time_column))
    try:
        declared.over(frame, name, time=time_column, now=time.time(), hidden=hidden)
    except ContractViolation as error:
        if not as_json:
            raise
        _dump({"kept": False, "rows": len(frame), "violations": error.details.get("violations", [])})
        raise typer.Exit(1) from error
    _dump({"kept": True, "rows": len(frame), "violations": []}) if as_json else out.print(
        f"{len(frame):,} rows keep {file}"
    )


# --- lineage and parity ----------------------------------------------------------------------------------


def lineage(
    request_id: Annotated[str, typer.Argument(help="The request_id of an answer.")], as_json: Json = False
) -> None:
    """From a request back to the model version that answered, the data it learned from, and what made that data."""
    from raymlops.data.catalog import Catalog
    from raymlops.data.lineage import trace
    from raymlops.lake import Lake
    from raymlops.store import Store

    settings = Settings.read()
    store = Store(settings.store)
    found = trace(store, Catalog(store, Lake(settings.lake)), request_id)
    if as_json:
        _dump(found.to_dict())
        return
    table = Table(show_header=False, box=None)
    table.add_row("request", f"{found.request_id}, {found.rows} row(s), {_when(found.served_at)}")
    table.add_row("answered by", f"{found.endpoint} version {found.model_version}, as {found.variant}")
    table.add_row("package", f"{found.package.get('package_key', 'unknown')} {found.package.get('digest', '')[:16]}")
    for word, item in (("learned from", found.dataset), *(("with rows of", parent) for parent in found.parents)):
        if item is None:
            table.add_row(word, "not in the catalog")
            continue
        table.add_row(word, f"{item.ref}, {item.rows:,} rows, {item.snapshot_key}")
        files = ", ".join([item.source, *item.origin["files"][:5]])
        table.add_row("  from", files)
        for part in item.origin["code"]:
            table.add_row("  by", f"{part['role']} {part['name']}, SHA-256 {part['digest'][:16]}")
    out.print(table)


def parity(
    target: Annotated[str, typer.Argument(help="FILE.py:NAME or package.module:NAME of a Pipeline.")],
    rows: Annotated[int, typer.Option(help="How many rows of the source to try.")] = 200,
    spark: Annotated[
        bool, typer.Option(help="Also in Spark; --no-spark starts no JVM where the source needs none.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run the features function in Spark, in pandas whole, row by row and as requests do; fail where they differ."""
    from raymlops.cli_target import load_target
    from raymlops.data.ray_parity import check_parity
    from raymlops.data.sources import FrameSource

    pipeline = load_target(target)
    settings = Settings.read()
    settings.ensure_home()
    if pipeline.features is not None and (spark or not isinstance(pipeline.source, FrameSource)):
        from raymlops.loop.ray_connect import connect

        connect(settings)
    with err.status("reading the source and running the features"):
        report = check_parity(pipeline.source, pipeline.features, settings, rows=rows, spark=spark)
    if as_json:
        _dump(report.to_dict())
    else:
        out.print(report.text(), markup=False, highlight=False, soft_wrap=True)
    if not report.agrees:
        raise typer.Exit(1)
