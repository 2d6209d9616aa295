"""The steward killed a hundred times under label traffic: no acknowledged label lost, none counted twice, the same reports.

Here the steward is the plain class in a process of its own, on the real store, package and monitor; Serve, jobs and aliases
are stand-ins that do nothing. So a kill costs tenths of a second and can come anywhere: while it starts, in a transaction,
between two. Labels come from another process, through the real store. ``test_faults.py`` kills the real actor on a real
cluster, a few times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymlops import FrameSource, Monitor, Pipeline, RetrainPolicy
from raymlops.clock import ManualClock
from raymlops.events import EventLog
from raymlops.lake import Lake
from raymlops.loop.watch import JUDGED
from raymlops.registry.package import download
from raymlops.serving.analysis import VariantStats
from raymlops.serving.predictor import Predictor
from raymlops.settings import Settings
from raymlops.sketch.histogram import unpack_array
from raymlops.sketch.observed import Observed, keys_of
from raymlops.sketch.profile import with_score
from raymlops.store import LabelRow, PredictionRow, Store
from raymlops.testing.packages import register_small, table

NAME = "killed"
KILLS = 100
ROWS, BATCH, WINDOW = 3000, 100, 300
SPAWNING = multiprocessing.get_context("forkserver")
SPAWNING.set_forkserver_preload(["raymlops.loop.ray_steward", "xgboost", "onnxruntime", "scipy.stats", __name__])
Count = Synchronized  # of an int, shared by processes


class Nothing:
    """Serve, jobs and aliases that do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@dataclass(frozen=True, slots=True)
class Stream:
    """What was served, and what turned out to be true: from the middle on another rule."""

    x: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    @classmethod
    def of(cls, home: Path) -> Stream:
        with np.load(home / "stream.npz") as held:
            return cls(held["x"], held["scores"], held["labels"])


def prepare(home: Path) -> None:
    """A home with a champion, and the stream it will be told of. Both runs start from copies of it: a package made twice may
    answer by another runtime, whichever was faster at that moment, and so differ in the seventh digit."""
    from raymlops.loop.ray_steward import Steward, save_pipeline

    settings = Settings.read({"RAYMLOPS_HOME": str(home)})
    settings.ensure_home()
    register_small(settings, NAME, 1, rounds=20)
    store, lake = Store(settings.store), Lake(settings.lake)
    pipeline = Pipeline(
        name=NAME,
        source=FrameSource(table(500), label="y"),
        monitor=Monitor(window_rows=WINDOW, second_opinion="off"),
        retrain=RetrainPolicy(on_drift=False, on_harm=False),
    )
    save_pipeline(store, lake, pipeline)
    nothing: Any = Nothing()
    Steward(NAME, settings, nothing, nothing, nothing, ManualClock(0.0)).candidate(1, "first")
    served = table(ROWS, seed=5)
    later = np.arange(ROWS) >= ROWS // 2
    served.loc[later, "b"] += 0.4
    labels = np.where(later, (served.a - served.b > 0), served.y).astype(int)
    body = store.get("versions", f"{NAME}/1")
    assert body is not None
    model = Predictor.load(download(lake, body["package_key"], home / "package", body["digest"]))
    x = model.encode(served[["a", "b"]].to_dict("records"))
    np.savez(home / "stream.npz", x=x, scores=model.predict(x), labels=labels)
    store.close()


def write_labels(settings: Settings, home: Path, kills: Count[int], told: Count[int], wanted: int) -> None:
    """Write predictions and, once the steward knows of the rows, their labels: a few at a time, some twice, and for as long as
    there are kills. Note what was acknowledged."""
    rng, store, stream = random.Random(1), Store(settings.store), Stream.of(home)
    done = 0
    with (home / "acknowledged.txt").open("w", buffering=1) as out:
        for start in range(0, ROWS, BATCH):
            store.add_predictions(
                NAME,
                [
                    PredictionRow(
                        request_id=f"r{i}",
                        row_index=0,
                        version=1,
                        variant="champion",
                        score=float(stream.scores[i]),
                        served_at=float(i),
                    )
                    for i in range(start, start + BATCH)
                ],
            )
            while done < start + BATCH:
                while told.value <= done or (kills.value < wanted and done / ROWS >= kills.value / wanted):
                    time.sleep(0.01)
                few = list(range(done, min(start + BATCH, done + rng.randint(1, 20))))
                again = rng.sample(range(done), min(done, rng.randint(0, 2)))
                rows = [LabelRow(request_id=f"r{i}", row_index=0, value=int(stream.labels[i])) for i in [*few, *again]]
                outcomes = store.add_labels(NAME, rows)
                for row, outcome in zip(rows, outcomes, strict=True):
                    out.write(f"{row.request_id} {outcome}\n")
                done += len(few)


def watch(settings: Settings, home: Path, told: Count[int]) -> None:
    """A life of the steward: it goes on from where the last one had saved. Rows are told in their order, the next ones when it
    has the labels of those before, so that what it knows at the end of a window does not hang on the moment."""
    from raymlops.loop.ray_steward import Steward

    nothing: Any = Nothing()
    store, stream, bins = Store(settings.store), Stream.of(home), Predictor.load(home / "package").bins
    rows = (store.get("watch", NAME) or {"rows": 0})["rows"]
    clock = ManualClock(float(rows))
    steward = Steward(NAME, settings, nothing, nothing, nothing, clock)
    with (home / "reports.jsonl").open("a", buffering=1) as out:
        while (labelled := steward.status()["monitor"]["labelled"]) < ROWS:
            if labelled == rows:
                mine = slice(rows, rows + BATCH)
                at = np.arange(rows, rows + BATCH, dtype=float)
                rows += BATCH
                clock.advance(BATCH)
                seen = with_score(stream.x[mine], stream.scores[mine])
                observed = Observed.of(bins, seen, at, keys_of(mine.start, BATCH, 0), ())
                answered = VariantStats(requests=BATCH, errors=rows // BATCH % 3)
                steward.observe(
                    {"observed": {1: observed.to_message()}, "rows": BATCH, "stats": {1: answered.to_dict()}}
                )
            steward.tick()
            told.value = rows
            last = steward.status()["monitor"]["last"]
            if rows % WINDOW == 0 and last is not None and last["kind"] == "window":
                out.write(json.dumps(last) + "\n")


@dataclass(frozen=True, slots=True)
class Ended:
    """What is left of a run."""

    store: Store
    acknowledged: list[tuple[str, str]]
    reports: dict[int, list[Any]]

    @property
    def watch(self) -> dict[str, Any]:
        body = self.store.get("watch", NAME)
        assert body is not None
        return body


def run(prepared: Path, home: Path, kills: int) -> Ended:
    """The whole stream, with that many kills of the steward at random times."""
    shutil.copytree(prepared, home)
    settings, rng = Settings.read({"RAYMLOPS_HOME": str(home)}), random.Random(2)
    killed, told = SPAWNING.Value("i", 0), SPAWNING.Value("i", 0)
    writer = SPAWNING.Process(target=write_labels, args=(settings, home, killed, told, kills))
    writer.start()
    try:
        for _ in range(kills):
            life = SPAWNING.Process(target=watch, args=(settings, home, told))
            life.start()
            life.join(rng.uniform(0.02, 0.6))
            assert life.exitcode is None, "the steward ended before it was killed"
            assert life.pid is not None
            os.kill(life.pid, signal.SIGKILL)
            life.join(30)
            killed.value += 1
        last = SPAWNING.Process(target=watch, args=(settings, home, told))
        last.start()
        last.join(400)  # on a busy machine most rows are left for the last life
        assert last.exitcode == 0
        writer.join(30)
        assert writer.exitcode == 0
    finally:
        writer.kill()
    reports: dict[int, list[Any]] = {}
    for line in (home / "reports.jsonl").read_text().splitlines():
        report = json.loads(line)
        reports.setdefault(report["window"], []).append(report)
    lines = (home / "acknowledged.txt").read_text().splitlines()
    said = [(line.split()[0], line.split()[1]) for line in lines]
    return Ended(Store(settings.store), said, reports)


def same(one: Any, other: Any) -> bool:
    """Equal but for what rounding makes of sums over other groups: labels come in groups that hang on the kills."""
    if isinstance(one, dict) and set(one) == {"dtype", "shape", "data"}:
        return np.allclose(unpack_array(one), unpack_array(other), rtol=1e-9, atol=1e-12, equal_nan=True)
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True))
    return bool(one == other)


def test_a_hundred_kills_change_no_label_and_no_p_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path / "prepared")
    unbroken = run(tmp_path / "prepared", tmp_path / "unbroken", 0)
    began = time.monotonic()
    broken = run(tmp_path / "prepared", tmp_path / "broken", KILLS)
    took_s = time.monotonic() - began

    stored = [request for request, outcome in broken.acknowledged if outcome == "stored"]
    assert sorted(stored) == sorted({request for request, _ in broken.acknowledged})
    assert len(stored) == ROWS
    taken = broken.store.outcomes(NAME, 0)
    assert sorted(outcome.request_id for outcome in taken) == sorted(stored)
    assert broken.watch["labelled"] == broken.watch["rows"] == ROWS
    assert broken.watch["cursor"] == taken[-1].seq

    for part in ("watcher", "insight", "insight_of_version", "last", "stands"):
        assert same(broken.watch[part], unbroken.watch[part]), (part, broken.watch[part], unbroken.watch[part])
    assert same(broken.store.get(JUDGED, NAME), unbroken.store.get(JUDGED, NAME))
    # Evidence, loss, estimate, diagnosis and all: the clock of each life goes on from the rows, so the times are the same too.
    assert set(broken.reports) == set(unbroken.reports)
    moved = 0
    for window, (report, *_) in unbroken.reports.items():
        assert all(same(again, report) for again in broken.reports[window]), (window, broken.reports[window], report)
        moved += any(item["drifted"] for item in report["evidence"])
    assert moved > 2
    assert EventLog(broken.store).verify() > 0
    with capsys.disabled():
        figures = {"fault": "kill -9 of the plain steward under label traffic", "kills": KILLS, "labels": ROWS}
        sys.stdout.write(
            "\n" + json.dumps(figures | {"windows": len(unbroken.reports), "seconds": round(took_s, 1)}) + "\n"
        )
