"""The command line: the verbs of :class:`raymlops.Endpoint`, `run` and `demo`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from raymlops import cli_assess
from raymlops.cli_data import data, lineage, parity
from raymlops.cli_model import app as model_commands
from raymlops.cli_model import rows_of
from raymlops.cli_target import load_target
from raymlops.errors import ConfigError, RaymlopsError, nearest
from raymlops.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(model_commands)
out, err = Console(), Console(stderr=True)
app.add_typer(data)
app.command()(lineage)
app.command()(parity)

Name = Annotated[str, typer.Argument(help="The endpoint's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]


@app.command()
def run(
    target: Annotated[str, typer.Argument(help="FILE.py:NAME or package.module:NAME of a Pipeline.")],
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave the endpoint to a cluster that is already running.")
    ] = False,
) -> None:
    """Turn the loop once for a pipeline and serve it: in the foreground, or with --detach on a running cluster."""
    from dataclasses import replace

    from raymlops.report.terminal import RichProgress

    settings = Settings.read()
    pipeline = load_target(target)
    if detach and settings.ray_address in (None, "local"):
        settings = replace(settings, ray_address="auto")
    with RichProgress(err) as progress:
        endpoint = _joined(pipeline, settings, progress, detach)
    out.print(f"[bold]{pipeline.name}[/] serves at {endpoint.url}/predict and {endpoint.direct_url}/predict")
    if detach:
        out.print(f"It outlives this command. Next: raymlops status {pipeline.name}")
        return
    out.print("Ctrl-C ends it.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        out.print("ended")


def _joined(pipeline: Any, settings: Settings, progress: Any, detach: bool) -> Any:
    try:
        return pipeline.run(settings=settings, progress=progress)
    except ConnectionError as error:
        if not detach:
            raise
        raise ConfigError(
            "--detach needs a Ray cluster that is running, and none was found. Start one with "
            '`eval "$(raymlops env)"; ray start --head`, or leave --detach out.'
        ) from error


@app.command()
def env() -> None:
    """Print the exports that a node needs before `ray start`: where the JVM is, and these settings."""
    import shlex

    from raymlops.data.ray_dp import java_environment

    settings = Settings.read()
    for key, value in {**java_environment(settings), **settings.environ()}.items():
        typer.echo(f"export {key}={shlex.quote(value)}")


@app.command()
def status(name: Name, as_json: Json = False) -> None:
    """What serves, what the loop is doing, what the monitor last saw."""
    from raymlops.report.terminal import status_table

    found = _endpoint(name).status()
    typer.echo(json.dumps(found)) if as_json else out.print(status_table(found))


@app.command()
def watch(name: Name, seconds: Annotated[float, typer.Option(help="Stop after this long.")] = 1e9) -> None:
    """The status, refreshed until Ctrl-C."""
    from rich.live import Live

    from raymlops.report.terminal import status_table

    endpoint, deadline = _endpoint(name), time.monotonic() + seconds
    with Live(console=out, refresh_per_second=4) as live:
        while time.monotonic() < deadline:
            live.update(status_table(endpoint.status()))
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(help="One endpoint; all when left out.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash chain.")] = False,
    as_json: Json = False,
) -> None:
    """What happened and why, oldest first."""
    from raymlops.events import EventLog
    from raymlops.store import Store

    log = EventLog(Store(Settings.read().store))
    if verify:
        out.print(f"{log.verify()} events, the chain verifies")
        return
    events = log.read(name)
    if as_json:
        for event in events:
            typer.echo(
                json.dumps(
                    {
                        "seq": event.seq,
                        "at": event.at,
                        "endpoint": event.endpoint,
                        "kind": event.kind,
                        "body": event.body,
                    }
                )
            )
        return
    table = Table("seq", "when", "endpoint", "what", "evidence")
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        evidence = str(event.body.get("reason") or json.dumps(event.body))
        table.add_row(str(event.seq), when, event.endpoint, event.kind, evidence[:200])
    out.print(table)


@app.command()
def report(
    name: Name,
    output: Annotated[Path | None, typer.Option(help="File to write; below the home's reports/ when left out.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the drift report page: what moved, how sure, what it costs, what was decided and why, what is due."""
    import webbrowser

    from raymlops.events import EventLog
    from raymlops.report.drift_page import drift_page
    from raymlops.store import Store

    settings = Settings.read()
    store = Store(settings.store)
    kinds = {kind: store.get(kind, name) or {} for kind in ("loop", "monitor", "watch")}
    if not kinds["loop"]:
        raise ConfigError(f"The store knows no endpoint {name!r}.{nearest(name, store.names('loop'))}")
    events, conflicts = EventLog(store).read(name), store.conflicts(name)
    page = drift_page(name, **kinds, events=events, now=time.time(), conflicts=conflicts)
    path = output or settings.ensure_home() / "reports" / f"{name}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    out.print(str(path), markup=False, highlight=False, soft_wrap=True)
    if show and not webbrowser.open(path.absolute().as_uri()):
        err.print("No browser could be opened here: open the file yourself.")


@app.command()
def predict(
    name: Name, rows: Annotated[str, typer.Argument(help="Rows as JSON: [{...}], {...}, or - for standard input.")]
) -> None:
    """Ask the endpoint for predictions."""
    typer.echo(json.dumps(_endpoint(name).predict(rows_of(sys.stdin.read() if rows == "-" else rows))))


@app.command()
def batch(
    name: Name,
    input: Annotated[list[str], typer.Option(help="CSV or Parquet: a path, a glob, a folder, a URL; may be repeated.")],
    output: Annotated[str, typer.Option(help="Folder or URL for the scored rows, as Parquet.")],
    version: Annotated[int | None, typer.Option(help="Instead of the champion.")] = None,
    format: Annotated[str | None, typer.Option(help="csv or parquet, where the name does not tell.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Columns for the output, by commas, or 'all'; by default what the model does not take."),
    ] = None,
    on_bad: Annotated[
        str, typer.Option(help="fail: stop at a row against the contract; keep: put it into _refused/ with the reason.")
    ] = "fail",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    part_rows: Annotated[int | None, typer.Option(help="Rows that are scored and written together.")] = None,
    as_json: Json = False,
) -> None:
    """Score files with the champion, on Ray Data: same package and contract as a request, a drift report beside the rows."""
    from dataclasses import asdict

    from raymlops.report.terminal import RichProgress, batch_table

    columns = None if keep is None else [word.strip() for word in keep.split(",") if word.strip()]
    with RichProgress(err) as progress:
        result = _endpoint(name).batch(
            input,
            output,
            version=version,
            format=format,
            keep=columns,
            on_bad=on_bad,
            resume=resume,
            part_rows=part_rows,
            progress=progress,
        )
    typer.echo(json.dumps(asdict(result))) if as_json else out.print(batch_table(asdict(result)))


@app.command()
def promote(name: Name, reason: Reason = "by hand") -> None:
    """Make the challenger the champion now, whatever its policy still waits for."""
    _tell(_endpoint(name).promote(reason))


@app.command()
def approve(name: Name, reason: Reason = "by hand") -> None:
    """Release the one rollout step, promotion included, that approval="manual" holds."""
    _tell(_endpoint(name).approve(reason))


@app.command()
def abort(name: Name, reason: Reason = "by hand") -> None:
    """Take the challenger out of the traffic."""
    _tell(_endpoint(name).abort(reason))


@app.command()
def rollback(name: Name, reason: Reason = "by hand") -> None:
    """Out of a rollout, abort it; otherwise serve the earlier champion again."""
    _tell(_endpoint(name).rollback(reason))


@app.command()
def undo(name: Name, reason: Reason = "by hand") -> None:
    """The same as rollback."""
    _tell(_endpoint(name).rollback(reason))


@app.command()
def pause(name: Name) -> None:
    """Hold the rollout at its present weight."""
    _tell(_endpoint(name).pause())


@app.command()
def resume(name: Name) -> None:
    """Let a paused rollout go on, or retrainings start again after the policy asked for a person."""
    _tell(_endpoint(name).resume())


@app.command()
def retrain(
    name: Name,
    event: Annotated[
        str | None, typer.Option(help="Run the retraining of this event here; what a retraining job calls.")
    ] = None,
    reason: Reason = "by hand",
) -> None:
    """Ask the steward for a retraining job."""
    if event is None:
        _tell(_endpoint(name).retrain(reason))
        return
    from raymlops.loop.ray_loop import retrain as run_retraining
    from raymlops.report.terminal import Plain

    version = run_retraining(name, event, Settings.read(), Plain())
    out.print("refused" if version is None else f"version {version.version} handed over")


@app.command()
def demo(
    data: Annotated[str | None, typer.Option(help="CSV or Parquet file; a generated stream when left out.")] = None,
    label: Annotated[str | None, typer.Option(help="The label's column.")] = None,
    time_column: Annotated[str | None, typer.Option("--time", help="The column that orders the rows.")] = None,
    drop: Annotated[str, typer.Option(help="Columns to leave out, separated by commas.")] = "",
    train_fraction: Annotated[float, typer.Option(help="Share of the rows the first training sees.")] = 0.4,
    label_delay: Annotated[int, typer.Option(help="Labels arrive this many rows after their prediction.")] = 100,
    hold: Annotated[
        bool, typer.Option(help="Hold the stream while a retraining runs: a second here is days of it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Turn the whole loop on a stream: train, serve, replay the rest as live HTTP traffic, retrain, promote."""
    from raymlops.demo import DemoOptions, run_demo
    from raymlops.report.terminal import RichProgress, demo_table

    options = DemoOptions(
        data=data,
        label=label,
        time=time_column,
        drop=tuple(name for name in drop.split(",") if name),
        train_fraction=train_fraction,
        label_delay=label_delay,
        hold=hold,
    )
    with RichProgress(err) as progress:
        result = run_demo(options, Settings.read(), progress)
    (err if as_json else out).print(demo_table(result))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        out.print("Next: `raymlops demo --data YOUR.csv --label COLUMN --time COLUMN`, or a pipeline of your own:")
        out.print("  python examples/electricity.py  ·  raymlops run examples/electricity.py:pipeline  ·  README.md")


cli_assess.register(app, load_target)


def _endpoint(name: str) -> Any:
    from raymlops.loop.ray_endpoint import Endpoint

    return Endpoint(name)


def _tell(state: dict[str, Any]) -> None:
    out.print(
        f"{state['phase'][0]}: champion {state['champion']}, previous {state['previous']}, split {state['split']}"
    )


def main() -> None:
    """Run the command line; an error of ours is one clear message and exit code 1, no trace."""
    try:
        app(standalone_mode=True)
    except RaymlopsError as error:
        err.print(f"[red]{type(error).__name__}[/]: ", end="")
        err.print(error.message, markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
