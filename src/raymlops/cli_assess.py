"""`raymlops assess`: the verdict on a file or on a pipeline's data, before anything is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raymlops.cli_target import read_frame
from raymlops.data.assess import Assess, Assessment, assess
from raymlops.errors import ConfigError
from raymlops.settings import Settings

if TYPE_CHECKING:
    from raymlops.pipeline import Pipeline

out, err = Console(), Console(stderr=True)
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red", "skipped": "dim"}
_TOLD = ("predictive", "enough_rows", "unrelated", "freshness")
_ORDER = ("fail", "warn", "skipped", "pass")


def register(app: typer.Typer, load_target: Callable[[str], Pipeline]) -> None:
    """Add the command to the command line; ``load_target`` finds the pipeline behind ``FILE.py:NAME``."""

    @app.command("assess")
    def command(
        target: Annotated[str, typer.Argument(help="CSV or Parquet files, or FILE.py:NAME of a Pipeline.")],
        label: Annotated[str | None, typer.Option(help="The label's column; a pipeline knows its own.")] = None,
        time_column: Annotated[str | None, typer.Option("--time", help="The column that orders the rows.")] = None,
        key: Annotated[str | None, typer.Option(help="The column that says who or what a row is about.")] = None,
        drop: Annotated[str, typer.Option(help="Columns to leave out, separated by commas.")] = "",
        output: Annotated[
            Path | None, typer.Option(help="File of the page; below the home's reports/ when left out.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False,
        show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    ) -> None:
        """Judge data before training: enough, clean, related, predictive, honest? Exit code 1 when a check fails."""
        if _is_pipeline(target):
            name, assessment = _of_pipeline(load_target(target), label, time_column)
        else:
            left_out = tuple(part.strip() for part in drop.split(",") if part.strip())
            name, assessment = _of_files(target, label, time_column, key, left_out)
        if as_json:
            typer.echo(json.dumps(assessment.to_dict()))
        else:
            out.print(table_of(assessment))
        if show or output is not None or not as_json:
            _write_page(name, assessment, output, show)
        raise typer.Exit(0 if assessment.passed else 1)


def _is_pipeline(target: str) -> bool:
    place, colon, name = target.rpartition(":")
    return bool(colon) and name.isidentifier() and "//" not in target and not Path(target).exists() and "*" not in place


def _of_pipeline(pipeline: Pipeline, label: str | None, time_column: str | None) -> tuple[str, Assessment]:
    from raymlops.loop.ports import Silent
    from raymlops.loop.ray_loop import judged, read_rows

    if label is not None or time_column is not None:
        raise ConfigError("A pipeline's source says its own label and time: leave --label and --time out.")
    frame = read_rows(pipeline, Settings.read(), Silent())
    return pipeline.name, judged(pipeline, frame, pipeline.declared.task)


def _of_files(
    path: str, label: str | None, time_column: str | None, key: str | None, drop: tuple[str, ...]
) -> tuple[str, Assessment]:
    if label is None:
        raise ConfigError("With a file also give --label: the column to predict.")
    frame = read_frame(path, label, time_column, drop)
    return Path(path).stem or path, assess(frame, label, time_column, spec=Assess(key=key))


def table_of(assessment: Assessment) -> Table:
    """What failed or warns, the figures of what can be learnt, and the names of the checks that passed."""
    passed = [check for check in assessment.checks if check.verdict == "pass" and check.check not in _TOLD]
    table = Table(
        "check", "verdict", "what was found, and what to do", title=headline(assessment), title_justify="left"
    )
    for check in sorted(assessment.checks, key=lambda one: _ORDER.index(one.verdict)):
        if check not in passed:
            said = _plain(f"{check.message} {check.advice}".strip())
            table.add_row(_plain(check.name), f"[{_COLOURS[check.verdict]}]{check.verdict}[/]", said)
    if passed:
        table.caption = _plain(f"passed: {', '.join(check.name for check in passed)}")
        table.caption_justify = "left"
    return table


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def headline(assessment: Assessment) -> str:
    """One sentence."""
    failed, warned = len(assessment.failures), len(assessment.warnings)
    if failed:
        return f"{assessment.rows:,} rows: not fit to train on, {failed} checks failed, {warned} warn"
    return f"{assessment.rows:,} rows: fit to train on" + (f", {warned} checks warn" if warned else "")


def _write_page(name: str, assessment: Assessment, output: Path | None, show: bool) -> None:
    import webbrowser

    from raymlops.report.assess_page import assess_page

    path = output or Settings.read().ensure_home() / "reports" / f"{name}-data.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(assess_page(name, assessment, now=time.time()), encoding="utf-8")
    err.print(str(path), markup=False, highlight=False, soft_wrap=True)
    if show and not webbrowser.open(path.absolute().as_uri()):
        err.print("No browser could be opened here: open the file yourself.")
