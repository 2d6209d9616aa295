"""A probe on Ray: one small task that fits a cheap refit on what was served and labelled, and compares the champion with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from raymlops.data.schema import DataContract
from raymlops.data.served import ARRIVED
from raymlops.errors import ConfigError
from raymlops.lake import Lake
from raymlops.loop.pipelines import load_pipeline, served_frame
from raymlops.loop.ports import ProbeFailed
from raymlops.monitor.examine import Examination, examine
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.registry.package import download
from raymlops.registry.version import ModelVersion
from raymlops.search.ensemble import settle
from raymlops.search.selection import Search, shape, signs
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings
from raymlops.store import Store

WAIT_S = 600.0
"""A probe that has not answered by then has failed: an alarm must not wait for a place in a full cluster."""

log = logging.getLogger(__name__)


def examine_champion(endpoint: str, version: int, change_at: float | None, settings: Settings) -> Examination:
    """Probe one version of an endpoint: its family, parameters and window, on the columns of its contract.

    Raises
    ------
    ConfigError : the pipeline no longer offers the version's family
    DataError : too few labelled rows
    """
    store, lake = Store(settings.store), Lake(settings.lake)
    pipeline = load_pipeline(store, lake, endpoint)
    made = MlflowRegistry(settings.mlflow).get(endpoint, version)
    folder = Path(settings.home) / "cache" / "packages" / made.digest
    predictor = Predictor.load(download(lake, made.package_key, folder, made.digest))
    frame, _, _ = served_frame(pipeline, store, lake)
    contract, arrived = predictor.contract, frame[ARRIVED].to_numpy(dtype=float)
    # Limits are the gateways' business: what was served was let in, if by an earlier version's.
    x, y = contract.unbounded().encode(frame[list(contract.names)]), contract.encode_label(frame[contract.label])
    # The rows of the first training arrived before time 0; a version trained on served rows tells up to when.
    trained_to = made.data_end if made.tags.get("time") == ARRIVED and made.data_end is not None else 0.0
    start = int(len(y) * (1.0 - float(made.params.get("recent", 1.0))))
    return examine(
        x[start:],
        y[start:],
        task=contract.task,
        champion=predictor.predict,
        refit=_refit(pipeline.search, made, contract),
        labelled=int((arrived > trained_to).sum()),
        since_change=None if change_at is None else int((arrived >= change_at).sum()),
        reference=None if change_at is None else predictor.reference,
    )


def _refit(search: Search, made: ModelVersion, contract: DataContract) -> Callable[..., Any]:
    offered = search.families(contract.task)
    champion = settle(made.family, made.params, offered)
    if champion is None:
        names = ", ".join(item.name for item in offered)
        raise ConfigError(
            f"Version {made.version} is a {made.family}, and the pipeline's search now offers {names} only."
        )
    categorical = [i for i, column in enumerate(contract.columns) if column.kind == "category"]
    monotone = signs(search.monotone, contract)

    def fit(x: NDArray[np.float32], y: NDArray[np.float64]) -> Any:
        model = champion.build(champion.start, contract.task, len(contract.classes), categorical, search.seed)
        # Weights are left out: the losses that are compared weigh every row alike.
        shape(model, monotone, search.quantile)
        return model.fit(x, y).predict

    return fit


class RayProbes:
    """Probes as Ray tasks of this process; a process that is gone takes its probes with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[str, tuple[Any, float]] = {}

    def probe(self, endpoint: str, probe_id: str, version: int, change_at: float | None) -> None:
        """Start a probe; asking again for the same one starts nothing new."""
        if probe_id in self._running:
            return
        task: Any = ray.remote(examine_champion)
        environ = {**self._settings.environ(), "OMP_NUM_THREADS": "1"}
        options = task.options(num_cpus=1, max_retries=1, name=probe_id, runtime_env={"env_vars": environ})
        # Whoever asks for another one has no use for those before it.
        for reference, _ in self._running.values():
            ray.cancel(reference, force=True)
        running = options.remote(endpoint, version, change_at, self._settings)
        self._running = {probe_id: (running, time.monotonic())}

    def probed(self, probe_id: str) -> Examination | Literal["running"] | ProbeFailed:
        """What came of it."""
        if probe_id not in self._running:
            return ProbeFailed(reason="nobody knows of it any more")
        reference, since = self._running[probe_id]
        done, _ = ray.wait([reference], timeout=0)
        if not done and time.monotonic() - since < WAIT_S:
            return "running"
        # It is kept until another one is asked for: whoever asks may not have been able to take the answer up.
        if not done:
            ray.cancel(reference, force=True)
            return ProbeFailed(reason=f"it had not answered after {WAIT_S:.0f} s")
        try:
            found: Examination = ray.get(reference)
        except ray.exceptions.RayError as error:
            log.warning("probe %s: %s", probe_id, error)
            cause = getattr(error, "cause", None) or error
            return ProbeFailed(reason=f"{type(cause).__name__}: {cause}"[:500])
        return found
