"""What a run states, checks and enters about its data, without Ray: contract, snapshot, catalog, event log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raymlops import FrameSource, Pipeline, cli_assess
from raymlops.data.assess import QUICK_MODELS, Assess
from raymlops.data.catalog import Catalog
from raymlops.data.contract_text import parse
from raymlops.data.schema import learn_contract
from raymlops.data.served import ARRIVED
from raymlops.data.snapshot import load_arrays
from raymlops.data.split import SplitBy
from raymlops.errors import ConfigError, ContractViolation
from raymlops.events import EventLog
from raymlops.gate import Gate
from raymlops.lake import Lake
from raymlops.loop import ray_loop
from raymlops.loop.held_period import HeldOutModel, PeriodWork
from raymlops.loop.ports import Silent
from raymlops.loop.ray_loop import Turn, judged, read_rows
from raymlops.monitor.monitor import Monitor
from raymlops.registry.package import REFERENCE_ROWS
from raymlops.search.decision import Decision
from raymlops.settings import Settings
from raymlops.sketch.period import counted
from raymlops.sketch.profile import SCORE
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
        registry=None,
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


def with_(turn: Turn, **changed: object) -> Turn:
    return replace(turn, pipeline=replace(turn.pipeline, **changed))


def test_what_is_served_is_the_base_of_retrainings(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def __init__(self, _settings: Settings) -> None: ...

        def start(self) -> None: ...

        def deploy_gateway(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(url="http://127.0.0.1/churn", direct_url="")

    monkeypatch.setattr("raymlops.serving.ray_serve.ServeEngine", Engine)
    for name in ("save_pipeline", "launch", "call"):
        monkeypatch.setattr(ray_loop.ray_steward, name, lambda *_: None)
    monkeypatch.setattr(ray_loop, "Endpoint", lambda *_: SimpleNamespace(wait_ready=lambda: None))
    ray_loop._serve(turn, SimpleNamespace(version=2, snapshot_key="snapshots/churn/2"), "e")
    assert turn.store.get("snapshots", "churn") == {"key": "snapshots/churn/2"}


def test_slices_are_refused_early_by_the_columns_that_the_gate_has(turn: Turn, frame: pd.DataFrame) -> None:
    good = with_(turn, gate=Gate(slices={"high": "a > 0", "u": "c == 'u'", "positive": "y == 1"}))
    good._snapshot(frame, "ts", None, "e1")
    for column in ("key", "ts"):
        with pytest.raises(ConfigError, match=r"slices\['late'\].* the model's inputs and the label: a, c, y"):
            with_(turn, gate=Gate(slices={"late": f"{column} == {column}"}))._snapshot(frame, "ts", None, "e2")


def test_rows_to_judge_are_those_that_a_run_judges(
    turn: Turn, frame: pd.DataFrame, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame.assign(who=frame.key % 200, machine=[f"m{i % 40}" for i in range(600)])
    source = FrameSource(frame, label="y", time="ts", drop=("key", "who"))
    contract = parse("{unique: [key], rules: {known: 'who >= 0'}}")
    spec = {"assess": Assess(key="who"), "split": SplitBy(group="machine"), "features": None, "contract": contract}
    pipeline = replace(turn.pipeline, source=source, **spec)
    rows = read_rows(pipeline, settings, Silent())
    assert set(rows.columns) == {"a", "c", "who", "machine", "ts", "y"}
    seen: list[pd.DataFrame] = []
    monkeypatch.setattr(ray_loop, "assess", lambda given, *_, **__: seen.append(given))
    judged(pipeline, rows, "binary")
    assert set(seen[0].columns) == {"a", "c", "who", "ts", "y"}  # a group's column is no input
    judged(replace(pipeline, assess=Assess()), rows, "binary")
    assert "machine" in seen[1].columns  # but the key


def test_a_pipeline_is_assessed_for_the_task_that_its_contract_states(
    turn: Turn, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[object] = []
    monkeypatch.setattr(ray_loop, "assess", lambda *given, **_: tasks.append(given[3]))
    pipeline = replace(turn.pipeline, contract=parse("task: regression"))
    monkeypatch.setattr(cli_assess.Settings, "read", lambda: turn.settings)
    cli_assess._of_pipeline(pipeline, None, None)
    assert tasks == ["regression"]


def test_a_champion_that_takes_other_columns_is_not_compared(turn: Turn, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda _, text: told.append(text))
    frame = pd.DataFrame({"a": [1.0, 2.0] * 30, "gone": [3.0] * 60, "y": [0, 1] * 30})
    contract = learn_contract(frame, "y")
    predictor = SimpleNamespace(contract=contract, predict=lambda x: x[:, 0])
    monkeypatch.setattr(Turn, "_champion", lambda _: SimpleNamespace(version=7, digest="d", package_key="k"))
    monkeypatch.setattr(ray_loop, "download", lambda *_: Path("folder"))
    monkeypatch.setattr(ray_loop.Predictor, "load", lambda _: predictor)
    assert turn._rival(None, None, frame.drop(columns="gone"), None) is None
    assert told == ["not compared with champion 7: it takes 'gone', and the data has no such column any more"]
    assert turn._rival(None, None, frame.assign(a="text"), None) is None
    assert "not compared with champion 7: " in told[1]
    assert "'a'" in told[1]


class Sums:
    """Says of a row its sum; ``slope`` tells two fits apart."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.slope / (1 + np.exp(-x.sum(axis=1)))


def test_all_held_out_rows_are_the_reference_where_they_are_many(
    turn: Turn, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = pd.concat([frame] * 60, ignore_index=True).assign(key=np.arange(36_000))
    many["ts"] = many.ts.min() + pd.to_timedelta(np.arange(36_000), unit="s")
    turn = with_(turn, assess=turn.pipeline.assess.without(*QUICK_MODELS))
    snapshot = turn._snapshot(many, "ts", None, "e1")
    arrays = load_arrays(turn.lake, snapshot)
    validation, test = len(arrays.y_validation), len(arrays.y_test)
    model = HeldOutModel(
        before=Sums(1.0), after=Sums(0.5), decision=Decision(), validation=validation, multiclass=False
    )
    asked: list[PeriodWork] = []
    monkeypatch.setattr(ray_loop, "count_in_spark", lambda work, **_: asked.append(work))
    found = turn._period(snapshot, arrays, model)
    assert found is not None
    assert found.sketch.rows == validation + test > REFERENCE_ROWS
    assert (found.bins.columns, asked) == (("a", "c", SCORE), [])
    monkeypatch.setattr("raymlops.loop.held_period.SPARK_VALUES", 1)
    assert replace(turn, spark=None)._period(snapshot, arrays, model).to_bytes() == found.to_bytes()
    assert not asked  # the rows did not come from Spark
    assert turn._period(snapshot, arrays, model).to_bytes() == found.to_bytes()
    (work,) = asked
    stored = counted(work.count_stored(task) for task in work.tasks())
    assert work.plan.profile(stored, snapshot.split.ordered).to_bytes() == found.to_bytes()
    recent = with_(turn, monitor=Monitor(reference="recent"))
    assert recent._period(snapshot, arrays, model) is None
