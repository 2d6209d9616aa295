"""The main job: the loop turns on a file, over HTTP, with a real change in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from raymlops.demo import generate_stream

BIN = Path(sys.executable).parent


def run_cli(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "RAYMLOPS_HOME": str(home)}
    return subprocess.run([BIN / "raymlops", *arguments], capture_output=True, text=True, env=environ, timeout=500)


def test_the_loop_notices_retrains_and_promotes(tmp_path: Path) -> None:
    data = tmp_path / "stream.csv"
    generate_stream(rows=9_000, change_at=0.55).to_csv(data, index=False)
    done = run_cli(tmp_path, "demo", "--data", str(data), "--label", "returned", "--time", "ordered_at", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["rows"] == 5_400
    assert result["failed"] == 0
    assert result["promoted"] >= 1
    assert result["score_loop"] > result["score_static"] + 0.02
    assert result["metric"] == "roc_auc"
    assert result["seconds"] > 0
    checked = run_cli(Path(result["home"]), "history", "--verify")
    assert "the chain verifies" in checked.stdout
    kinds = [
        json.loads(line)["kind"]
        for line in run_cli(Path(result["home"]), "history", "demo", "--json").stdout.splitlines()
    ]
    for kind in (
        "assessed",
        "snapshot",
        "gated",
        "registered",
        "deployed",
        "retrain_started",
        "rollout_started",
        "promoted",
    ):
        assert kind in kinds
    assert kinds.index("retrain_started") < kinds.index("rollout_started") < kinds.index("promoted")
    card = json.loads(run_cli(Path(result["home"]), "card", "demo", "--json").stdout)
    assert card["version"]["aliases"] == ["champion"]
    assert card["lineage"]["parent"] >= 1


def test_bad_options_say_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "stream.csv"
    generate_stream(rows=100).to_csv(data, index=False)
    for arguments, message in [
        (["--data", str(data)], "also give --label and --time"),
        (["--data", str(data), "--label", "returnd", "--time", "ordered_at"], "Did you mean 'returned'"),
        (["--data", "nowhere.csv", "--label", "a", "--time", "b"], "There is no file 'nowhere.csv'"),
        (["--train-fraction", "2"], "give 0.05 to 0.95"),
    ]:
        done = run_cli(tmp_path, "demo", *arguments)
        assert done.returncode == 1
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
