"""Bulk scoring on Ray Data: an actor pool in which each actor holds the model and scores one part at a time.

What moves between processes is the number of a part and its record. Rows go from the input file through one actor to the
output file, so neither the driver nor the object store ever holds them.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from raymlops.errors import RaymlopsError, ServingFailed
from raymlops.lake import Lake
from raymlops.registry.package import download
from raymlops.serving.bulk import Scorer
from raymlops.serving.bulk_run import Bulk, PartRecord
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings


def package_cache(settings: Settings, digest: str) -> Path:
    """Where a node keeps a package; gateways use the same folder."""
    return Path(settings.home) / "cache" / "packages" / digest


class PartScorer:
    """One actor of the pool. A plain class; Ray Data makes the actor."""

    def __init__(self, bulk: Bulk, settings: Settings) -> None:
        # One thread an actor; both runtimes pin their own. Environment variables of its own would cost a fresh worker.
        pa.set_cpu_count(1)
        folder = download(Lake(settings.lake), bulk.package_key, package_cache(settings, bulk.digest), bulk.digest)
        self._parts = bulk.source.parts
        self._scorer = Scorer(bulk, Predictor.load(folder, bulk.version, bulk.digest), folder)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[Any]]:
        """Part numbers in; for each its record as JSON, or the error that stopped it, pickled, so that it arrives whole."""
        records, errors = [], []
        for number in batch["number"].tolist():
            try:
                records.append(json.dumps(asdict(self._scorer.score(self._parts[number]))))
                errors.append(b"")
            except RaymlopsError as error:
                records.append("")
                errors.append(pickle.dumps(error))
        return {"record": records, "error": errors}


def score_parts(bulk: Bulk, numbers: Sequence[int], settings: Settings, actors: int) -> Iterator[PartRecord]:
    """Records of parts as they are done, in any order. Leaving the iterator ends the run.

    Raises
    ------
    DataError, ContractViolation, ModelFault : from the first part that could not be scored; parts that are done stay
    ServingFailed : the actors themselves failed
    """
    _quiet()
    # A second part waits at each actor while there are many; at the end that would leave one actor with two.
    ahead = 2 if len(numbers) > 8 * actors else 1
    rows = ray.data.from_items(
        [{"number": number} for number in numbers], override_num_blocks=len(numbers)
    ).map_batches(
        PartScorer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=ahead),
        fn_constructor_args=(bulk, settings),
        num_cpus=1,
    )
    try:
        for row in rows.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield PartRecord(**json.loads(row["record"]))
    except ray.exceptions.RayError as error:
        words = str(error).strip().splitlines()
        raise ServingFailed(f"The actors that score failed: {words[-1][:500]}") from error


def actor_count(parts: int) -> int:
    """One actor a CPU, and no more than there are parts; on this node no more than it really has."""
    here = ray.get_runtime_context().get_node_id()
    cpus = 0.0
    for node in ray.nodes():
        if node["Alive"]:
            own = float(node["Resources"].get("CPU", 0.0))
            cpus += min(own, os.cpu_count() or 1) if node["NodeID"] == here else own
    return max(1, min(int(cpus), parts))


def _quiet() -> None:
    """Ray Data's own bars and plans stay out of a user's sight; progress is ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
