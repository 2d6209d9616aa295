"""The registry and the experiment tracking on MLflow; the only module that imports it, and only when first used.

Packages stay in the lake: MLflow holds the numbers, the versions and the aliases. ``log_model`` and ``pyfunc`` are not
used (seconds a version, milliseconds a row).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.registry.version import ModelVersion, check_alias, unknown_version
from raymlops.search.selection import Leaderboard, Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

_TAG = "raymlops."
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_TEXT_LIMIT = 500


class MlflowRegistry:
    """A :class:`raymlops.registry.version.Registry` in an MLflow server or database.

    Parameters
    ----------
    uri : MLflow tracking and registry URI, such as ``sqlite:////home/me/.raymlops/mlflow.db`` or ``http://mlflow:5000``
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._opened: MlflowClient | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (MlflowRegistry, (self.uri,))

    @property
    def _client(self) -> MlflowClient:
        # The import costs seconds: an object that is only passed on does not pay them.
        if self._opened is None:
            self._opened = _open(self.uri)
        return self._opened

    # --- versions ----------------------------------------------------------------------------------

    def register(
        self,
        *,
        name: str,
        package_key: str,
        digest: str,
        metric: str,
        score: float,
        family: str,
        params: Mapping[str, Any],
        snapshot_key: str,
        created_at: float,
        data_end: float | None,
        event_id: str,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        for item in self.versions(name):
            if event_id and item.event_id == event_id:
                return item
        facts = {
            "package_key": package_key,
            "digest": digest,
            "metric": metric,
            "score": score,
            "family": family,
            "params": dict(params),
            "snapshot_key": snapshot_key,
            "created_at": created_at,
            "data_end": data_end,
            "event_id": event_id,
            "tags": dict(tags or {}),
        }
        if not self._holds(name):
            self._client.create_registered_model(name, tags={f"{_TAG}endpoint": "true"})
        made = self._client.create_model_version(
            name,
            source=f"raymlops:/{package_key}",
            run_id=(tags or {}).get("run_id"),
            tags={_TAG + key: json.dumps(value) for key, value in facts.items()},
            description=f"{family}, {metric} {score:.4f}",
        )
        return _version(made, {})

    def get(self, name: str, version: int | str) -> ModelVersion:
        held = self.versions(name)
        for item in held:
            if item.version == version or version in item.aliases:
                return item
        raise unknown_version(name, version, held)

    def versions(self, name: str) -> list[ModelVersion]:
        if not self._holds(name):
            return []
        aliases = {alias: int(number) for alias, number in self._client.get_registered_model(name).aliases.items()}
        found, token = [], None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            # Versions that another tool registered under this name carry none of our facts.
            found += [_version(item, aliases) for item in page if f"{_TAG}digest" in item.tags]
            token = page.token
            if not token:
                return sorted(found, key=lambda item: item.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self.get(name, version)
        self._client.set_registered_model_alias(name, check_alias(alias), str(version))

    def delete_alias(self, name: str, alias: str) -> None:
        if self._holds(name) and alias in self._client.get_registered_model(name).aliases:
            self._client.delete_registered_model_alias(name, alias)

    def names(self) -> list[str]:
        found: list[str] = []
        token = None
        while True:
            page = self._client.search_registered_models(max_results=1000, page_token=token)
            found += [item.name for item in page if f"{_TAG}endpoint" in item.tags and self.versions(item.name)]
            token = page.token
            if not token:
                return sorted(found)

    def _holds(self, name: str) -> bool:
        quoted = name.replace("'", "")
        return bool(self._client.search_registered_models(f"name = '{quoted}'", max_results=1)) and quoted == name

    # --- experiments -------------------------------------------------------------------------------

    def log_search(self, name: str, leaderboard: Leaderboard, *, event_id: str = "") -> str:
        """Log every trial as a run under one parent run, in the experiment ``name``; returns the parent's run id."""
        experiment = self._experiment(name)
        parent: str = self._client.create_run(
            experiment,
            run_name=event_id or "search",
            tags={f"{_TAG}event_id": event_id, f"{_TAG}metric": leaderboard.metric},
        ).info.run_id
        best = next(iter(leaderboard.ranked), None)
        if best is not None:
            self._log(parent, best, leaderboard.metric)
        for trial in leaderboard.trials:
            tags = {
                "mlflow.parentRunId": parent,
                f"{_TAG}status": trial.status,
                f"{_TAG}error": trial.error[:_TEXT_LIMIT],
            }
            run = self._client.create_run(experiment, run_name=f"{trial.number} {trial.family}", tags=tags)
            self._log(run.info.run_id, trial, leaderboard.metric)
            self._client.set_terminated(run.info.run_id, status=_STATUS[trial.status])
        self._client.set_terminated(parent, status="FINISHED" if best else "FAILED")
        return parent

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _log(self, run_id: str, trial: Trial, metric: str) -> None:
        from mlflow.entities import Metric, Param

        at = int(time.time() * 1000)
        numbers = {metric: trial.score, f"train_{metric}": trial.train_score, "gap": trial.gap, "fit_s": trial.fit_s}
        self._client.log_batch(
            run_id,
            # NaN says nothing and some MLflow databases refuse it.
            metrics=[Metric(key, value, at, 0) for key, value in numbers.items() if value == value]
            # The curve has a step for every percent of the rows, so that the curves of all trials lie over each other.
            + [Metric(f"curve_{metric}", value, at, round(100 * share)) for share, value in trial.curve],
            params=[
                Param("family", trial.family),
                *(Param(key, str(value)[:_TEXT_LIMIT]) for key, value in trial.params.items()),
            ],
        )


def _open(uri: str) -> MlflowClient:
    # Read when MLflow is imported: a serving stack does not phone home.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _version(item: MlflowVersion, aliases: Mapping[str, int]) -> ModelVersion:
    number = int(item.version)
    facts = {key.removeprefix(_TAG): json.loads(value) for key, value in item.tags.items() if key.startswith(_TAG)}
    return ModelVersion(
        name=item.name,
        version=number,
        aliases=tuple(sorted(alias for alias, points_at in aliases.items() if points_at == number)),
        **facts,
    )
