"""What a run states, checks and enters about its data, without Ray: contract, snapshot, catalog, event log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raymlops import FrameSource, Pipeline
from raymlops.data.catalog import Catalog
from raymlops.data.served import ARRIVED
from raymlops.errors import ContractViolation
from raymlops.events import EventLog
from raymlops.lake import Lake
from raymlops.loop.ports import Silent
from raymlops.loop.ray_loop import Turn
from raymlops.settings import Settings
from raymlops.store import Store

CONTRACT = """
columns: {a: {range: [-9, 9]}}
unique: [key]
max_age: 30d
rules:
  known: c in ["u", "v"]
"""


def features(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(twice=frame.a * 2)


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=600)
    start = pd.Timestamp.now().floor("s") - pd.Timedelta("10d")
    return pd.DataFrame(
        {
            "a": a,
            "c": rng.choice(["u", "v"], 600),
            "key": np.arange(600),
            "ts": start + pd.to_timedelta(np.arange(600), unit="min"),
            "y": (a + rng.normal(size=600) > 0).astype(int),
        }
    )


@pytest.fixture
def turn(frame: pd.DataFrame, tmp_path: Path, settings: Settings) -> Turn:
    path = tmp_path / "contract.yaml"
    path.write_text(CONTRACT)
    source = FrameSource(frame, label="y", time="ts", drop=("key",))
    store = Store(settings.store)
    return Turn(
        pipeline=Pipeline(name="churn", source=source, features=features, contract=path),
        settings=settings,
        progress=Silent(),
        store=store,
        lake=Lake(settings.lake),
        registry=None,  # type: ignore[arg-type]
        events=EventLog(store),
        spark=("== Physical Plan ==", ["s3://lake/churn/part-0.parquet"]),
    )


def test_a_run_checks_its_contract_and_enters_its_snapshot(turn: Turn, frame: pd.DataFrame) -> None:
    snapshot = turn._snapshot(frame, "ts", None, "e1")
    assert snapshot.contract.names == ("a", "c")  # the key was checked and is not learned from
    assert snapshot.contract.columns[0].low == -9.0
    version = Catalog(turn.store, turn.lake).get("churn")
    assert (version.snapshot_key, version.event_id) == (snapshot.key, "e1")
    assert version.origin["files"] == ["s3://lake/churn/part-0.parquet"]
    assert [part["role"] for part in version.origin["code"]] == ["features"]
    assert [event.kind for event in turn.events.read()] == ["contract", "assessed", "snapshot"]
    assert turn.store.get("snapshots", "churn") is None  # the gate may refuse yet: the base of retrainings stays
    turn.store.put("snapshots", "churn", {"key": snapshot.key})
    served = frame.drop(columns=["key", "ts"]).assign(**{ARRIVED: np.arange(600.0)})
    again = turn._snapshot(served, ARRIVED, 50, "e2")
    assert again.origin.parents == (snapshot.key,)
    assert again.origin.served == "churn"
    assert turn.events.read()[3].body["does_not_apply"] == ["unique (key)", "freshness"]
    assert [item.ref for item in Catalog(turn.store, turn.lake).list()] == ["churn@1", "churn@2"]


def test_data_that_breaks_the_contract_stops_the_run_before_anything_is_stored(turn: Turn, frame: pd.DataFrame) -> None:
    with pytest.raises(ContractViolation, match=r"column 'a': expected at most 9, got 99\.0 \(row 3\); unique \(key\)"):
        turn._snapshot(frame.assign(a=frame.a.where(frame.index != 3, 99.0), key=1), "ts", None, "e1")
    assert list(turn.lake.keys("snapshots")) == []
    assert turn.events.read() == []
