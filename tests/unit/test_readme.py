"""What README shows is what there is: blocks compile, names import, commands parse."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from raymlops.cli import app

PAGES = sorted([Path(__file__).parents[2] / "README.md", *(Path(__file__).parents[2] / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(page.name, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text())]
PYTHON = [text for _, kind, text in BLOCKS if kind == "python"]
# The blocks of docs/data.md need those before them; tests/unit/test_data_page.py runs them all.
PIPELINES = [text for page, kind, text in BLOCKS if kind == "python" and "Pipeline(" in text and page != "data.md"]
LINES = [
    line.split(" #")[0].strip()
    for _, kind, text in BLOCKS
    if kind in ("sh", "bash", "console")
    for line in text.replace("\\\n", " ").splitlines()
]
COMMANDS = [line for line in LINES if line.split() and line.split()[0] == "raymlops"]


def test_there_is_something_to_check() -> None:
    assert PYTHON
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("text", PYTHON)
def test_python_blocks_compile_and_their_imports_are_there(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "raymlops":
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "raymlops":
                    importlib.import_module(alias.name)


@pytest.mark.parametrize("text", PIPELINES)
def test_pipelines_that_are_shown_can_be_built(text: str) -> None:
    """Keyword arguments that are not there, or values that cannot be, raise when a pipeline is declared."""
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(text, "README.md", "exec"), names)
    import raymlops

    assert any(isinstance(value, raymlops.Pipeline) for value in names.values())


def spelled_out(command: str) -> list[list[str]]:
    """``raymlops a | b NAME [--option VALUE]`` as each command it stands for, optional parts included."""
    plain = re.sub(r"[\[\]](?![^']*'(?:[^']*'[^']*')*[^']*$)", " ", command)
    words = shlex.split(plain)[1:]
    verbs, rest = [words[0]], words[1:]
    while len(rest) > 1 and rest[0] == "|":
        verbs.append(rest[1])
        rest = rest[2:]
    return [[verb, *rest] for verb in verbs]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_are_shown_parse(command: str) -> None:
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    for verb, *words in spelled_out(command):
        found = commands.get(verb)
        assert found is not None, f"there is no command {verb!r}"
        while hasattr(found, "commands"):
            verb, *words = words
            found = found.commands.get(verb)
            assert found is not None, f"there is no command {verb!r}"
        # Capitals stand for what a reader puts there; a number serves where one is asked for.
        given = [re.sub(r"^[A-Z_]+$", "7", word) for word in words]
        found.make_context(verb, given, resilient_parsing=False).close()


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("raymlops demo --dat FILE", "No such option"),
        ("raymlops walk NAME", "there is no command 'walk'"),
        ("raymlops status", "Missing"),
        ("raymlops data walk", "there is no command 'walk'"),
        ("raymlops demo --train-fraction x", "valid"),
    ],
)
def test_commands_that_are_not_there_do_not_parse(command: str, complaint: str) -> None:
    with pytest.raises(Exception, match=complaint):
        test_commands_that_are_shown_parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
