"""What a run looks like in a terminal: stages, a live leaderboard, weights, drift, the score so far."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raymlops.search.ensemble import FAMILY, named
from raymlops.search.selection import Trial


class Plain:
    """Progress as lines, for logs."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._started = time.monotonic()

    def stage(self, name: str, detail: str = "") -> None:
        self._console.print(
            f"[{time.monotonic() - self._started:6.1f} s] {name}: {detail}", markup=False, highlight=False
        )

    def trial(self, trial: Trial) -> None:
        self.stage("trial", f"{trial.number} {trial.family} {trial.status} {_score(trial)} {_members(trial)}".rstrip())

    def note(self, text: str) -> None:
        self.stage("note", text)


class RichProgress:
    """Progress as a display that updates in place; lines where there is no terminal. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain = None if console.is_terminal else Plain(console)
        self._stages: list[tuple[str, str, float]] = []
        self._trials: list[Trial] = []
        self._note = ""
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> RichProgress:
        if self._plain is None:
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._plain is None:
            self._live.stop()

    def stage(self, name: str, detail: str = "") -> None:
        self._stages.append((name, detail, time.monotonic()))
        self._note = ""
        if self._plain is not None:
            self._plain.stage(name, detail)

    def trial(self, trial: Trial) -> None:
        # A trial that has climbed to more rows comes again, with its new score.
        self._trials = [*(old for old in self._trials if old.number != trial.number), trial]
        if self._plain is not None:
            self._plain.trial(trial)

    def note(self, text: str) -> None:
        if text != self._note and self._plain is not None:
            self._plain.note(text)
        self._note = text

    def _render(self) -> RenderableType:
        return self.drawn(trials=bool(self._stages) and self._stages[-1][0] == "search")

    def drawn(self, *, trials: bool) -> RenderableType:
        """What it was told, with the leaderboard or without."""
        lines: list[RenderableType] = []
        for (name, detail, began), following in zip(self._stages, [*self._stages[1:], None], strict=False):
            ended = following[2] if following else time.monotonic()
            mark = "✓" if following else "…"
            lines.append(
                Text(f"{mark} {name:<10} {ended - began:6.1f} s  {detail}", style="dim" if following else "bold")
            )
        if trials and self._trials:
            lines.append(leaderboard_table(self._trials))
        if self._note:
            lines.append(Text("  " + self._note, style="cyan"))
        return Group(*lines)


def leaderboard_table(trials: list[Trial], rows: int = 8) -> Table:
    """The best trials so far, in the order they came when none has a score."""
    table = Table("trial", "family", "score", "train", "fit s", "status")
    finished = [trial for trial in trials if trial.score is not None and trial.score == trial.score]
    for trial in (finished or trials)[-rows:]:
        table.add_row(
            str(trial.number),
            _members(trial) or trial.family,
            _score(trial),
            f"{trial.train_score:.4f}",
            f"{trial.fit_s:.1f}",
            trial.status,
        )
    return table


def status_table(status: dict[str, Any]) -> Table:
    """One endpoint's status for a person."""
    table = Table(title=f"{status['endpoint']} · {status['url']}", show_header=False)
    loop, gateway, monitor = status["loop"] or {}, status["gateway"], status["monitor"] or {}
    retraining = loop.get("retraining") or {}
    rows = {
        "ready": gateway.get("ready"),
        "state": (loop.get("phase") or ["unknown"])[0],
        "champion": loop.get("champion"),
        "earlier champion": loop.get("previous"),
        "traffic": loop.get("split"),
        "retraining": f"{retraining['event_id']}: {retraining['stage']}, {retraining['reason']}"
        if retraining
        else "none",
        "rows served": gateway.get("rows"),
        "errors": gateway.get("errors"),
        "latency": f"p50 {gateway.get('p50_ms')} ms, p99 {gateway.get('p99_ms')} ms",
        "monitor": monitor.get("text") or "no full window yet",
        "problem": gateway.get("error"),
    }
    for key, value in rows.items():
        if value is not None:
            table.add_row(key, str(value))
    return table


def batch_table(result: dict[str, Any]) -> Table:
    """The end of a bulk scoring run for a person."""
    table = Table(title=f"{result['endpoint']} version {result['version']} → {result['output']}", show_header=False)
    drift = result["drift"]
    moved = "too few rows to judge" if drift is None else drift["note"] or "nothing moved"
    rows = {
        "rows": f"{result['rows']:,}",
        "scored": f"{result['scored']:,}",
        "refused": f"{result['refused']:,}" + (" (see _refused/)" if result["refused"] else ""),
        "parts": f"{result['parts']:,}"
        + (f", of which {result['resumed']:,} were done before" * bool(result["resumed"])),
        "rows a second": f"{result['rows_per_s']:,.0f} ({result['runtime']})",
        "against the reference": moved,
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def demo_table(result: dict[str, Any]) -> Group:
    """The end of a demo: what was served, what was retrained, and whether it paid."""
    facts = Table(title=f"{result['data']}: the loop against its first model", show_header=False)
    name, better = result["metric"], "higher" if result["mode"] == "max" else "lower"
    for key, value in {
        "rows served over HTTP": f"{result['rows']:,}",
        "failed requests": str(result["failed"]),
        "retrainings": f"{result['retrainings']}, of which promoted {result['promoted']}",
        "versions": ", ".join(str(item) for item in result["versions"]),
        f"{name} of the loop ({better} is better)": f"{result['score_loop']:.4f}",
        f"{name} of the first model, never retrained": f"{result['score_static']:.4f}",
        f"{name} of persistence with the same label delay": f"{result['score_baseline']:.4f}",
        f"mean {name} per 1,000 rows: loop / first model": f"{result['score_loop_windowed']:.4f} / {result['score_static_windowed']:.4f}",
        "seconds": f"{result['seconds']:.0f}",
    }.items():
        facts.add_row(key, value)
    turns = Table("retraining", "reason", "outcome", "at row")
    for turn in result["turns"]:
        turns.add_row(turn["event_id"], turn["reason"], turn["outcome"], str(turn["row"]))
    return Group(facts, turns)


def _members(trial: Trial) -> str:
    return named(trial.params.get("members", ())) if trial.family == FAMILY else ""


def _score(trial: Trial) -> str:
    return "-" if trial.score is None or trial.score != trial.score else f"{trial.score:.4f}"
