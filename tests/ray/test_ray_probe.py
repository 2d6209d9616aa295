"""Probes as Ray tasks: a real registry, a real lake, what was served and labelled; one small fit each."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlops.data.served import LOG_COLUMNS
from raymlops.data.sources import FrameSource
from raymlops.lake import Lake
from raymlops.loop.pipelines import save_pipeline
from raymlops.loop.ports import ProbeFailed
from raymlops.loop.ray_probe import RayProbes
from raymlops.monitor.examine import Examination
from raymlops.pipeline import Pipeline
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.search.candidates import linear, xgboost
from raymlops.search.selection import Search
from raymlops.settings import Settings
from raymlops.store import LabelRow, PredictionRow, Store
from raymlops.testing.packages import install_version, table

NAME = "probed_endpoint"
FIRST, SINCE = 1000, 2000


@dataclass(frozen=True, slots=True)
class World:
    settings: Settings
    probes: RayProbes

    def ask(self, probe_id: str, endpoint: str = NAME, version: int = 1, change_at: float | None = None) -> Any:
        self.probes.probe(endpoint, probe_id, version, change_at)
        self.probes.probe(endpoint, probe_id, version, change_at)
        deadline = time.monotonic() + 90
        while (found := self.probes.probed(probe_id)) == "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def world(ray_cluster: Settings) -> World:
    store, lake = Store(ray_cluster.store), Lake(ray_cluster.lake)
    pipeline = Pipeline(name=NAME, source=FrameSource(table(500), label="y"), search=Search(candidates=[xgboost()]))
    save_pipeline(store, lake, pipeline)
    registry = MlflowRegistry(ray_cluster.mlflow)
    for version, family in ((1, "xgboost"), (2, "linear")):
        # The champion has learnt the opposite of what is served: a refit on what was served must gain.
        key, digest = install_version(ray_cluster, store, NAME, version, rounds=10, flipped=True)
        registry.register(
            name=NAME,
            package_key=key,
            digest=digest,
            metric="roc_auc",
            score=0.9,
            family=family,
            params={**xgboost().start, "rounds": 20, "recent": 1.0} if family == "xgboost" else dict(linear().start),
            snapshot_key="none",
            created_at=1.0,
            data_end=None,
            event_id=f"{NAME}-{version}",
        )
    _serve_and_label(store, lake)
    store.close()
    return World(ray_cluster, RayProbes(ray_cluster))


def _serve_and_label(store: Store, lake: Lake) -> None:
    rows = table(SINCE, seed=5)
    ids = [f"p{i}" for i in range(SINCE)]
    at = FIRST + np.arange(SINCE, dtype=float)
    log = dict(zip(LOG_COLUMNS, (ids, [0] * SINCE, [1] * SINCE, ["champion"] * SINCE, [0.5] * SINCE, at), strict=True))
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(pd.DataFrame({**log, "a": rows.a, "b": rows.b})), content)
    lake.write(f"served/{NAME}/part-1.parquet", content.getvalue())
    served = [
        PredictionRow(request_id=i, row_index=0, version=1, variant="champion", score=0.5, served_at=float(t))
        for i, t in zip(ids, at, strict=True)
    ]
    store.add_predictions(NAME, served)
    store.add_labels(
        NAME, [LabelRow(request_id=i, row_index=0, value=int(y)) for i, y in zip(ids, rows.y, strict=True)]
    )


def test_a_probe_fits_on_what_was_served_and_tells_gain_and_parts(world: World) -> None:
    found = world.ask("gain", change_at=float(FIRST))
    assert isinstance(found, Examination)
    assert found.probe.gains
    assert found.probe.rows == SINCE // 5
    assert found.probe.gain > 0.4
    assert found.parts is not None
    # The reference was as wrong as this: nothing has risen since.
    assert abs(found.parts.rise) < 0.05
    json.dumps(found.to_dict())
    calm = world.ask("calm")
    assert isinstance(calm, Examination)
    assert calm.parts is None


def test_what_cannot_be_probed_says_why(world: World) -> None:
    gone = world.ask("family", version=2)
    assert isinstance(gone, ProbeFailed)
    assert "Version 2 is a linear, and the pipeline's search now offers xgboost only" in gone.reason
    assert world.probes.probed("never asked") == ProbeFailed(reason="nobody knows of it any more")
    unknown = world.ask("unknown", endpoint="nobody")
    assert isinstance(unknown, ProbeFailed)
    assert "No pipeline is stored for 'nobody'" in unknown.reason
