"""A run as it is watched where it was started: a display that updates in a notebook's cell, or in the terminal of a script."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

from rich.console import Console

from raymlops.report.terminal import RichProgress
from raymlops.search.selection import Trial

_EVERY_S = 0.25
_WIDTH = 120
_PAGE = "<pre style='line-height:1.25;overflow-x:auto'>{code}</pre>"


class Cell(Protocol):
    """What shows one HTML text and can show another in its place; IPython's ``DisplayHandle`` of an ``HTML`` is one."""

    def update(self, html: str) -> None: ...


class NotebookProgress:
    """The terminal's display as HTML, drawn anew with what happens, at most four times a second; stages at once."""

    def __init__(self, cell: Cell) -> None:
        # Never started: it only keeps what it was told, and draws it.
        self._told = RichProgress(Console(file=io.StringIO(), force_terminal=True, width=_WIDTH))
        self._cell = cell
        self._shown = float("-inf")

    def stage(self, name: str, detail: str = "") -> None:
        self._told.stage(name, detail)
        self._show()

    def trial(self, trial: Trial) -> None:
        self._told.trial(trial)
        self._show(_EVERY_S)

    def note(self, text: str) -> None:
        self._told.note(text)
        self._show(_EVERY_S)

    def end(self) -> None:
        """Show what came last."""
        self._show()

    def _show(self, after_s: float = 0.0) -> None:
        if time.monotonic() - self._shown < after_s:
            return
        self._shown = time.monotonic()
        page = Console(file=io.StringIO(), record=True, force_terminal=True, width=_WIDTH)
        page.print(self._told.drawn(trials=True))
        self._cell.update(page.export_html(inline_styles=True, code_format=_PAGE))


class _Shown:
    """IPython's handle on what a cell displays."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle = display.display(display.HTML(""), display_id=True)

    def update(self, html: str) -> None:
        self._handle.update(self._display.HTML(html))


@contextmanager
def watching() -> Iterator[NotebookProgress | RichProgress | None]:
    """The display for a run that was given none: a notebook's, that of a terminal at standard error, or ``None`` where nobody looks."""
    display = _notebook()
    if display is not None:
        progress = NotebookProgress(_Shown(display))
        try:
            yield progress
        finally:
            progress.end()
    elif sys.stderr.isatty():
        with RichProgress(Console(stderr=True)) as terminal:
            yield terminal
    else:
        yield None


def _notebook() -> Any | None:
    """``IPython.display`` where this process is a notebook's kernel, which has imported IPython already."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return import_module("IPython.display")
