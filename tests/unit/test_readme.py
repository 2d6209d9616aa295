"""The README's policies are the ones there are, with options that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from raymlops.serving.policies import POLICIES, Canary

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_rollout_examples_run() -> None:
    section = README.split("## Rollout policies")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    made = {type(value) for value in names.values() if isinstance(value, POLICIES)}
    assert made == set(POLICIES)
    assert names["careful"].approval == "manual"
    assert names["provisional"] == Canary(confirm_labels=500)


def test_the_table_of_policies_is_complete_and_its_options_exist() -> None:
    section = README.split("## Rollout policies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+\(.*?\))` \|", section, re.MULTILINE)
    made = [eval(row, {policy.__name__: policy for policy in POLICIES}) for row in rows]
    assert [type(policy) for policy in made] == list(POLICIES)
    assert made == [policy() for policy in POLICIES]  # what the table shows are the defaults
