"""One fit of XGBoost over several workers on Ray Train, for rows that one worker's memory does not hold."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xgboost as xgb

# Read when Ray Train is imported; its older trainer is gone from the next release.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

import pyarrow as pa
import ray.data
import ray.train
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.xgboost.xgboost_trainer import XGBoostTrainer

from raymlops.errors import ConfigError, SearchFailed
from raymlops.search.estimators import XGBoostEstimator

if TYPE_CHECKING:
    from raymlops.search.estimators import Floats
    from raymlops.settings import Settings

_BATCH = 65_536
_BLOCK = 262_144
_MODEL = "model.json"


def fit_distributed(
    rows: ray.data.Dataset,
    *,
    columns: Sequence[str],
    label: str,
    plan: XGBoostEstimator,
    workers: int,
    settings: Settings,
    weight: str | None = None,
    cpus_per_worker: int = 1,
    gpu: bool = False,
) -> XGBoostEstimator:
    """Fit on a Ray dataset whose blocks are spread over ``workers``; every worker bins its own and sums histograms with the others.

    Memory: a worker holds one byte a value for its share of the rows (XGBoost's quantile bins) and one batch as floats, never the rows
    themselves. The trees are those of a single fit but for where the bins' edges fall, since the quantiles of the shares are merged
    approximately (Chen & Guestrin 2016, appendix A).

    Parameters
    ----------
    rows : numbers in ``columns`` (category codes, NaN for missing), ``label``, and ``weight`` where it is named
    plan : an unfitted estimator of family ``xgboost``, with its rounds as the search found them

    Raises
    ------
    ConfigError : columns that the rows lack, or fewer than one worker or round
    SearchFailed : the workers could not start, or a fit failed; with the reason
    """
    lacking = [name for name in (*columns, label) if name not in rows.schema().names]
    if lacking:
        raise ConfigError(f"The rows have no column {', '.join(lacking)}: they have {', '.join(rows.schema().names)}.")
    if workers < 1 or plan.rounds < 1:
        raise ConfigError(f"workers={workers} and rounds={plan.rounds}: both must be at least 1.")
    name, folder = f"fit-{uuid.uuid4().hex[:12]}", Path(settings.home) / "train"
    trainer = XGBoostTrainer(
        _fit_shard,
        train_loop_config={
            "params": {**plan.settings(), **({"device": "cuda"} if gpu else {}), "nthread": cpus_per_worker},
            "columns": list(columns),
            "label": label,
            "weight": weight,
            "rounds": plan.rounds,
            "bins": plan.bins,
            "kinds": plan.kinds(len(columns)),
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if gpu else {})},
        ),
        datasets={"rows": rows},
        run_config=RunConfig(name=name, storage_path=str(folder)),
    )
    try:
        result = trainer.fit()
        if result.checkpoint is None:
            raise SearchFailed("The distributed fit ended without a model.")
        with result.checkpoint.as_directory() as held:
            return XGBoostEstimator.load(Path(held) / _MODEL, plan.task, plan.n_classes)
    except ray.train.TrainingFailedError as error:
        words = str(error).strip().splitlines() or ["no reason was given"]
        raise SearchFailed(f"The distributed fit over {workers} workers failed: {words[-1][:300]}") from error
    finally:
        shutil.rmtree(folder / name, ignore_errors=True)


def spread_fit(workers: int, settings: Settings) -> Callable[[XGBoostEstimator, Floats, Floats], XGBoostEstimator]:
    """How a result's estimator is fitted where one worker does not hold its rows: :func:`fit_distributed` over blocks of them."""

    def fit(plan: XGBoostEstimator, x: Floats, y: Floats) -> XGBoostEstimator:
        columns = [f"c{i}" for i in range(x.shape[1])]
        # Of all rows: "balanced" counts the classes.
        weight = None if plan.weigh is None else plan.weigh(x, y)
        blocks = []
        size = max(1, min(_BLOCK, math.ceil(len(y) / (2 * workers))))
        for first in range(0, len(y), size):
            part = slice(first, first + size)
            block = {name: x[part, i] for i, name in enumerate(columns)} | {"label": y[part]}
            blocks.append(pa.table(block if weight is None else {**block, "weight": weight[part]}))
        fitted = fit_distributed(
            ray.data.from_arrow(blocks),
            columns=columns,
            label="label",
            plan=plan,
            workers=workers,
            settings=settings,
            weight=None if weight is None else "weight",
        )
        fitted.learned = {"rounds": plan.rounds}
        return fitted

    return fit


def _fit_shard(config: dict[str, Any]) -> None:
    """What each worker runs; Ray Train has joined them into one communicator."""
    shard = ray.train.get_dataset_shard("rows")
    batches = _Batches(lambda: shard.iter_batches(batch_size=_BATCH, batch_format="numpy"), config)
    train = xgb.QuantileDMatrix(
        batches, max_bin=config["bins"], nthread=config["params"]["nthread"], enable_categorical=bool(config["kinds"])
    )
    booster = xgb.train(config["params"], train, num_boost_round=config["rounds"])
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report({"rounds": config["rounds"]})
        return
    with tempfile.TemporaryDirectory() as folder:
        booster.save_model(Path(folder) / _MODEL)
        ray.train.report({"rounds": config["rounds"]}, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _Batches(xgb.DataIter):
    """A worker's blocks, batch by batch; XGBoost passes over them more than once."""

    def __init__(self, batches: Callable[[], Iterator[Mapping[str, Any]]], config: Mapping[str, Any]) -> None:
        super().__init__()
        self._batches, self._config = batches, config
        self._open: Iterator[Mapping[str, Any]] = iter(())

    def reset(self) -> None:
        self._open = iter(self._batches())

    def next(self, input_data: Callable[..., Any]) -> bool:
        batch = next(self._open, None)
        if batch is None:
            return False
        config = self._config
        x = np.column_stack([np.asarray(batch[name], dtype=np.float32) for name in config["columns"]])
        weight = None if config["weight"] is None else np.asarray(batch[config["weight"]], dtype=np.float32)
        label = np.asarray(batch[config["label"]], dtype=np.float32)
        input_data(data=x, label=label, weight=weight, feature_types=config["kinds"])
        return True
