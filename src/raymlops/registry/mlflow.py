"""The registry and the experiment tracking on MLflow; the only module that imports it, and only when first used.

Packages stay in the lake: MLflow holds the numbers, the versions and the aliases. ``log_model`` and ``pyfunc`` are not
used (seconds a version, milliseconds a row).
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymlops.registry.board import LoggedSearch, LoggedTrial
from raymlops.registry.version import ModelVersion, check_alias, check_tag, unknown_version
from raymlops.search.ensemble import plain
from raymlops.search.selection import Leaderboard, Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

log = logging.getLogger(__name__)

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

    def set_tag(self, name: str, version: int, key: str, value: str) -> None:
        check_tag(key, value)
        self.get(name, version)
        # Tags of people are MLflow's own, by their own names: its page shows and edits the same ones.
        if value:
            self._client.set_model_version_tag(name, str(version), key, value)
        else:
            self._client.delete_model_version_tag(name, str(version), key)

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

    def log_search(
        self, name: str, leaderboard: Leaderboard, *, event_id: str = "", promoted: Trial | None = None
    ) -> str:
        """Log every trial as a run under one parent run, in the experiment ``name``; returns the parent's run id.

        The parent has the parameters and figures of ``promoted``; where nobody says which trial that is, of the best score.
        """
        experiment = self._experiment(name)
        parent: str = self._client.create_run(
            experiment,
            run_name=event_id or "search",
            tags={
                f"{_TAG}event_id": event_id,
                f"{_TAG}metric": leaderboard.metric,
                f"{_TAG}mode": leaderboard.mode,
            },
        ).info.run_id
        best = promoted or next(iter(leaderboard.ranked), None)
        if best is not None:
            self._log(parent, best, leaderboard.metric)
        for trial in leaderboard.trials:
            tags = {
                "mlflow.parentRunId": parent,
                f"{_TAG}number": str(trial.number),
                f"{_TAG}status": trial.status,
                f"{_TAG}error": trial.error[:_TEXT_LIMIT],
            }
            run = self._client.create_run(experiment, run_name=f"{trial.number} {trial.family}", tags=tags)
            self._log(run.info.run_id, trial, leaderboard.metric)
            self._client.set_terminated(run.info.run_id, status=_STATUS[trial.status])
        self._client.set_terminated(parent, status="FINISHED" if best else "FAILED")
        return parent

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> bool:
        """Keep files with a run; whether that could be done. A store of files that is not there costs no version."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                for name, content in files.items():
                    (Path(scratch) / name).write_bytes(content)
                    self._client.log_artifact(run_id, str(Path(scratch) / name))
        except Exception as error:
            log.warning("MLflow at %s keeps no files of run %s: %s", self.uri, run_id, error)
            return False
        return True

    def searches(self, name: str, limit: int = 100) -> list[LoggedSearch]:
        """The newest searches of an endpoint, the last one first, without their trials."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return []
        runs = self._client.search_runs(
            [experiment.experiment_id],
            f"tags.`{_TAG}metric` != ''",
            order_by=["attributes.start_time DESC"],
            max_results=limit,
        )
        return [_search(run) for run in runs]

    def trials(self, search: LoggedSearch) -> list[LoggedTrial]:
        """Every trial of a search, in the order they were logged."""
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [search.experiment_id],
                f"tags.`mlflow.parentRunId` = '{search.run_id}'",
                order_by=["attributes.start_time ASC"],
                max_results=1000,
                page_token=token,
            )
            found += [_trial(run, search.metric) for run in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda item: item.number)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # MLflow's own default is a folder below wherever the process happens to run.
        place = None
        if self.uri.startswith("sqlite:///"):
            place = (Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts" / name).as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def _log(self, run_id: str, trial: Trial, metric: str) -> None:
        from mlflow.entities import Metric, Param

        at = int(time.time() * 1000)
        numbers = {metric: trial.score, f"train_{metric}": trial.train_score, "gap": trial.gap, "fit_s": trial.fit_s}
        # What a search may know besides: the score on groups of the validation rows, and by share of the train rows.
        groups = [value for value in getattr(trial, "groups", ()) if value == value]
        if len(groups) > 1:
            numbers[f"{metric}_se"] = statistics.stdev(groups) / len(groups) ** 0.5
        curve = [
            Metric(f"curve_{metric}", score, at, round(100 * share)) for share, score in trial.curve if score == score
        ]
        self._client.log_batch(
            run_id,
            # NaN says nothing and some MLflow databases refuse it.
            metrics=[*(Metric(key, value, at, 0) for key, value in numbers.items() if value == value), *curve],
            params=[
                Param("family", trial.family),
                *(Param(key, str(value)[:_TEXT_LIMIT]) for key, value in plain(trial.family, trial.params).items()),
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
    said = {key: value for key, value in item.tags.items() if not key.startswith((_TAG, "mlflow."))}
    facts["tags"] = {**said, **facts["tags"]}
    return ModelVersion(
        name=item.name,
        version=number,
        aliases=tuple(sorted(alias for alias, points_at in aliases.items() if points_at == number)),
        **facts,
    )


def _search(run: Run) -> LoggedSearch:
    tags = run.data.tags
    return LoggedSearch(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        event_id=tags.get(f"{_TAG}event_id", ""),
        metric=tags[f"{_TAG}metric"],
        mode=tags.get(f"{_TAG}mode", ""),
        started_at=run.info.start_time / 1000.0,
    )


def _trial(run: Run, metric: str) -> LoggedTrial:
    """What was logged, by the names it was logged under; what an older release did not log is ``None``."""
    tags, numbers, params = run.data.tags, dict(run.data.metrics), dict(run.data.params)
    number = tags.get(f"{_TAG}number") or tags.get("mlflow.runName", "").split(" ")[0]
    return LoggedTrial(
        number=int(number) if number.isdigit() else -1,
        family=params.pop("family", ""),
        status=tags.get(f"{_TAG}status", ""),
        reason=tags.get(f"{_TAG}error", ""),
        score=numbers.pop(metric, None),
        error=numbers.pop(f"{metric}_se", None),
        train_score=numbers.pop(f"train_{metric}", None),
        fit_s=numbers.pop("fit_s", None),
        params=params,
        metrics=numbers,
    )
