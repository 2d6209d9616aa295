"""docs/models.md does what it says: its blocks run, its table of checks is the gate's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raymlops.gate import Gate, GateEvidence, evaluate
from raymlops.search.objective import Objective

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_blocks_run(block: str) -> None:
    exec(compile(block, "docs/models.md", "exec"), {"__name__": "shown"})


def test_the_table_of_checks_is_complete() -> None:
    evidence = GateEvidence(
        objective=Objective.of("roc_auc", "binary"),
        train_score=0.9,
        validation_score=0.9,
        test_score=0.9,
        baseline_score=0.5,
        test_rows=10,
    )
    told = [
        name
        for row in re.findall(r"^\| ((?:`\w+`,? ?)+)\|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    ]
    assert told == [check.name for check in evaluate(Gate(), evidence).checks]
