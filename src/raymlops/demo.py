"""The whole loop on one stream: train on its first part, serve, replay the rest as live HTTP traffic, retrain, promote.

The replay sends one row a request in the stream's order, and every label ``label_delay`` rows after its prediction.
The clock of a replay is compressed (a second holds days), so by default the stream waits while a retraining runs, as
it would hardly have moved in real life, and never runs further ahead of the monitor than a few hundred rows.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymlops.data.sources import FileSource
from raymlops.errors import ConfigError, DataError, nearest
from raymlops.events import EventLog
from raymlops.lake import Lake
from raymlops.loop.ports import Progress
from raymlops.loop.ray_endpoint import Endpoint
from raymlops.monitor.monitor import Monitor
from raymlops.pipeline import Pipeline
from raymlops.registry.package import download
from raymlops.retrain import RetrainPolicy
from raymlops.search.selection import Objective, Search
from raymlops.serving.policies import Canary
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings
from raymlops.store import Store

NAME = "demo"
Floats: TypeAlias = NDArray[np.float64]
IN_FLIGHT = 16
PACE_ROWS = 48
AHEAD_ROWS = 150
WINDOW = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line gives; ``data=None`` generates a stream with a known change."""

    data: str | None = None
    label: str | None = None
    time: str | None = None
    drop: tuple[str, ...] = ()
    train_fraction: float = 0.4
    label_delay: int = 100
    hold: bool = True

    def __post_init__(self) -> None:
        if not 0.05 <= self.train_fraction <= 0.95:
            raise ConfigError(
                f"train_fraction={self.train_fraction} leaves too little to train on or to replay: give 0.05 to 0.95."
            )
        if self.label_delay < 1:
            raise ConfigError(f"label_delay={self.label_delay}: a label comes at least 1 row after its prediction.")
        if self.data is not None and (self.label is None or self.time is None):
            raise ConfigError(
                "With --data also give --label and --time: the column to predict and the one that orders the rows."
            )


def generate_stream(rows: int = 20_000, change_at: float = 0.6, seed: int = 7) -> pd.DataFrame:
    """A stream of orders with a documented concept change.

    ``returned`` follows a logistic model of price, delivery days, customer age and channel. From row
    ``change_at * rows`` on, delivery days no longer matter and high prices mean fewer returns instead of more; the
    inputs keep their distribution, so only labels tell.
    """
    rng = np.random.default_rng(seed)
    price, days = rng.gamma(3.0, 20.0, rows), rng.integers(1, 15, rows)
    age, channel = rng.normal(40, 12, rows).clip(18, 90), rng.choice(["app", "shop", "web"], rows, p=[0.5, 0.2, 0.3])
    before = 0.03 * (price - 60) + 0.25 * (days - 7) - 0.02 * (age - 40) + 0.5 * (channel == "web") - 0.4
    after = -0.03 * (price - 60) + 0.04 * (age - 40) + 0.5 * (channel == "app") - 0.4
    logit = np.where(np.arange(rows) < change_at * rows, before, after)
    return pd.DataFrame(
        {
            "ordered_at": pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(rows), unit="min"),
            "price": price.round(2),
            "delivery_days": days,
            "age": age.round(1),
            "channel": channel,
            "returned": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


def run_demo(options: DemoOptions, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Turn the loop and return the figures of the final table.

    Each demo has a home of its own below the settings' home, and a Ray cluster of its own.
    """
    began = time.monotonic()
    frame, options = _read(options)
    home = settings.ensure_home() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    settings = Settings.read(
        {
            "RAYMLOPS_HOME": str(home),
            "RAYMLOPS_RAY_ADDRESS": "local",
            "RAYMLOPS_HTTP_PORT": str(_free_port()),
            **_kept(settings),
        }
    )
    settings.ensure_home()
    cut = int(len(frame) * options.train_fraction)
    first = home / "first_part.parquet"
    # The types are those of the whole stream: a column that is still empty in the first part must not become a null type.
    schema = pa.Table.from_pandas(frame, preserve_index=False).schema
    table = pa.Table.from_pandas(frame.iloc[:cut], schema=schema, preserve_index=False)
    pq.write_table(table, first, coerce_timestamps="us", allow_truncated_timestamps=True)
    pipeline = _pipeline(options, str(first))
    endpoint = pipeline.run(settings=settings, progress=progress)
    progress.stage("replay", f"{len(frame) - cut:,} rows as live HTTP traffic")
    replay = Replay(endpoint, frame.iloc[cut:], options, pipeline, progress)
    asyncio.run(replay.run())
    return {
        **replay.result(),
        "data": options.data or "generated stream",
        "seconds": round(time.monotonic() - began, 1),
        "home": str(home),
    }


def _kept(settings: Settings) -> dict[str, str]:
    return {} if settings.java_home is None else {"RAYMLOPS_JAVA_HOME": settings.java_home}


def _pipeline(options: DemoOptions, path: str) -> Pipeline:
    return Pipeline(
        name=NAME,
        # Small enough to be read without Spark; the demo shows the way a lake goes.
        source=FileSource(path, label=str(options.label), time=options.time, engine="spark"),
        search=Search(trials=12),
        rollout=Canary(weights=(0.5, 1.0), hold_s=0.2, min_requests=60),
        monitor=Monitor(window_rows=WINDOW),
        # The stream's clock is compressed: cooldown in seconds and a day's budget that a replay cannot exhaust.
        # Labels pour in, so that probing for the cost would never pause; the thousand labels stand in for it.
        retrain=RetrainPolicy(
            every_labels=1000,
            refit_cost=None,
            cooldown=2.0,
            backoff=1.0,
            max_per_day=200,
            min_labels=400,
            give_up_after=50,
        ),
    )


def _read(options: DemoOptions) -> tuple[pd.DataFrame, DemoOptions]:
    if options.data is None:
        return generate_stream(12_000), replace(options, label="returned", time="ordered_at")
    path = Path(options.data)
    if not path.is_file():
        raise DataError(f"There is no file {options.data!r}.")
    frame = pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else pd.read_csv(path)
    for role, column in (("label", options.label), ("time", options.time), *(("drop", name) for name in options.drop)):
        if column not in frame.columns:
            raise ConfigError(
                f"--{role} {column!r} is not a column of {options.data}.{nearest(str(column), map(str, frame.columns))}"
            )
    frame = frame.drop(columns=list(options.drop))
    if not pd.api.types.is_numeric_dtype(frame[options.time]):
        frame[options.time] = pd.to_datetime(frame[options.time])
    return frame.sort_values(str(options.time), kind="stable", ignore_index=True), options


class Replay:
    """The rest of the stream as traffic: rows out, predictions in, labels back."""

    def __init__(
        self, endpoint: Endpoint, stream: pd.DataFrame, options: DemoOptions, pipeline: Pipeline, progress: Progress
    ) -> None:
        self._endpoint, self._options, self._pipeline, self._progress = endpoint, options, pipeline, progress
        self._store = Store(endpoint.settings.store)
        version = self._store.get("versions", f"{NAME}/1") or {}
        folder = endpoint.settings.ensure_home() / "first_model"
        self._first = Predictor.load(
            download(Lake(endpoint.settings.lake), version["package_key"], folder, version["digest"])
        )
        contract = self._first.contract
        self._objective: Objective = pipeline.search.objective(contract.task)
        features = stream.drop(columns=[str(options.label), str(options.time)])
        self._rows: list[dict[str, Any]] = _records(features)
        self._labels: list[Any] = _plain(stream[str(options.label)])
        self._y = contract.encode_label(stream[str(options.label)])
        shape = (len(self._y), len(contract.classes)) if contract.task == "multiclass" else (len(self._y),)
        self._answers = np.full(shape, np.nan)
        self._ids: list[str | None] = [None] * len(self._y)
        self._versions = np.zeros(len(self._y), dtype=int)
        self._failed = 0
        self._turn_rows: dict[str, int] = {}
        self._held_s = 0.0

    async def run(self) -> None:
        """Send everything; return when every label has been stored and nothing is in flight."""
        limit = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:
            for start in range(0, len(self._rows), IN_FLIGHT):
                chunk = range(start, min(start + IN_FLIGHT, len(self._rows)))
                await asyncio.gather(*(self._predict(session, index) for index in chunk))
                await self._label(session, start - self._options.label_delay, chunk.stop - self._options.label_delay)
                if start % PACE_ROWS < IN_FLIGHT:
                    await self._keep_pace(chunk.stop)
            await self._label(session, len(self._rows) - self._options.label_delay - IN_FLIGHT, len(self._rows))
            await self._settle()

    async def _predict(self, session: aiohttp.ClientSession, index: int) -> None:
        try:
            async with session.post(
                f"{self._endpoint.direct_url}/predict", json={"rows": [self._rows[index]]}
            ) as answer:
                body = await answer.json()
                answer.raise_for_status()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self._failed += 1
            self._progress.note(f"row {index} failed: {error}")
            return
        self._ids[index], self._versions[index] = body["request_id"], body["version"]
        found = body["probabilities"] if body["probabilities"] is not None else body["predictions"]
        self._answers[index] = found[0]

    async def _label(self, session: aiohttp.ClientSession, start: int, stop: int) -> None:
        due = [
            {"request_id": self._ids[index], "row": 0, "label": self._labels[index]}
            for index in range(max(0, start), max(0, stop))
            if self._ids[index] is not None
        ]
        if not due:
            return
        async with session.post(f"{self._endpoint.direct_url}/feedback", json={"labels": due}) as answer:
            if answer.status != 200:
                self._failed += 1
                self._progress.note(f"labels refused: {answer.status} {(await answer.text())[:200]}")

    async def _keep_pace(self, sent: int) -> None:
        """Let the monitor catch up, and hold the stream while a retraining runs."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._seen() < sent - AHEAD_ROWS:
            await asyncio.sleep(0.05)
        state = self._loop()
        held = time.monotonic()
        while self._options.hold and self._busy(state):
            self._turn_rows.setdefault(state["retraining"]["event_id"], sent)
            self._tell(sent, state)
            await asyncio.sleep(0.2)
            state = self._loop()
        self._held_s += time.monotonic() - held
        if state["retraining"]:
            self._turn_rows.setdefault(state["retraining"]["event_id"], sent)
        self._tell(sent, state)

    def _busy(self, state: dict[str, Any]) -> bool:
        """A retraining runs, or its version is being deployed: until then the gateways have no new traffic table."""
        if state["retraining"] is None:
            return False
        published = (self._store.get("routing", NAME) or {}).get("number", 0)
        return state["phase"][0] == "Monitoring" or published < state["split"]["number"]

    async def _settle(self) -> None:
        """A retraining that is still running at the end is let finish, so that its outcome is known."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            state = self._loop()
            if state["retraining"] is None or state["phase"][0] == "RollingOut":
                return
            self._turn_rows.setdefault(state["retraining"]["event_id"], len(self._rows))
            await asyncio.sleep(0.5)

    def _seen(self) -> int:
        body = self._store.get("monitor", NAME) or {}
        return int(body.get("rows", 0))

    def _loop(self) -> dict[str, Any]:
        return self._store.get("loop", NAME) or {}

    def _tell(self, sent: int, state: dict[str, Any]) -> None:
        monitor = self._store.get("monitor", NAME) or {}
        split, job = state["split"], state["retraining"]
        weight = f"v{split['champion']}" + (
            f" + v{split['challenger']} at {split['weight']:.0%}" if split["challenger"] else ""
        )
        doing = f" · retraining: {job['stage']}" if job and state["phase"][0] == "Monitoring" else ""
        done = slice(0, max(1, sent - self._options.label_delay))
        score = _score(self._objective, self._y[done], self._answers[done])
        self._progress.note(
            f"{sent:,}/{len(self._rows):,} rows · {weight}{doing} · {self._objective.metric} so far {score:.4f} · {monitor.get('text', '')}"
        )

    def result(self) -> dict[str, Any]:
        """The figures of the final table."""
        static = self._first.predict_rows(self._rows)[1]
        delay, task = self._options.label_delay, self._first.contract.task
        past = np.concatenate([np.full(delay, np.nan), self._y[:-delay]])
        baseline = (
            np.eye(len(self._first.contract.classes))[np.nan_to_num(past).astype(int)] if task == "multiclass" else past
        )
        events = EventLog(self._store).read(NAME)
        turns = _turns(events, self._turn_rows)
        scores = {
            name: _score(self._objective, self._y, values)
            for name, values in (("score_loop", self._answers), ("score_static", static), ("score_baseline", baseline))
        }
        windowed = {
            f"{name}_windowed": _windowed(self._objective, self._y, values)
            for name, values in (("score_loop", self._answers), ("score_static", static))
        }
        return {
            "rows": len(self._rows),
            "failed": self._failed,
            "retrainings": len(turns),
            "promoted": sum(turn["outcome"] == "promoted" for turn in turns),
            **scores,
            **windowed,
            "metric": self._objective.metric,
            "mode": self._objective.mode,
            "label_delay": delay,
            "held_s": round(self._held_s, 1),
            "versions": sorted({int(version) for version in self._versions if version}),
            "turns": turns,
        }


def _turns(events: list[Any], rows: dict[str, int]) -> list[dict[str, Any]]:
    outcomes = {
        "promoted": "promoted",
        "rolled_back": "rolled back",
        "candidate_refused": "refused",
        "retrain_failed": "failed",
    }
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        event_id = event.body.get("event_id", "")
        if event.kind == "retrain_started":
            found[event_id] = {
                "event_id": event_id,
                "reason": event.body["reason"],
                "outcome": "rolling out",
                "row": rows.get(event_id),
            }
        elif event.kind in outcomes and event_id in found:
            why = f": {event.body['reason']}" if event.kind in ("candidate_refused", "rolled_back") else ""
            found[event_id]["outcome"] = outcomes[event.kind] + why[:160]
    return list(found.values())


def _score(objective: Objective, y: Floats, prediction: Floats) -> float:
    """The metric over the rows that have a prediction; NaN where it is not defined (one class only)."""
    known = ~np.isnan(prediction) if prediction.ndim == 1 else ~np.isnan(prediction).any(axis=1)
    if known.sum() < 2:
        return float("nan")
    return float(objective.score(y[known], prediction[known]))


def _windowed(objective: Objective, y: Floats, prediction: Floats) -> float:
    values = [
        _score(objective, y[at : at + WINDOW], prediction[at : at + WINDOW])
        for at in range(0, len(y) - WINDOW + 1, WINDOW)
    ]
    return float(np.nanmean(values)) if values else float("nan")


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON takes them: missing values are null."""
    columns = {name: _plain(frame[name]) for name in frame.columns}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(series: pd.Series) -> list[Any]:
    return [None if pd.isna(value) else value for value in series.tolist()]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
