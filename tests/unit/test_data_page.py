"""The walk-through of docs/data.md runs, block after block, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raymlops.data.contract_text import parse

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_the_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), names)
    said = capsys.readouterr().out
    for promised in (
        "column 'age': expected at most 120, got 150 (row 7); unique (customer): expected each key once",
        "~ column 'age' range: none to none → 0 to 120  (stricter)",
        "column 'centred' differs in 50 row(s)",
        "Likely cause: it uses the other rows (mean, rank,",
    ):
        assert promised in said


def test_the_contract_that_is_shown_is_one() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    declared = parse(text)
    assert declared.unique == (("customer", "ts"),)
    assert [rule.scope for rule in declared.rules] == ["rows", "data"]
