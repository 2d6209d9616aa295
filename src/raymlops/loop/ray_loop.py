"""One turn of the loop on Ray: prepare, search, gate, register, and hand the version to the steward."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raymlops.clock import SystemClock
from raymlops.compare.slices import asked_masks
from raymlops.data.assess import QUICK_MODELS, Assessment, assess, require
from raymlops.data.catalog import Catalog
from raymlops.data.ray_prepare import prepare_frame
from raymlops.data.schema import Column, Task, infer_task
from raymlops.data.served import ARRIVED
from raymlops.data.snapshot import Arrays, DatasetSnapshot, load_arrays, read_frame, write_snapshot
from raymlops.data.snapshot_origin import Origin
from raymlops.data.sources import FrameSource
from raymlops.data.split import SplitBy
from raymlops.errors import AssessmentFailed, ContractViolation, GateRefused, RaymlopsError
from raymlops.events import EventLog
from raymlops.gate import GateEvidence, GateReport, evaluate
from raymlops.lake import Lake
from raymlops.loop import ray_steward
from raymlops.loop.ensembling import Tried, beyond_limits, combine_for
from raymlops.loop.held_period import HeldOutModel, count_period, period_work
from raymlops.loop.judging import Rival, explained, held_out, may_have_seen, measure, served_row, time_one_row
from raymlops.loop.pipelines import no_inputs, served_frame, without_hidden
from raymlops.loop.ports import Progress, Silent
from raymlops.loop.ray_connect import connect
from raymlops.loop.ray_endpoint import Endpoint
from raymlops.loop.ray_period import count_in_spark
from raymlops.pipeline import Pipeline
from raymlops.registry.card import CardFacts, build_card
from raymlops.registry.mlflow import MlflowRegistry
from raymlops.registry.package import CARD, CARD_PAGE, Reference, build_package, download, size_mb, upload
from raymlops.registry.version import ModelVersion
from raymlops.report.model_card import card_page
from raymlops.report.notebook import watching
from raymlops.search.candidates import Settled
from raymlops.search.decision import Decision, decide
from raymlops.search.ensemble import settle
from raymlops.search.journal import Journal
from raymlops.search.selection import Search, SearchResult, before_validation, refit
from raymlops.search.threshold import require_binary
from raymlops.search.windows import choose_window
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings
from raymlops.sketch.profile import Profile
from raymlops.store import Lease, Store

LEASE_S = 60.0


def run(pipeline: Pipeline, *, settings: Settings | None = None, progress: Progress | None = None) -> Endpoint:
    """Turn the loop once for a pipeline; see :meth:`raymlops.Pipeline.run`."""
    if progress is None:
        with watching() as display:
            return run(pipeline, settings=settings, progress=display or Silent())
    settings = settings or Settings.read()
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

            plan: list[tuple[str, list[str]]] = []

            def keep(columns: tuple[Column, ...]) -> None:
                raw[:] = columns

            def keep_plan(text: str, files: list[str]) -> None:
                plan[:] = [(text, files)]

            frame = prepare_frame(
                pipeline.source,
                pipeline.features,
                settings,
                progress.note,
                on_raw=keep,
                hidden=pipeline.hidden,
                on_plan=keep_plan,
            )
            turn = replace(turn, raw=tuple(raw) or None, spark=plan[0] if plan else None)
            version = turn.train(frame, event_id, time_column=pipeline.source.time)
        except RaymlopsError as error:
            turn.events.append(
                pipeline.name, "run_stopped", {"event_id": event_id, "error": error.code, "reason": error.message}
            )
            raise
        progress.stage("serve", f"version {version.version}")
        return _serve(turn, version, event_id)


def read_rows(pipeline: Pipeline, settings: Settings, progress: Progress) -> pd.DataFrame:
    """The rows a first training would see, with their features. Ray is joined or started where the source needs it."""
    if not isinstance(pipeline.source, FrameSource):
        settings.ensure_home()
        connect(settings)
    source, hidden = pipeline.source, pipeline.hidden
    frame = prepare_frame(source, pipeline.features, settings, progress.note, hidden=hidden)
    return without_hidden(pipeline, frame, source.time)


def judged(pipeline: Pipeline, frame: pd.DataFrame, task: Task | None = None) -> Assessment:
    """The assessment of these rows by the pipeline's spec; a group's column is the key when no other is named, and no input."""
    spec, by = pipeline.assess, pipeline.split
    if by.group is not None and spec.key is None:
        spec = replace(spec, key=by.group)
    if by.group is not None and by.group != spec.key:
        frame = frame.drop(columns=by.group, errors="ignore")
    return assess(frame, pipeline.source.label, pipeline.source.time, task, spec=spec)


def _serve(turn: Turn, version: ModelVersion, event_id: str) -> Endpoint:
    # A retraining, which never comes here, starts a second sooner without Ray Serve.
    from raymlops.serving.ray_serve import ServeEngine

    pipeline, settings = turn.pipeline, turn.settings
    ray_steward.save_pipeline(turn.store, turn.lake, pipeline)
    # Only now, past the gate: retrainings start from the data of the last run that gave a version.
    turn.store.put("snapshots", pipeline.name, {"key": version.snapshot_key})
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
            frame, sent, fresh = served_frame(pipeline, store, lake)
            turn = replace(turn, sent=served_row(sent))
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
    """What one turn works with; ``raw`` is what the features are made of, where that is known, ``sent`` a row of it;
    ``spark`` its plan and files."""

    pipeline: Pipeline
    settings: Settings
    progress: Progress
    store: Store
    lake: Lake
    registry: MlflowRegistry
    events: EventLog
    raw: tuple[Column, ...] | None = None
    sent: Mapping[str, Any] | None = None
    spark: tuple[str, list[str]] | None = None

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
        combined = combine_for(
            self.pipeline, self._search(arrays, snapshot, event_id), arrays, snapshot.split.ordered, self.progress
        )
        result = combined.result
        self.progress.stage("gate", f"{result.trial.family}, {objective.metric} {result.trial.score:.4f} on validation")
        with tempfile.TemporaryDirectory(dir=self.settings.ensure_home()) as scratch:
            judged = self._gate(Path(scratch) / "gated", arrays, snapshot, result, event_id)
            if combined.taken and (why := beyond_limits(judged.report)):
                combined = combined.refused(f"The gate refuses it. {why}")
                result = combined.result
                self.progress.note(f"trial {result.trial.number} alone in the ensemble's place: {why}")
                judged = self._gate(Path(scratch) / "gated", arrays, snapshot, result, event_id)
            if combined.tried is not None:
                self.events.append(self.pipeline.name, "ensemble", {"event_id": event_id, **combined.tried.to_dict()})
            run_id = self.registry.log_search(
                self.pipeline.name, result.leaderboard, event_id=event_id, promoted=result.trial
            )
            judged.report.require()
            self.progress.stage("register", "refit on all rows, package, register")
            judged = replace(judged, tried=combined.tried)
            return self._register(Path(scratch) / "final", arrays, snapshot, result, judged, event_id, run_id)

    def _search(self, arrays: Arrays, snapshot: DatasetSnapshot, event_id: str) -> SearchResult:
        """The pipeline's search; or for a retraining by the champion's settings, the choice of the window."""
        spec, policy = self.pipeline.search, self.pipeline.retrain
        ordered, max_gap = snapshot.split.ordered, self.pipeline.gate.max_gap
        if snapshot.time == ARRIVED:
            spec = replace(spec, recency=spec.recency and policy.window == "recent")
            settled_one = None if policy.search == "full" else self._settled(spec)
            if settled_one is not None:
                spec = replace(spec, candidates=(settled_one,))
                return choose_window(
                    arrays,
                    snapshot.contract,
                    spec,
                    ordered=ordered,
                    max_gap=max_gap,
                    change_row=self._change_row(snapshot),
                    on_trial=self.progress.trial,
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

    def _change_row(self, snapshot: DatasetSnapshot) -> int | None:
        """The first train row since the change that the steward's drift episode dates; ``None`` outside of one."""
        body = self.store.get("loop", self.pipeline.name)
        episode = None if body is None else body["retrain"].get("episode")
        if episode is None or snapshot.time != ARRIVED:
            return None
        arrived = read_frame(self.lake, snapshot, columns=[ARRIVED])[ARRIVED].to_numpy(dtype=float)[
            : snapshot.split.train
        ]
        return int(np.searchsorted(arrived, episode["began_at"]))

    def _settled(self, spec: Search) -> Settled | None:
        """The champion's family with its parameters; ``None`` without a champion, or when its family is not offered now."""
        champion = self._champion()
        if champion is None:
            return None
        return settle(champion.family, champion.params, spec.candidates or ())

    def _snapshot(
        self, frame: pd.DataFrame, time_column: str | None, holdout_rows: int | None, event_id: str
    ) -> DatasetSnapshot:
        source, name = self.pipeline.source, self.pipeline.name
        task = self.pipeline.declared.task or infer_task(frame[source.label])
        # Refuse what does not fit before any work.
        self.pipeline.search.objective(task)
        require_binary(self.pipeline.search.threshold, task)
        others = no_inputs(self.pipeline, time_column)
        contract, skipped = self.pipeline.declared.over(
            frame,
            source.label,
            time=time_column,
            now=SystemClock().now(),
            hidden=(*self.pipeline.hidden, *others),
            served=time_column == ARRIVED,
        )
        self.events.append(name, "contract", {"event_id": event_id, "kept": True, "does_not_apply": list(skipped)})
        # The gate slices by what a snapshot stores: the inputs and the label.
        asked_masks(self.pipeline.gate.slices, frame.head(100)[[*contract.names, source.label]])
        frame = without_hidden(self.pipeline, frame, time_column)
        by = self.pipeline.split
        if time_column == ARRIVED:
            # What was served has no groups, and its columns were judged for what they say when the first version was made.
            by = SplitBy(validation=by.validation, test=by.test)
            spec = replace(self.pipeline.assess.without(*QUICK_MODELS), key=None, slices=(), max_age=None)
            assessment = assess(frame, source.label, time_column, task, spec=spec)
        else:
            assessment = judged(self.pipeline, frame, task)
        self.events.append(
            name, "assessed", {"event_id": event_id, "checks": [item.to_dict() for item in assessment.checks]}
        )
        require(assessment)
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
            by=by,
            origin=self._origin(served=time_column == ARRIVED),
        )
        Catalog(self.store, self.lake).record(snapshot, event_id)
        self.events.append(name, "snapshot", {"event_id": event_id, "key": snapshot.key, "rows": snapshot.rows})
        return snapshot

    def _origin(self, served: bool) -> Origin:
        source, features = self.pipeline.source, self.pipeline.features
        if served:
            first = self.store.get("snapshots", self.pipeline.name)
            parents = [first["key"]] if first else []
            return Origin.of({"features": features}, parents=parents, served=self.pipeline.name)
        plan, files = self.spark or ("", [])
        functions = {"prepare": getattr(source, "prepare", None), "features": features}
        return Origin.of(functions, files=getattr(source, "paths", None) or files, plan=plan)

    def _gate(
        self, folder: Path, arrays: Arrays, snapshot: DatasetSnapshot, result: SearchResult, event_id: str
    ) -> _Judged:
        spec = self.pipeline.search
        before = before_validation(result, arrays)
        unseen = before.predict(arrays.x_validation)
        decision = decide(
            result,
            arrays,
            ordered=snapshot.split.ordered,
            calibrated=spec.calibrate,
            threshold=spec.threshold,
            unseen=unseen,
        )
        reference = held_out(snapshot, arrays, result, decision, unseen)
        build_package(
            folder,
            result.estimator,
            snapshot.contract,
            self.pipeline.features,
            reference,
            {"event_id": event_id},
            self.raw,
            decision=decision,
        )
        frame = read_frame(self.lake, snapshot, start=snapshot.split.train + snapshot.split.validation)
        evidence = measure(
            self.pipeline.gate,
            result,
            snapshot,
            arrays,
            decision,
            test_frame=frame,
            rival=self._rival(snapshot, arrays, frame, result),
            timing=time_one_row(Predictor.load(folder), arrays.x_test[0], self.sent),
            size_mb=size_mb(folder),
        )
        report = evaluate(self.pipeline.gate, evidence)
        self.events.append(self.pipeline.name, "gated", {"event_id": event_id, **report.to_dict()})
        model = HeldOutModel(
            before=before,
            after=result.estimator,
            decision=decision,
            validation=len(arrays.y_validation),
            multiclass=snapshot.contract.task == "multiclass",
        )
        return _Judged(report=report, evidence=evidence, decision=decision, reference=reference, model=model)

    def _period(self, snapshot: DatasetSnapshot, arrays: Arrays, model: HeldOutModel) -> Profile | None:
        """All held-out rows counted, when there are more of them than a reference keeps and the monitor compares with them."""
        work = period_work(self.lake, snapshot, arrays, model) if self.pipeline.monitor.reference == "period" else None
        if work is None:
            return None
        self.progress.note(f"counting {work.rows:,} held-out rows for the monitor")
        # Where Spark prepared the rows there is a Java, and may be more machines than this one.
        in_spark = partial(count_in_spark, settings=self.settings, progress=self.progress.note)
        return count_period(work, arrays, snapshot.split.ordered, None if self.spark is None else in_spark)

    def _champion(self) -> ModelVersion | None:
        body = self.store.get("loop", self.pipeline.name)
        if body is None or body["champion"] is None:
            return None
        return self.registry.get(self.pipeline.name, body["champion"])

    def _rival(
        self, snapshot: DatasetSnapshot, arrays: Arrays, test: pd.DataFrame, result: SearchResult
    ) -> Rival | None:
        """The champion on the candidate's test rows; ``None`` without one, or when they are not rows that it takes."""
        version = self._champion()
        if version is None:
            return None
        folder = Path(self.settings.home) / "cache" / "packages" / version.digest
        predictor = Predictor.load(download(self.lake, version.package_key, folder, version.digest))
        names = predictor.contract.names
        lost = [name for name in names if name not in test.columns]
        if lost:
            self.progress.note(
                f"not compared with champion {version.version}: it takes {', '.join(map(repr, lost))}, and the data has no "
                "such column any more"
            )
            return None
        try:
            said = predictor.predict(predictor.contract.unbounded().encode(test[list(names)]))
        except ContractViolation as error:
            self.progress.note(f"not compared with champion {version.version}: {error.message}")
            return None
        return Rival(
            prediction=predictor.decision.for_metric(result.problem.objective, said),
            saw=may_have_seen(version, snapshot, arrays),
        )

    def _register(
        self,
        folder: Path,
        arrays: Arrays,
        snapshot: DatasetSnapshot,
        result: SearchResult,
        judged: _Judged,
        event_id: str,
        run_id: str,
    ) -> ModelVersion:
        """The gated configuration, fitted once more on every row: in a stream the newest rows are worth the most."""
        x = np.concatenate([arrays.x_train, arrays.x_validation, arrays.x_test])
        y = np.concatenate([arrays.y_train, arrays.y_validation, arrays.y_test])
        estimator = refit(result, x, y)
        created_at = SystemClock().now()
        newest = None if arrays.time_test is None else float(np.max(arrays.time_test))
        parent = self._champion()
        raw_test = result.estimator.predict(arrays.x_test)
        facts = CardFacts(
            name=self.pipeline.name,
            event_id=event_id,
            created_at=created_at,
            data_end=newest,
            snapshot=snapshot,
            leaderboard=result.leaderboard,
            trial=result.trial,
            rows=len(y),
            report=judged.report,
            evidence=judged.evidence,
            decision=judged.decision,
            explanation=explained(estimator, snapshot.contract, judged.reference),
            y_test=arrays.y_test,
            raw_test=raw_test,
            test=judged.decision.apply(raw_test),
            parent=None if parent is None else parent.version,
            run_id=run_id,
            features=getattr(
                self.pipeline.features, "__name__", None if self.pipeline.features is None else "features"
            ),
            ensemble=None if judged.tried is None else judged.tried.to_dict(),
        )
        metadata = {
            "event_id": event_id,
            "snapshot": snapshot.key,
            "family": result.trial.family,
            "rows": len(y),
            "gate": judged.report.to_dict(),
        }
        pages: dict[str, bytes] = {}

        def card(package: Mapping[str, Any]) -> dict[str, bytes]:
            content = build_card(facts, package)
            pages[CARD] = json.dumps(content, indent=1).encode()
            pages[CARD_PAGE] = card_page(content).encode()
            return pages

        # The reference keeps the gated model's held-out losses: the refitted one has seen those rows.
        build_package(
            folder,
            estimator,
            snapshot.contract,
            self.pipeline.features,
            judged.reference,
            metadata,
            self.raw,
            decision=judged.decision,
            profile=self._period(snapshot, arrays, judged.model),
            extras=card,
        )
        key = f"packages/{self.pipeline.name}/{event_id}"
        digest = upload(self.lake, key, folder)
        version = self.registry.register(
            name=self.pipeline.name,
            package_key=key,
            digest=digest,
            metric=result.leaderboard.metric,
            score=result.trial.score,
            family=result.trial.family,
            params=result.trial.params,
            snapshot_key=snapshot.key,
            created_at=created_at,
            data_end=newest,
            event_id=event_id,
            tags={
                "run_id": run_id,
                "time": snapshot.time or "",
                "parent": "" if parent is None else str(parent.version),
            },
        )
        self.registry.log_files(run_id, pages)
        self.store.put("versions", f"{version.name}/{version.version}", {"package_key": key, "digest": digest})
        Catalog(self.store, self.lake).used(snapshot.key, version.name, version.version, event_id)
        self.events.append(
            version.name, "registered", {"event_id": event_id, "version": version.version, "digest": digest}
        )
        return version


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A candidate at the gate: the verdict and what it rests on; ``tried`` is the ensemble that it is, or that it stands in for."""

    report: GateReport
    evidence: GateEvidence
    decision: Decision
    reference: Reference
    model: HeldOutModel
    tried: Tried | None = None


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
