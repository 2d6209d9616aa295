"""The commands about data, on a catalog that is really there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from raymlops.cli import app
from raymlops.data.assess import assess
from raymlops.data.catalog import Catalog
from raymlops.data.contract_text import to_yaml
from raymlops.data.schema import learn_contract
from raymlops.data.snapshot import write_snapshot
from raymlops.data.snapshot_origin import Origin
from raymlops.errors import ConfigError, ContractViolation, DataError, UnknownRequest
from raymlops.lake import Lake
from raymlops.settings import Settings
from raymlops.store import PredictionRow, Store

FRAME = pd.DataFrame(
    {
        "age": np.arange(60) % 30 + 20,
        "city": ["Oslo", "Bergen"] * 30,
        "ts": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(60), unit="h"),
        "y": [0, 1, 1] * 20,
    }
)


def features(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    settings = Settings.read()
    made = Catalog.open(settings)
    origin = Origin.of({"features": features}, files=["s3://lake/churn/"], plan="== Physical Plan ==")
    for event, frame in (("e1", FRAME), ("e2", FRAME.assign(age=FRAME.age + 40))):
        contract = learn_contract(frame, "y", drop=("ts",))
        snapshot = write_snapshot(
            Lake(settings.lake),
            "churn",
            frame,
            contract,
            "ts",
            "FileSource",
            assess(frame, contract),
            5.0,
            origin=origin,
        )
        made.record(snapshot, event)
    made.used(snapshot.key, "churn", 1, "e2")
    store = Store(settings.store)
    store.add_predictions(
        "churn", [PredictionRow(request_id="r-1", row_index=0, version=1, variant="champion", score=0.1, served_at=9.0)]
    )
    return made


def ran(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def said(*words: str) -> str:
    result = ran(*words)
    assert result.exit_code == 0, result.output or result.exception
    return result.output


def test_list_and_search() -> None:
    assert "churn@2" in said("data", "list")
    found = json.loads(said("data", "list", "--search", "LAKE", "--column", "age", "--json"))
    assert [item["version"] for item in found] == [1, 2]
    assert json.loads(said("data", "list", "--column", "agee", "--json")) == []


def test_show_figures_code_and_plan() -> None:
    text = said("data", "show", "churn")
    for part in ("churn@2, 60 rows", "s3://lake/churn/", "model churn version 1", "Oslo 50%", "2026-01-0"):
        assert part in text
    assert "def features(frame" in said("data", "show", "churn", "--code")
    assert "== Physical Plan ==" in said("data", "show", "churn", "--plan")
    body = json.loads(said("data", "show", "churn", "--json"))
    assert body["uses"][0]["model_version"] == 1
    assert [column["name"] for column in body["snapshot"]["profile"]] == ["age", "city", "y", "ts"]


def test_diff() -> None:
    text = said("data", "diff", "churn@1", "churn")
    assert "rows: 60 → 60" in text
    assert "~ column 'age' seen: 20 to 49 → 60 to 89" in text
    body = json.loads(said("data", "diff", "churn@1", "churn", "--json"))
    assert [item["column"] for item in body["moved"]] == ["age"]


def test_tag_set_and_rm() -> None:
    assert "churn@1: golden" in said("data", "tag", "churn@1", "golden")
    assert json.loads(said("data", "list", "--tag", "golden", "--json"))[0]["version"] == 1
    assert "churn@1: no tags" in said("data", "tag", "churn@1", "golden", "--remove")
    assert "Anna" in said("data", "set", "churn", "--owner", "Anna", "--keep-versions", "1")
    assert json.loads(said("data", "set", "churn", "--json"))["keep_versions"] == 1
    assert "churn@1: 60 rows removed" in said("data", "rm", "churn@1")
    assert "removed" in said("data", "list", "--removed")
    refused = ran("data", "rm", "churn@2").exception
    assert isinstance(refused, DataError)
    assert "needed by model churn version 1" in refused.message
    assert "churn@2: 60 rows removed" in said("data", "rm", "churn@2", "--force")
    assert "removed" in said("data", "show", "churn@2")
    assert isinstance(ran("data", "show", "churn@2", "--code").exception, DataError)


def test_contracts_are_written_compared_and_checked(tmp_path: Path) -> None:
    path, rows = tmp_path / "churn.yaml", tmp_path / "rows.csv"
    text = said("data", "contract", "show", "churn@1")
    assert text == to_yaml(learn_contract(FRAME, "y", drop=("ts",)))
    path.write_text(text.replace("seen: [20.0, 49.0]", "range: [20, 40]"))
    assert "range: none to none → 20 to 40  (stricter)" in said("data", "contract", "diff", "churn@1", str(path))
    assert said("data", "contract", "diff", "churn@1", "churn@1") == "the same\n"
    assert json.loads(said("data", "contract", "show", str(path), "--json"))["columns"][0]["high"] == 40.0
    assert json.loads(said("data", "contract", "diff", "churn@1", str(path), "--json"))[0]["effect"] == "none"
    FRAME[FRAME.age <= 40].to_csv(rows, index=False)
    assert "42 rows keep" in said("data", "contract", "check", str(path), str(rows), "--time", "ts")
    FRAME.to_csv(rows, index=False)
    broken = ran("data", "contract", "check", str(path), str(rows), "--time", "ts")
    assert isinstance(broken.exception, ContractViolation)
    assert "column 'age': expected at most 40, got 41 (row 21 and 17 more of 60 rows)" in str(broken.exception)
    machine = ran("data", "contract", "check", str(path), str(rows), "--time", "ts", "--json")
    assert machine.exit_code == 1
    assert json.loads(machine.output)["violations"][0]["rows"] == 18
    parts = tmp_path / "parts"
    parts.mkdir()
    for half in range(2):
        FRAME.iloc[half * 10 : half * 10 + 10].to_json(parts / f"{half}.jsonl", orient="records", lines=True)
    assert "20 rows keep" in said("data", "contract", "check", str(path), str(parts))
    assert isinstance(ran("data", "contract", "check", str(path), "nope.csv").exception, DataError)
    path.write_text("max_age: 1d")
    assert isinstance(ran("data", "contract", "check", str(path), str(rows)).exception, ConfigError)


def test_lineage() -> None:
    text = said("lineage", "r-1")
    for part in ("churn version 1, as champion", "churn@2, 60 rows", "features", "s3://lake/churn/"):
        assert part in text
    assert json.loads(said("lineage", "r-1", "--json"))["dataset"]["version"] == 2
    assert isinstance(ran("lineage", "r-2").exception, UnknownRequest)


PIPELINES = """
import pandas as pd
from raymlops import FrameSource, Pipeline

frame = pd.DataFrame({"a": [1.0, 2.0, 4.0, 8.0], "y": [0, 1, 0, 1]})
source = FrameSource(frame, label="y")
good = Pipeline(name="good", source=source, features=lambda f: f.assign(b=f.a * 2))
bad = Pipeline(name="bad", source=source, features=lambda f: f.assign(b=f.a - f.a.mean()))
plain = Pipeline(name="plain", source=source)
"""


def test_parity_without_spark(tmp_path: Path) -> None:
    path = tmp_path / "parity_pipelines.py"
    path.write_text(PIPELINES)
    assert "all agree" in said("parity", f"{path}:good", "--no-spark")
    assert "no features function" in said("parity", f"{path}:plain")
    refused = ran("parity", f"{path}:bad", "--no-spark", "--rows", "3", "--json")
    assert refused.exit_code == 1
    body = json.loads(refused.output)
    assert (body["rows"], body["agrees"]) == (3, False)
    assert body["differences"][0]["column"] == "b"
