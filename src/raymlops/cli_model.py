"""The commands about models: explain, card, leaderboard, versions, tag."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raymlops.errors import ConfigError, UnknownVersion, nearest
from raymlops.settings import Settings

if TYPE_CHECKING:
    from raymlops.registry.mlflow import MlflowRegistry
    from raymlops.registry.version import ModelVersion

app = typer.Typer()
out, err = Console(), Console(stderr=True)

Name = Annotated[str, typer.Argument(help="The endpoint's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
VersionOption = Annotated[
    str | None, typer.Option("--version", help="A number or an alias; the champion, else the newest, when left out.")
]


@app.command()
def explain(
    name: Name,
    rows: Annotated[str, typer.Argument(help="Rows as JSON: [{...}], {...}, or - for standard input.")],
    version: Annotated[
        str | None,
        typer.Option("--version", help="A number or an alias, such as challenger: explained here, from its package."),
    ] = None,
    as_json: Json = False,
) -> None:
    """How much each column moved the prediction of each row; by the champion, unless a version is named."""
    from raymlops.loop.ray_endpoint import Endpoint

    given = rows_of(sys.stdin.read() if rows == "-" else rows)
    answer = Endpoint(name).explain(given) if version is None else _explained_here(name, version, given)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    classes = answer["classes"]
    for index, row in enumerate(answer["rows"]):
        title = f"row {index}: {row['prediction']} · version {answer['version']}, {answer['method']}, {answer['units']}"
        table = Table("column", *([str(label) for label in classes] if classes else ["contribution"]), title=title)
        shown = sorted(row["contributions"].items(), key=lambda item: -_size(item[1]))
        for column, value in [*shown, ("(base)", row["base"]), ("(sum)", row["output"])]:
            table.add_row(column, *(f"{part:+.4f}" for part in (value if isinstance(value, list) else [value])))
        out.print(table)


def _explained_here(name: str, version: str, rows: list[Any]) -> dict[str, Any]:
    """By any version that the registry holds, serving or not, in this process."""
    from raymlops.lake import Lake
    from raymlops.registry.package import download
    from raymlops.serving.explaining import explain_rows
    from raymlops.serving.predictor import Predictor

    settings = Settings.read()
    chosen = _chosen(name, _held(_registry(settings), name), version)
    folder = settings.ensure_home() / "cache" / "packages" / chosen.digest
    predictor = Predictor.load(download(Lake(settings.lake), chosen.package_key, folder, chosen.digest))
    return explain_rows(predictor, chosen.version, rows)


def _size(value: float | list[float]) -> float:
    return max(map(abs, value)) if isinstance(value, list) else abs(value)


def rows_of(text: str) -> list[Any]:
    """Rows from JSON text, one object or a list. Raises :class:`ConfigError`."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"The rows are not JSON: {error}. Give a list of objects, one a row.") from error
    return given if isinstance(given, list) else [given]


@app.command()
def card(
    name: Name,
    version: VersionOption = None,
    as_json: Json = False,
    output: Annotated[Path | None, typer.Option(help="File to write; below the home's reports/ when left out.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the model card of a version: data, search, gate, slices, explanations, calibration, limits, lineage."""
    import webbrowser

    from raymlops.lake import Lake
    from raymlops.registry.lineage import lineage
    from raymlops.registry.package import CARD, read_file
    from raymlops.report.model_card import card_page

    settings = Settings.read()
    held = _held(_registry(settings), name)
    chosen = _chosen(name, held, version)
    content = json.loads(read_file(Lake(settings.lake), chosen.package_key, chosen.digest, CARD))
    known = {
        "version": chosen.version,
        "aliases": list(chosen.aliases),
        "tags": _said(chosen),
        "lineage": lineage(chosen, held),
    }
    if as_json:
        typer.echo(json.dumps({**content, "version": known}))
        return
    path = output or settings.ensure_home() / "reports" / f"{name}-{chosen.version}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(card_page(content, known), encoding="utf-8")
    out.print(str(path), markup=False, highlight=False, soft_wrap=True)
    if show and not webbrowser.open(path.absolute().as_uri()):
        err.print("No browser could be opened here: open the file yourself.")


@app.command()
def leaderboard(
    name: Name,
    event: Annotated[str | None, typer.Option(help="The search of this event; the last search when left out.")] = None,
    as_json: Json = False,
) -> None:
    """The trials of a search with parameters, scores and why they failed, from MLflow."""
    from raymlops.registry.board import ranked

    registry = _registry(Settings.read())
    searches = registry.searches(name)
    if not searches:
        raise ConfigError(f"MLflow holds no search of {name!r}.{nearest(name, registry.names())}")
    found = next((item for item in searches if event is None or item.event_id == event), None)
    if found is None:
        raise ConfigError(f"MLflow holds no search for {event!r}.{nearest(str(event), [s.event_id for s in searches])}")
    trials = ranked(found, registry.trials(found))
    if as_json:
        facts = {key: getattr(found, key) for key in ("event_id", "run_id", "metric", "mode", "started_at")}
        typer.echo(json.dumps({**facts, "trials": [item.to_dict() for item in trials]}))
        return
    failed = sum(item.status == "failed" for item in trials)
    title = f"{name} · {found.event_id} · {len(trials)} trials, {failed} failed · {_when(found.started_at)}"
    table = Table("trial", "family", found.metric, "±", "train", "seconds", "status", "parameters", title=title)
    for item in trials:
        words = ", ".join(f"{key} {_short(value)}" for key, value in item.params.items())
        table.add_row(
            str(item.number),
            item.family,
            *(_number(value) for value in (item.score, item.error, item.train_score, item.fit_s)),
            item.status,
            item.reason or words,
        )
    out.print(table)


@app.command()
def versions(name: Name, version: VersionOption = None, as_json: Json = False) -> None:
    """All versions of an endpoint; with --version one of them, and where it comes from and what came of it."""
    from raymlops.registry.lineage import lineage

    held = _held(_registry(Settings.read()), name)
    if version is not None:
        chosen = _chosen(name, held, version)
        facts = {**chosen.to_dict(), "lineage": lineage(chosen, held)}
        if as_json:
            typer.echo(json.dumps(facts))
            return
        table = Table(title=f"{name} version {chosen.version}", show_header=False)
        for key, value in {**chosen.to_dict(), **facts["lineage"]["up"], **facts["lineage"]["down"]}.items():
            table.add_row(key, json.dumps(value) if isinstance(value, (dict, list)) else str(value))
        out.print(table)
        return
    if as_json:
        typer.echo(json.dumps([item.to_dict() for item in held]))
        return
    table = Table("version", "aliases", "family", "score", "made", "in place of", "tags", "caused by", title=name)
    for item in held:
        table.add_row(
            str(item.version),
            ", ".join(item.aliases),
            item.family,
            f"{item.metric} {item.score:.4f}",
            _when(item.created_at),
            "" if item.parent is None else str(item.parent),
            ", ".join(f"{key}={value}" for key, value in _said(item).items()),
            item.event_id,
        )
    out.print(table)


@app.command()
def tag(
    name: Name,
    version: Annotated[str, typer.Argument(help="A number or an alias.")],
    tags: Annotated[list[str], typer.Argument(help="KEY=VALUE; KEY= takes a tag back.")],
) -> None:
    """Say something about a version. What it was made of cannot be changed."""
    registry = _registry(Settings.read())
    chosen = _chosen(name, _held(registry, name), version)
    pairs = [item.partition("=") for item in tags]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"{key!r} says nothing: give KEY=VALUE, or KEY= to take a tag back.")
    for key, _, value in pairs:
        registry.set_tag(name, chosen.version, key, value)
    out.print(f"{name} version {chosen.version}: {_said(registry.get(name, chosen.version))}")


def _registry(settings: Settings) -> MlflowRegistry:
    from raymlops.registry.mlflow import MlflowRegistry

    return MlflowRegistry(settings.mlflow)


def _held(registry: MlflowRegistry, name: str) -> list[ModelVersion]:
    held = registry.versions(name)
    if not held:
        raise UnknownVersion(f"The registry holds no version of {name!r}.{nearest(name, registry.names())}")
    return held


def _chosen(name: str, held: list[ModelVersion], asked: str | None) -> ModelVersion:
    """By number or alias; the champion, else the newest, when nothing was asked for."""
    from raymlops.registry.version import CHAMPION, unknown_version

    if asked is None:
        return next((item for item in held if CHAMPION in item.aliases), held[-1])
    for item in held:
        if str(item.version) == asked or asked in item.aliases:
            return item
    raise unknown_version(name, int(asked) if asked.isdigit() else asked, held)


def _said(version: ModelVersion) -> dict[str, str]:
    from raymlops.registry.version import FIXED_TAGS

    return {key: value for key, value in version.tags.items() if key not in FIXED_TAGS}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
