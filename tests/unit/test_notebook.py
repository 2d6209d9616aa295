"""What a run shows in a notebook's cell, by a stand-in for IPython's display; and that nobody is shown anything where nobody looks."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from raymlops.report.notebook import NotebookProgress, watching
from raymlops.report.terminal import RichProgress
from raymlops.search.leaderboard import Trial


class Cells:
    """Keeps every page that a cell has shown."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def update(self, html: str) -> None:
        self.pages.append(html)


def ipython(monkeypatch: pytest.MonkeyPatch, shell: Any) -> Cells:
    cells, package, display = Cells(), ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: shell
    display.HTML = str

    def show(html: str, display_id: bool) -> Cells:
        assert display_id
        cells.update(html)
        return cells

    display.display = show
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return cells


def test_a_cell_shows_stages_and_a_leaderboard_that_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ipython(monkeypatch, SimpleNamespace(kernel=object()))
    with watching() as progress:
        assert isinstance(progress, NotebookProgress)
        progress.stage("search", "900 rows x 3 features, roc_auc")
        for number in range(5):
            progress.trial(Trial(number=number, family="linear", params={}, score=0.7 + number / 100))
        progress.note("all <b>five</b> ended")
    assert "900 rows x 3 features" in cells.pages[1]
    last = cells.pages[-1]
    # Drawn at most four times a second, and once more at the end: five trials in no time are not five pages.
    assert len(cells.pages) < 6
    assert "0.7400" in last
    assert "0.7000" in last
    assert "all &lt;b&gt;five&lt;/b&gt; ended" in last


def test_an_error_leaves_what_was_shown_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ipython(monkeypatch, SimpleNamespace(kernel=object()))

    def run() -> None:
        with watching() as progress:
            progress.stage("prepare", "FrameSource")
            raise RuntimeError("no rows")

    with pytest.raises(RuntimeError, match="no rows"):
        run()
    assert "FrameSource" in cells.pages[-1]


def test_a_terminal_and_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ipython(monkeypatch, SimpleNamespace())  # IPython in a terminal has no kernel

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with watching() as progress:
        assert isinstance(progress, RichProgress)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with watching() as progress:
        assert progress is None
