"""The pipelines that endpoints were run with, and the rows that one of them learns from once it serves."""

from __future__ import annotations

import numpy as np
import pandas as pd

from raymlops.data.features import apply_features
from raymlops.data.served import ARRIVED, read_labelled
from raymlops.data.snapshot import load_snapshot, read_frame
from raymlops.errors import RolloutError
from raymlops.lake import Lake, sha256_of
from raymlops.pipeline import Pipeline, loads
from raymlops.store import Store


def load_pipeline(store: Store, lake: Lake, endpoint: str) -> Pipeline:
    """The pipeline an endpoint was last run with."""
    body = store.get("pipelines", endpoint)
    if body is None:
        raise RolloutError(f"No pipeline is stored for {endpoint!r}: run it once with `raymlops run FILE:pipeline`.")
    return loads(lake.read(body["key"]), body["sha256"])


def save_pipeline(store: Store, lake: Lake, pipeline: Pipeline) -> None:
    """Store the pipeline by value under its SHA-256."""
    content = pipeline.dumps()
    digest = sha256_of(content)
    key = f"pipelines/{pipeline.name}/{digest}.pkl"
    if not lake.exists(key):
        lake.write(key, content)
    store.put("pipelines", pipeline.name, {"key": key, "sha256": digest})


def served_frame(pipeline: Pipeline, store: Store, lake: Lake) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """First training's rows, then served and labelled rows, with the order of arrival as time; the newest of them as it was
    sent, a frame of at most one row; and how many are new."""
    label = pipeline.source.label
    served = read_labelled(lake, store, pipeline.name, label)
    arrived = served.pop(ARRIVED).to_numpy(dtype=float)
    sent = served.drop(columns=label, errors="ignore").tail(1)
    served = apply_features(pipeline.features, served, keep=(label,))
    window = pipeline.retrain.window
    frames = []
    first = store.get("snapshots", pipeline.name)
    if first is not None:
        snapshot = load_snapshot(lake, first["key"])
        base = read_frame(lake, snapshot).drop(columns=[snapshot.time] if snapshot.time else [])
        # Rows of the first training came before anything was served; their order among themselves is kept.
        frames.append(base.assign(**{ARRIVED: np.arange(-len(base), 0, dtype=float)}))
    frames.append(served.assign(**{ARRIVED: arrived}))
    both = pd.concat(frames, ignore_index=True)
    return both.tail(window).reset_index(drop=True) if isinstance(window, int) else both, sent, len(served)
