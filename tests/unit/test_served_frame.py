"""The rows of a retraining: those of the first training and those that were served, each once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raymlops import CombinedSource, FrameSource, Pipeline, ServedSource
from raymlops.data.assess import assess
from raymlops.data.schema import learn_contract
from raymlops.data.served import ARRIVED
from raymlops.data.snapshot import write_snapshot
from raymlops.lake import Lake
from raymlops.loop import pipelines
from raymlops.settings import Settings
from raymlops.store import Store

NOW = 1_790_000_000.123457


@pytest.mark.parametrize("endpoint", ["churn", "another"])
def test_rows_the_first_training_had_from_the_endpoint_are_learnt_once(
    endpoint: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    old = pd.DataFrame({"a": rng.normal(size=60), "y": rng.integers(0, 2, 60)})
    old["ts"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(60), unit="h")
    served = pd.DataFrame({"a": 10.0 + np.arange(50), "y": [0, 1] * 25, ARRIVED: NOW + 0.1 * np.arange(50)})
    early = served.head(30)
    mine = early.drop(columns=ARRIVED).assign(ts=pd.to_datetime(early[ARRIVED], unit="s"))
    frame = pd.concat([old, mine], ignore_index=True)
    store, lake = Store(settings.store), Lake(settings.lake)
    contract = learn_contract(frame, "y", drop=("ts",))
    snapshot = write_snapshot(lake, "churn", frame, contract, "ts", "test", assess(frame, "y", "ts"), NOW)
    store.put("snapshots", "churn", {"key": snapshot.key})
    monkeypatch.setattr(pipelines, "read_labelled", lambda *_: served.copy())
    source = CombinedSource(FrameSource(old, label="y", time="ts"), ServedSource(endpoint, label="y"))
    rows, _, fresh = pipelines.served_frame(Pipeline(name="churn", source=source), store, lake)
    assert fresh == 50
    assert len(rows) == (60 + 50 if endpoint == "churn" else 60 + 30 + 50)
    assert rows.a.is_unique is (endpoint == "churn")
    assert rows[ARRIVED].is_monotonic_increasing


@pytest.mark.parametrize("endpoint", ["churn", "another"])
def test_without_a_time_they_are_known_by_what_they_hold(
    endpoint: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    words = np.array(["Oslo", "Bergen", None], dtype=object)
    old = pd.DataFrame({"a": rng.normal(size=60), "c": words[rng.integers(0, 3, 60)], "y": rng.integers(0, 2, 60)})
    served = pd.DataFrame({"a": 10.0 + np.arange(50) // 2, "c": words[np.arange(50) % 3], "y": [0, 1] * 25})
    served.loc[[4, 5], ["a", "c", "y"]] = [12.0, "Oslo", 1]  # two rows of the same
    arrived = NOW + 0.1 * np.arange(50)
    # The lake has a third such row, which was never served, and one like a row that was served later.
    lake = pd.concat([old, served.iloc[[4]], served.iloc[[40]]], ignore_index=True)
    frame = pd.concat([lake, served.head(30)], ignore_index=True)
    store, snapshots = Store(settings.store), Lake(settings.lake)
    contract = learn_contract(frame, "y")
    snapshot = write_snapshot(snapshots, "churn", frame, contract, None, "test", assess(frame, "y", None), NOW + 2.95)
    store.put("snapshots", "churn", {"key": snapshot.key})
    monkeypatch.setattr(pipelines, "read_labelled", lambda *_: served.assign(**{ARRIVED: arrived}))
    source = CombinedSource(FrameSource(lake, label="y"), ServedSource(endpoint, label="y", time=None))
    rows, _, fresh = pipelines.served_frame(Pipeline(name="churn", source=source), store, snapshots)
    assert fresh == 50
    assert len(rows) == len(lake) + 50 + (0 if endpoint == "churn" else 30)
    if endpoint == "churn":
        assert (rows.a == 12.0).sum() == 3
        assert (rows.a == served.a[40]).sum() == 3
