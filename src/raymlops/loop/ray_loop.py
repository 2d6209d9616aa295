"""One turn of the loop on Ray: prepare, search, gate, register, and hand the version to the steward."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raymlops.clock import SystemClock
from raymlops.data.assess import assess, require
from raymlops.data.features import apply_features
from raymlops.data.ray_dp import prepare_frame
from raymlops.data.schema import Column, infer_task, learn_contract
from raymlops.data.served import ARRIVED, read_labelled
from raymlops.data.snapshot import Arrays, DatasetSnapshot, load_arrays, load_snapshot, read_frame, write_snapshot
from raymlops.errors import AssessmentFailed, GateRefused, RaymlopsError
from raymlops.events import EventLog
from raymlops.gate import GateEvidence, GateReport, evaluate
from raymlops.lake import Lake
from raymlops.loop import ray_steward
from raymlops.loop.ports import Progress, Silent
from raymlops.loop.ray_connect import connect
from raymlops.loop.ray_endpoint import Endpoint
from raymlops.pipeline import Pipeline
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.registry.package import Reference, build_package, download, upload
from raymlops.registry.version import ModelVersion
from raymlops.search.candidates import Settled, settled
from raymlops.search.journal import Journal
from raymlops.search.selection import Objective, Search, SearchResult, compare_windows, refit
from raymlops.serving.predictor import Predictor, measure_latency
from raymlops.settings import Settings
from raymlops.store import Lease, Store

LEASE_S = 60.0


def run(pipeline: Pipeline, *, settings: Settings | None = None, progress: Progress | None = None) -> Endpoint:
    """Turn the loop once for a pipeline; see :meth:`raymlops.Pipeline.run`."""
    settings, progress = settings or Settings.read(), progress or Silent()
    settings.ensure_home()
    turn = Turn.open(pipeline, settings, progress)
    with turn.lease():
        progress.stage("connect", "joining or starting Ray")
        connect(settings)
        event_id = f"{pipeline.name}-run-{int(time.time() * 1000)}"
        turn.events.append(pipeline.name, "run_started", {"event_id": event_id})
        try:
            progress.stage("prepare", type(pipeline.source).__name__)
            raw: list[Column] = []

            def keep(columns: tuple[Column, ...]) -> None:
                raw[:] = columns

            frame = prepare_frame(pipeline.source, pipeline.features, settings, progress.note, on_raw=keep)
            turn = replace(turn, raw=tuple(raw) or None)
            version = turn.train(frame, event_id, time_column=pipeline.source.time)
        except RaymlopsError as error:
            turn.events.append(
                pipeline.name, "run_stopped", {"event_id": event_id, "error": error.code, "reason": error.message}
            )
            raise
        progress.stage("serve", f"version {version.version}")
        return _serve(turn, version, event_id)


def _serve(turn: Turn, version: ModelVersion, event_id: str) -> Endpoint:
    # A retraining, which never comes here, starts a second sooner without Ray Serve.
    from raymlops.serving.ray_serve import ServeEngine

    pipeline, settings = turn.pipeline, turn.settings
    ray_steward.save_pipeline(turn.store, turn.lake, pipeline)
    turn.store.put("raw", pipeline.name, {"columns": [column.to_dict() for column in turn.raw or ()]})
    engine = ServeEngine(settings)
    engine.start()
    steward = ray_steward.launch(pipeline.name, settings)
    ray_steward.call(steward, "candidate", version.version, event_id)
    place = engine.deploy_gateway(pipeline.name, pipeline.serving)
    turn.store.put("endpoints", pipeline.name, {"url": place.url, "direct_url": place.direct_url})
    endpoint = Endpoint(pipeline.name, settings)
    endpoint.wait_ready()
    return endpoint


def retrain(name: str, event_id: str, settings: Settings, progress: Progress | None = None) -> ModelVersion | None:
    """The retraining of one event: learn from what was served and labelled; hand over a version or a refusal.

    Returns ``None`` when the candidate was refused. Running it again for an event that has registered its version
    hands that version over and trains nothing.
    """
    connect(settings)
    store, lake = Store(settings.store), Lake(settings.lake)
    pipeline = ray_steward.load_pipeline(store, lake, name)
    steward = ray_steward.find(name)
    turn = Turn.open(pipeline, settings, _Staged(steward, event_id, progress or Silent()))
    known = store.get("raw", name) or {"columns": []}
    turn = replace(turn, raw=tuple(Column.from_dict(item) for item in known["columns"]) or None)
    done = next((item for item in turn.registry.versions(name) if item.event_id == event_id), None)
    try:
        if done is None:
            turn.progress.stage("prepare", "what was served and labelled")
            frame, fresh = turn.served_frame()
            # Small blocks: every row held out is one of the newest, and missing from what the gated model learns.
            holdout = int(np.clip(fresh // 20, 250, 500))
            done = turn.train(frame, event_id, time_column=ARRIVED, holdout_rows=holdout)
    except (AssessmentFailed, GateRefused, RaymlopsError) as error:
        ray_steward.call(steward, "refused", event_id, f"{error.code}: {error.message}")
        if isinstance(error, (AssessmentFailed, GateRefused)):
            return None
        raise
    ray_steward.call(steward, "candidate", done.version, event_id)
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn works with; ``raw`` is what the features are made of, where that is known."""

    pipeline: Pipeline
    settings: Settings
    progress: Progress
    store: Store
    lake: Lake
    registry: MlflowRegistry
    events: EventLog
    raw: tuple[Column, ...] | None = None

    @classmethod
    def open(cls, pipeline: Pipeline, settings: Settings, progress: Progress) -> Turn:
        store = Store(settings.store)
        return cls(
            pipeline=pipeline,
            settings=settings,
            progress=progress,
            store=store,
            lake=Lake(settings.lake),
            registry=MlflowRegistry(settings.mlflow),
            events=EventLog(store),
        )

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """One run a pipeline at a time; renewed while the run lives, so a dead run frees it within :data:`LEASE_S`."""
        held = self.store.acquire(
            f"the run of {self.pipeline.name}", f"process {os.getpid()} on {socket.gethostname()}", LEASE_S
        )
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(LEASE_S / 4):
                self.store.renew(held, LEASE_S)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield held
        finally:
            ended.set()
            thread.join()
            self.store.release(held)

    def served_frame(self) -> tuple[pd.DataFrame, int]:
        """First training's rows, then served and labelled rows, with the order of arrival as time; and how many are new."""
        label = self.pipeline.source.label
        served = read_labelled(self.lake, self.store, self.pipeline.name, label)
        arrived = served.pop(ARRIVED).to_numpy(dtype=float)
        served = apply_features(self.pipeline.features, served, keep=(label,))
        window = self.pipeline.retrain.window
        frames = []
        first = self.store.get("snapshots", self.pipeline.name)
        if first is not None:
            snapshot = load_snapshot(self.lake, first["key"])
            base = read_frame(self.lake, snapshot).drop(columns=[snapshot.time] if snapshot.time else [])
            # Rows of the first training came before anything was served; their order among themselves is kept.
            frames.append(base.assign(**{ARRIVED: np.arange(-len(base), 0, dtype=float)}))
        frames.append(served.assign(**{ARRIVED: arrived}))
        both = pd.concat(frames, ignore_index=True)
        return both.tail(window).reset_index(drop=True) if isinstance(window, int) else both, len(served)

    def train(
        self, frame: pd.DataFrame, event_id: str, *, time_column: str | None, holdout_rows: int | None = None
    ) -> ModelVersion:
        """Frame in, registered version out.

        Raises
        ------
        AssessmentFailed, SearchFailed, GateRefused
        """
        snapshot = self._snapshot(frame, time_column, holdout_rows, event_id)
        arrays = load_arrays(self.lake, snapshot)
        objective = self.pipeline.search.objective(snapshot.contract.task)
        self.progress.stage(
            "search", f"{snapshot.split.train:,} rows × {len(snapshot.contract.columns)} features, {objective.metric}"
        )
        result = self._search(arrays, snapshot, event_id)
        run_id = self.registry.log_search(self.pipeline.name, result.leaderboard, event_id=event_id)
        self.progress.stage("gate", f"{result.trial.family}, {objective.metric} {result.trial.score:.4f} on validation")
        with tempfile.TemporaryDirectory(dir=self.settings.ensure_home()) as scratch:
            report = self._gate(Path(scratch) / "gated", arrays, snapshot, result, objective, event_id)
            report.require()
            self.progress.stage("register", "refit on all rows, package, register")
            return self._register(Path(scratch) / "final", arrays, snapshot, result, report, event_id, run_id)

    def _search(self, arrays: Arrays, snapshot: DatasetSnapshot, event_id: str) -> SearchResult:
        """The pipeline's search; or for a retraining by the champion's settings, the choice of the window."""
        spec, policy = self.pipeline.search, self.pipeline.retrain
        ordered, max_gap = snapshot.split.ordered, self.pipeline.gate.max_gap
        if snapshot.time == ARRIVED:
            spec = replace(spec, recency=spec.recency and policy.window == "recent")
            settled_one = None if policy.search == "full" else self._settled(spec)
            if settled_one is not None:
                spec = replace(spec, candidates=(settled_one,))
                return compare_windows(
                    arrays, snapshot.contract, spec, ordered=ordered, max_gap=max_gap, on_trial=self.progress.trial
                )
        from raymlops.search.ray_tune import search

        return search(
            arrays,
            snapshot.contract,
            spec,
            ordered=ordered,
            settings=self.settings,
            max_gap=max_gap,
            on_trial=self.progress.trial,
            journal=Journal(self.lake, self.pipeline.name, snapshot.fingerprint, event_id),
        )

    def _settled(self, spec: Search) -> Settled | None:
        """The champion's family with its parameters; ``None`` without a champion, or when its family is not offered now."""
        body = self.store.get("loop", self.pipeline.name)
        if body is None or body["champion"] is None:
            return None
        champion = self.registry.get(self.pipeline.name, body["champion"])
        family = next((item for item in spec.candidates or () if item.name == champion.family), None)
        return None if family is None else settled(family, champion.params)

    def _snapshot(
        self, frame: pd.DataFrame, time_column: str | None, holdout_rows: int | None, event_id: str
    ) -> DatasetSnapshot:
        source, name = self.pipeline.source, self.pipeline.name
        task = infer_task(frame[source.label])
        self.pipeline.search.objective(task)  # refuse a metric that does not fit before any work
        assessment = assess(frame, source.label, time_column, task)
        self.events.append(
            name, "assessed", {"event_id": event_id, "checks": [item.to_dict() for item in assessment.checks]}
        )
        require(assessment)
        contract = learn_contract(frame, source.label, task, drop=(time_column,) if time_column else ())
        snapshot = write_snapshot(
            self.lake,
            name,
            frame,
            contract,
            time_column,
            type(source).__name__ if time_column != ARRIVED else "served",
            assessment,
            SystemClock().now(),
            holdout_rows=holdout_rows,
            seed=self.pipeline.search.seed,
        )
        if time_column != ARRIVED:
            self.store.put("snapshots", name, {"key": snapshot.key})
        self.events.append(name, "snapshot", {"event_id": event_id, "key": snapshot.key, "rows": snapshot.rows})
        return snapshot

    def _gate(
        self,
        folder: Path,
        arrays: Arrays,
        snapshot: DatasetSnapshot,
        result: SearchResult,
        objective: Objective,
        event_id: str,
    ) -> GateReport:
        reference = _reference(snapshot, arrays, result)
        build_package(
            folder,
            result.estimator,
            snapshot.contract,
            self.pipeline.features,
            reference,
            {"event_id": event_id},
            self.raw,
        )
        predictor = Predictor.load(folder)
        champion, saw = self._champion_score(snapshot, objective, arrays)
        evidence = GateEvidence(
            objective=objective,
            train_score=result.trial.train_score,
            validation_score=result.trial.score,
            test_score=objective.score(arrays.y_test, result.estimator.predict(arrays.x_test)),
            baseline_score=objective.baseline(arrays.y_train, arrays.y_test),
            champion_score=champion,
            champion_saw_rows=saw,
            test_rows=len(arrays.y_test),
            p99_ms=measure_latency(predictor, self._request_row(snapshot, arrays)),
        )
        report = evaluate(self.pipeline.gate, evidence)
        self.events.append(self.pipeline.name, "gated", {"event_id": event_id, **report.to_dict()})
        return report

    def _request_row(self, snapshot: DatasetSnapshot, arrays: Arrays) -> Mapping[str, Any] | NDArray[np.float32]:
        """A test row as a request holds it. The snapshot keeps what ``features`` made, not what it was made of, so with
        them the row is an encoded one and the function's own time is left out."""
        if self.pipeline.features is not None:
            return arrays.x_test[:1]
        return snapshot.contract.decode_row(arrays.x_test[0])

    def _champion_score(
        self, snapshot: DatasetSnapshot, objective: Objective, arrays: Arrays
    ) -> tuple[float | None, bool]:
        """The champion's score on the candidate's test rows, and whether it may have learnt from some of them."""
        body = self.store.get("loop", self.pipeline.name)
        if body is None or body["champion"] is None:
            return None, False
        version = self.registry.get(self.pipeline.name, body["champion"])
        folder = Path(self.settings.home) / "cache" / "packages" / version.digest
        predictor = Predictor.load(download(self.lake, version.package_key, folder, version.digest))
        frame = read_frame(self.lake, snapshot)
        test = frame.iloc[snapshot.split.train + snapshot.split.validation :]
        prediction = predictor.predict(predictor.contract.encode(test[list(predictor.contract.names)]))
        return objective.score(arrays.y_test, prediction), _may_have_seen(version, snapshot, arrays)

    def _register(
        self,
        folder: Path,
        arrays: Arrays,
        snapshot: DatasetSnapshot,
        result: SearchResult,
        report: GateReport,
        event_id: str,
        run_id: str,
    ) -> ModelVersion:
        """The gated configuration, fitted once more on every row: in a stream the newest rows are worth the most."""
        x = np.concatenate([arrays.x_train, arrays.x_validation, arrays.x_test])
        y = np.concatenate([arrays.y_train, arrays.y_validation, arrays.y_test])
        estimator = refit(result, x, y)
        # The reference keeps the gated model's held-out losses: the refitted one has seen those rows.
        metadata = {
            "event_id": event_id,
            "snapshot": snapshot.key,
            "family": result.trial.family,
            "rows": len(y),
            "gate": report.to_dict(),
        }
        build_package(
            folder,
            estimator,
            snapshot.contract,
            self.pipeline.features,
            _reference(snapshot, arrays, result),
            metadata,
            self.raw,
        )
        key = f"packages/{self.pipeline.name}/{event_id}"
        digest = upload(self.lake, key, folder)
        newest = None if arrays.time_test is None else float(np.max(arrays.time_test))
        version = self.registry.register(
            name=self.pipeline.name,
            package_key=key,
            digest=digest,
            metric=result.leaderboard.metric,
            score=result.trial.score,
            family=result.trial.family,
            params=result.trial.params,
            snapshot_key=snapshot.key,
            created_at=SystemClock().now(),
            data_end=newest,
            event_id=event_id,
            tags={"run_id": run_id, "time": snapshot.time or ""},
        )
        self.store.put("versions", f"{version.name}/{version.version}", {"package_key": key, "digest": digest})
        self.events.append(
            version.name, "registered", {"event_id": event_id, "version": version.version, "digest": digest}
        )
        return version


class _Staged:
    """Progress that also tells the steward how far a retraining is."""

    def __init__(self, steward: Any, event_id: str, inner: Progress) -> None:
        self._steward, self._event_id, self._inner = steward, event_id, inner

    def stage(self, name: str, detail: str = "") -> None:
        words = {"prepare": "preparing", "search": "searching", "gate": "gating", "register": "registering"}
        self._steward.stage.remote(self._event_id, words[name])
        self._inner.stage(name, detail)

    def trial(self, trial: Any) -> None:
        self._inner.trial(trial)

    def note(self, text: str) -> None:
        self._inner.note(text)


def _reference(snapshot: DatasetSnapshot, arrays: Arrays, result: SearchResult) -> Reference:
    """The held-out rows in time order, with what the gated model said of them."""
    from raymlops.monitor.quality import row_losses

    x = np.concatenate([arrays.x_validation, arrays.x_test])[-10_000:]
    y = np.concatenate([arrays.y_validation, arrays.y_test])[-10_000:]
    scores = scalar_scores(snapshot.contract.task, result.estimator.predict(x))
    return Reference(
        columns=snapshot.contract.names,
        x=x,
        scores=scores,
        losses=row_losses(snapshot.contract.task, y, scores),
        ordered=snapshot.split.ordered,
    )


def _may_have_seen(version: ModelVersion, snapshot: DatasetSnapshot, arrays: Arrays) -> bool:
    """Whether a version may have learnt from the test rows; the same answer for every row it cannot rule out."""
    if arrays.time_test is None:
        return True
    oldest = float(np.min(arrays.time_test))
    if version.tags.get("time") == (snapshot.time or ""):
        return version.data_end is None or oldest <= version.data_end
    # Served rows carry the wall time of their arrival: what arrived after a version was made is new to it.
    return snapshot.time != ARRIVED or oldest <= version.created_at


def scalar_scores(task: str, prediction: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """One number a row: positive probability, predicted class index, or predicted value."""
    return prediction.argmax(axis=1).astype(float) if task == "multiclass" else np.asarray(prediction, dtype=float)
