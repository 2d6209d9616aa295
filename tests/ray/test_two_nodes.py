"""A search uses every node of a cluster, and all fits of a node share one copy of the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_fits_run_on_both_nodes_and_read_shared_rows(tmp_path: Path) -> None:
    """Two raylets in a process of its own: this one already belongs to the session's cluster."""
    script = Path(__file__).with_name("two_nodes.py")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYMLOPS_"))}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(said["nodes"]) == 2
    assert said["ran"] == said["nodes"]
    assert said["shared"]
