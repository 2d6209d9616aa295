"""The pipelines that endpoints were run with, and the rows that one of them learns from once it serves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raymlops.data.combined import parts_of
from raymlops.data.features import apply_features
from raymlops.data.served import ARRIVED, ServedSource, read_labelled
from raymlops.data.snapshot import DatasetSnapshot, load_snapshot, read_frame, seconds_of
from raymlops.data.snapshot_print import row_hashes
from raymlops.errors import RolloutError
from raymlops.lake import Lake, sha256_of
from raymlops.pipeline import Pipeline, loads
from raymlops.store import Store

_SAME_S = 5e-6  # a snapshot keeps microseconds of the seconds that the log has as floats


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
    sent, a frame of at most one row; and how many are new.

    A row that the first training had from the endpoint's own :class:`ServedSource` is there once, as a served row.
    """
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
        base = read_frame(lake, snapshot)
        base = base[~_served_before(pipeline, snapshot, base, served, arrived)]
        base = base.drop(columns=[snapshot.time] if snapshot.time else [])
        # Rows of the first training came before anything was served; their order among themselves is kept.
        frames.append(base.assign(**{ARRIVED: np.arange(-len(base), 0, dtype=float)}))
    frames.append(served.assign(**{ARRIVED: arrived}))
    both = pd.concat(frames, ignore_index=True)
    return both.tail(window).reset_index(drop=True) if isinstance(window, int) else both, sent, len(served)


def _served_before(
    pipeline: Pipeline,
    snapshot: DatasetSnapshot,
    base: pd.DataFrame,
    served: pd.DataFrame,
    arrived: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Rows of a first training ``(n,)`` that the endpoint itself had served: by their times, else by what they hold."""
    parts = parts_of(pipeline.source)
    own = any(isinstance(part, ServedSource) and part.endpoint == pipeline.name for part in parts)
    if not own or not len(arrived):
        return np.zeros(len(base), dtype=bool)
    if snapshot.time is None:
        columns = [*snapshot.contract.names, snapshot.contract.label]
        if not set(columns) <= set(served.columns):
            return np.zeros(len(base), dtype=bool)
        return _matched(base[columns], served.loc[arrived <= snapshot.created_at, columns])
    times, known = seconds_of(base[snapshot.time]), np.sort(arrived)
    after = np.searchsorted(known, times - _SAME_S)
    return np.asarray(known[np.minimum(after, len(known) - 1)] <= times + _SAME_S) & (after < len(known))


def _matched(rows: pd.DataFrame, others: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows ``(n,)`` have an equal among the others; of several equal rows as many as there are of the others."""

    def numbered(frame: pd.DataFrame) -> pd.MultiIndex:
        low, high = row_hashes(frame)
        keys = pd.DataFrame({"low": low, "high": high})
        return pd.MultiIndex.from_frame(keys.assign(turn=keys.groupby(["low", "high"]).cumcount()))

    return np.asarray(numbered(rows).isin(numbered(others)))


def no_inputs(pipeline: Pipeline, time_column: str | None) -> list[str]:
    """Columns that order, group or name rows, and that requests do not carry."""
    return [name for name in (time_column, pipeline.split.group, pipeline.assess.key) if name]


def without_hidden(pipeline: Pipeline, frame: pd.DataFrame, time_column: str | None) -> pd.DataFrame:
    """The rows without the columns that only the contract's checks needed: neither key nor group."""
    hidden = set(pipeline.hidden) - set(no_inputs(pipeline, time_column))
    return frame.drop(columns=[column for column in frame.columns if column in hidden])
