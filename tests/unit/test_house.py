"""The house rules that import-linter cannot state: the one glob, and small files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import raymlops

ROOT = Path(raymlops.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ENGINES = {"ray", "raydp", "pyspark"}


def imported(path: Path) -> set[str]:
    """Top-level packages a file imports anywhere; what stands under TYPE_CHECKING costs nothing and is left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30
    assert any(imported(path) & ENGINES for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_ray_files_import_engines(path: Path) -> None:
    assert path.name.startswith("ray") or not imported(path) & ENGINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_without_end(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600
    assert path.name != "utils.py"
