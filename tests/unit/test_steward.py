"""The steward as a plain class, on a real package and fake engines; no Ray is started."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymlops.clock import ManualClock
from raymlops.data.sources import FrameSource
from raymlops.errors import RolloutError, StaleLease, StoreError
from raymlops.events import EventLog
from raymlops.lake import Lake
from raymlops.loop.ports import ProbeFailed
from raymlops.loop.ray_steward import Steward, save_pipeline
from raymlops.monitor.attribution import LossParts, Suspect
from raymlops.monitor.examine import Examination
from raymlops.monitor.monitor import Monitor
from raymlops.monitor.report import DriftReport
from raymlops.pipeline import Pipeline
from raymlops.registry.package import download
from raymlops.retrain import RetrainPolicy
from raymlops.search.probe import Probe
from raymlops.serving.analysis import VariantStats
from raymlops.serving.gateway import Gateway
from raymlops.serving.policies import Canary, Shadow
from raymlops.serving.predictor import Predictor
from raymlops.serving.traffic import TrafficSplit
from raymlops.settings import Settings
from raymlops.sketch.observed import Observed
from raymlops.sketch.profile import Profile
from raymlops.store import LabelRow, PredictionRow, ShadowRow, Store
from raymlops.testing.packages import register_small
from raymlops.testing.serving import FakeChallengers, Nowhere
from raymlops.testing.traffic import observations

NAME = "stewarded"


class Engines:
    """Serve, jobs and aliases in one; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.during: Any = None
        self.answer: Any = "running"

    def deploy_version(self, endpoint: str, version: int) -> None:
        self.asked.append(("deploy", version))
        if self.during is not None:
            self.during()

    def delete_version(self, endpoint: str, version: int) -> None:
        self.asked.append(("delete", version))

    def submit(self, endpoint: str, event_id: str) -> None:
        self.asked.append(("submit", event_id))

    def status(self, event_id: str) -> str:
        return "running"

    def logs(self, event_id: str) -> str:
        return ""

    def probe(self, endpoint: str, probe_id: str, version: int, change_at: float | None) -> None:
        self.asked.append(("probe", probe_id, version, change_at))

    def probed(self, probe_id: str) -> Any:
        return self.answer

    def set_alias(self, name: str, alias: str, version: int) -> None:
        self.asked.append((alias, version))

    def delete_alias(self, name: str, alias: str) -> None:
        self.asked.append((alias, None))


class World:
    def __init__(self, settings: Settings, folder: Path) -> None:
        settings.ensure_home()
        self.settings, self.store, self.lake = settings, Store(settings.store), Lake(settings.lake)
        self.clock, self.engines = ManualClock(1000.0), Engines()
        for version in (1, 2):
            register_small(settings, NAME, version)
        self.served, self.folder = 0, folder

    def steward(
        self, rollout: Any = None, retrain: RetrainPolicy | None = None, monitor: Monitor | None = None
    ) -> Steward:
        frame = pd.DataFrame({"a": [0.0, 1.0], "b": [0.0, 1.0], "y": [0, 1]})
        source, policy = FrameSource(frame, label="y"), retrain or RetrainPolicy()
        watch = monitor or Monitor()
        pipeline = Pipeline(name=NAME, source=source, rollout=rollout or Canary(), retrain=policy, monitor=watch)
        save_pipeline(self.store, self.lake, pipeline)
        engines: Any = self.engines
        return Steward(NAME, self.settings, engines, engines, engines, self.clock)

    def predictor(self, version: int) -> Predictor:
        place = self.store.get("versions", f"{NAME}/{version}")
        assert place is not None
        return Predictor.load(download(self.lake, place["package_key"], self.folder / place["digest"], place["digest"]))

    def label(self, version: int, score: float, copy: tuple[int, float] | None, label: int, rows: int) -> None:
        """Rows served now by a version, what another one said of them, and their labels."""
        ids = [f"r{self.served + index}" for index in range(rows)]
        self.served += rows
        at = self.clock.now()
        self.store.add_predictions(
            NAME,
            [
                PredictionRow(request_id=i, row_index=0, version=version, variant="champion", score=score, served_at=at)
                for i in ids
            ],
        )
        if copy is not None:
            copies = [ShadowRow(request_id=i, row_index=0, version=copy[0], score=copy[1]) for i in ids]
            self.store.add_shadows(NAME, copies)
        self.store.add_labels(NAME, [LabelRow(request_id=i, row_index=0, value=label) for i in ids])


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> World:
    return World(settings, tmp_path)


def told(**versions: VariantStats) -> dict[str, Any]:
    return {"stats": {int(name[1:]): stats.to_dict() for name, stats in versions.items()}}


def test_gateways_see_a_challenger_only_when_it_answers(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    seen: list[Any] = []
    world.engines.during = lambda: seen.append(steward.wait_routing(0, 0.0))
    steward.candidate(2, "e2")
    assert [(split["number"], split["challenger"]) for split in seen] == [(1, None)]
    after = steward.wait_routing(1, 0.0)
    assert after is not None
    assert (after["number"], after["challenger"]) == (2, 2)


def test_a_second_rollout_is_a_clear_conflict(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    with pytest.raises(RolloutError, match="rolling out version 2: version 3 must wait"):
        steward.candidate(3, "e3")


def test_an_older_steward_stops_when_a_newer_one_has_taken_over(world: World) -> None:
    older = world.steward()
    older.candidate(1, "e1")
    newer = world.steward()
    newer.candidate(2, "e2")
    with pytest.raises(StaleLease):
        older.command("rollback", "I am still here") if older.status()["previous"] else older.candidate(3, "e3")
    assert older.status()["phase"][0] == "Monitoring"  # what it could not write it does not believe
    assert older.wait_routing(1, 0.0) is None
    world.clock.advance(60)
    with pytest.raises(StaleLease):
        older.tick()
    newer.tick()
    assert newer.status()["phase"][1]["rollout"]["challenger"] == 2
    assert [event.kind for event in EventLog(world.store).read(NAME)] == ["deployed", "rollout_started"]


def test_an_approval_by_command(world: World) -> None:
    steward = world.steward(Canary(weights=(0.5, 1.0), hold_s=1, min_requests=60, approval="manual"))
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    steward.tick()
    steward.observe(told(v1=VariantStats(requests=300), v2=VariantStats(requests=300)))
    world.clock.advance(5)
    steward.tick()
    assert steward.status()["phase"][1]["rollout"]["held"] is True
    steward.command("approve", "looks well")
    steward.tick()
    assert steward.status()["champion"] == 2
    kinds = [event.kind for event in EventLog(world.store).read(NAME)]
    assert kinds == ["deployed", "rollout_started", "approval_awaited", "approved", "promoted"]


def test_a_comparison_takes_no_figures_of_what_was_served_before_it_began(world: World) -> None:
    steward = world.steward(Canary(weights=(0.5, 1.0), hold_s=1, min_requests=60))
    steward.candidate(1, "e1")
    world.clock.advance(10)
    before = world.clock.now() - 0.4
    steward.candidate(2, "e2")
    steward.tick()
    began = steward.status()["phase"][1]["rollout"]["began_at"]
    assert before < began
    steward.observe({**told(v1=VariantStats(requests=200)), "since": before})
    steward.observe({**told(v1=VariantStats(requests=30), v2=VariantStats(requests=3)), "since": began})
    compared = steward._watch.comparison()
    assert (compared.champion.requests, compared.challenger.requests) == (30, 3)


def test_a_shadow_is_judged_by_pairs_of_labelled_rows_and_they_outlive_a_crash(world: World) -> None:
    policy = Shadow(min_labels=100, hold_s=1, min_requests=60)
    steward = world.steward(policy)
    steward.candidate(1, "e1")
    world.label(1, 0.9, (2, 0.9), 0, 50)  # before the rollout: not its business
    world.clock.advance(1)
    steward.candidate(2, "e2")
    world.clock.advance(1)
    steward.tick()
    steward.observe(told(v1=VariantStats(requests=300), v2=VariantStats(requests=300)))
    world.label(1, 0.6, (2, 0.9), 1, 70)
    steward.tick()
    again = world.steward(policy)
    world.label(1, 0.6, (2, 0.9), 1, 330)
    again.tick()
    stats = again._watch.comparison().challenger
    assert (stats.requests, stats.gap_n) == (300, 400)
    assert stats.gap_sum == pytest.approx(400 * ((1 - 0.9) ** 2 - (1 - 0.6) ** 2))
    assert again._watch.comparison().champion.loss_n == 400
    world.clock.advance(5)
    again.tick()
    assert again.status()["champion"] == 2
    again.tick()
    assert world.store.shadow_scores(NAME, 2, [f"r{i}" for i in range(450)]) == {}


@pytest.mark.parametrize(("new", "old", "champion"), [(0.8, 0.6, 2), (0.2, 0.8, 1)])
def test_a_provisional_promotion_is_judged_by_what_the_old_champion_says_of_the_same_rows(
    world: World, new: float, old: float, champion: int
) -> None:
    steward = world.steward(Canary(weights=(1.0,), hold_s=1, min_requests=60, confirm_labels=40))
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    steward.tick()
    steward.observe(told(v1=VariantStats(requests=300), v2=VariantStats(requests=300)))
    world.clock.advance(5)
    steward.tick()
    assert steward.status()["confirming"]["previous"] == 1
    steward.tick()
    world.clock.advance(1)
    world.label(2, new, (1, old), 1, 39)
    steward.tick()
    assert steward.status()["confirming"] is not None
    world.label(2, new, (1, old), 1, 1)
    steward.tick()
    status = steward.status()
    assert (status["confirming"], status["champion"]) == (None, champion)
    last = EventLog(world.store).read(NAME)[-1]
    assert last.kind == ("promotion_confirmed" if champion == 2 else "rolled_back")


def test_counts_in_the_champions_bins_reach_its_monitor_and_others_are_only_counted(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    bins = world.predictor(1).bins
    x = np.random.default_rng(2).normal(size=(3000, 2)).astype(np.float32)
    scores = np.asarray(world.predictor(1).predict(x), dtype=float)

    def batch(version: int, seen: Observed) -> dict[str, Any]:
        return {"observed": {version: seen.to_message()}, "rows": seen.rows, "stats": {}}

    for seen in observations(bins, x, scores, 1000.0, batch_rows=1500, sample_rows=400, gateways=2):
        steward.observe(batch(1, seen))
        steward.observe(batch(2, seen))
    other = Profile.learn(x[:500], scores[:500], ("a", "b"))
    steward.observe(batch(1, next(observations(other.bins, x[:7], scores[:7], 1000.0))))
    steward.tick()
    monitor = steward.status()["monitor"]
    assert (monitor["rows"], monitor["ignored"]) == (6007, 3007)
    assert (monitor["last"]["rows"], monitor["last"]["version"]) == (3000, 1)
    assert 600 <= monitor["last"]["sampled_rows"] <= 800
    again = world.steward().status()["monitor"]
    assert (again["rows"], again["ignored"]) == (6007, 3007)


def test_after_a_promotion_the_new_champions_bins_count(world: World) -> None:
    steward = world.steward(Canary(weights=(1.0,), hold_s=1, min_requests=60))
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    steward.command("promote", "by hand")
    assert steward.status()["monitor"]["version"] == 2
    watcher = steward._watch._watcher
    assert watcher is not None
    assert watcher.bins.digest == world.predictor(2).bins.digest


def test_a_rollback_does_not_wait_for_a_window_that_is_being_judged(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    number = steward.command("promote", "by hand")["split"]["number"]
    judging, judged = threading.Event(), threading.Event()

    def step(_now: float) -> None:
        judging.set()
        assert judged.wait(30)

    steward._watch.step = step
    turn = threading.Thread(target=steward.tick)
    turn.start()
    assert judging.wait(30)
    command = threading.Thread(target=steward.command, args=("rollback", "by hand"))
    command.start()
    table = steward.wait_routing(number, 30.0)
    assert table is not None
    assert (table["champion"], judged.is_set()) == (1, False)
    judged.set()
    turn.join(30)
    command.join(30)
    assert steward.status()["champion"] == 1


def test_what_gateways_serve_becomes_a_report_with_the_requests_of_wild_rows(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")

    class Packages:
        def load(self, version: int) -> Predictor:
            return world.predictor(version)

    async def serve() -> None:
        nowhere = Nowhere()
        gateways = [
            Gateway(
                NAME,
                packages=Packages(),
                challengers=FakeChallengers({}),
                store=nowhere,
                files=nowhere,
                sink=steward,
                clock=world.clock,
            )
            for _ in range(2)
        ]
        table = steward.wait_routing(0, 0.0)
        assert table is not None
        rng = np.random.default_rng(3)
        for gateway in gateways:
            await gateway.apply(TrafficSplit.from_dict(table))
        for number in range(24):
            rows = [{"a": a, "b": b} for a, b in rng.normal(size=(50, 2)).tolist()]
            if number == 13:
                rows[7]["a"] = 1e6
            body = json.dumps({"rows": rows, "request_id": f"r{number}"}).encode()
            headers = [(b"content-type", b"application/json")]
            answer = await gateways[number % 2].handle("POST", f"/{NAME}/predict", headers, body)
            assert answer.status == 200
        for gateway in gateways:
            await gateway.close()

    asyncio.run(serve())
    steward.tick()
    monitor = steward.status()["monitor"]
    assert (monitor["rows"], monitor["ignored"], monitor["last"]["window"]) == (1200, 0, 1)
    assert (monitor["last"]["rows"], monitor["last"]["sampled_rows"]) == (1000, 1000)
    assert monitor["last"]["wild"][0]["request_id"] == "r13"


PARTS = LossParts(rise=0.5, covariate=0.1, prior=0.0, concept=0.4, effective=90.0)
PROBE = Probe(gain=0.3, standard_error=0.01, gains=True, rows=60, note="+0.3 ± 0.01", loss=0.1)


def alarmed(world: World) -> Steward:
    """A steward whose champion is measurably harmful from the first label on."""
    steward = world.steward(retrain=RetrainPolicy(min_labels=200, cooldown=0))
    steward.candidate(1, "e1")
    world.clock.advance(1)
    world.label(1, 0.9, None, 0, 1500)
    steward.tick()
    return steward


def test_an_alarm_asks_for_a_probe_whose_gain_starts_the_retraining(world: World) -> None:
    steward = alarmed(world)
    asked = [item for item in world.engines.asked if item[0] == "probe"]
    assert asked == [("probe", f"{NAME}-probe-1", 1, 1001.0)]
    steward.tick()
    assert steward.status()["retraining"] is None
    world.engines.answer = Examination(probe=PROBE, parts=PARTS)
    steward.tick()
    assert steward.status()["retraining"] is not None
    diagnosis = steward.status()["monitor"]["diagnosis"]
    assert (diagnosis["kind"], diagnosis["concept"]) == ("concept_shift", 0.4)
    told = [event for event in EventLog(world.store).read(NAME) if event.kind in ("probed", "retrain_started")]
    assert [event.kind for event in told] == ["probed", "retrain_started"]
    assert told[0].body["reason"] == "a refit may gain: +0.3 ± 0.01"
    assert told[0].body["parts"]["concept"] == 0.4
    assert told[1].body["evidence"]["probe"]["gain"] == 0.3


def test_a_probe_without_a_gain_starts_nothing_and_one_that_failed_is_no_veto(world: World) -> None:
    steward = alarmed(world)
    world.engines.answer = Examination(probe=replace(PROBE, gain=-0.1, gains=False))
    steward.tick()
    steward.tick()
    assert steward.status()["retraining"] is None
    world.label(1, 0.9, None, 0, 800)
    steward.tick()
    world.engines.answer = ProbeFailed(reason="no place in the cluster")
    steward.tick()
    assert steward.status()["retraining"] is not None
    kinds = [event.kind for event in EventLog(world.store).read(NAME)]
    assert [kind for kind in kinds if kind.startswith(("probe", "retrain"))] == [
        "probed",
        "retrain_held",
        "probe_failed",
        "retrain_started",
    ]


def test_a_probe_is_asked_for_again_after_a_crash(world: World) -> None:
    alarmed(world)
    world.engines.asked.clear()
    again = world.steward(retrain=RetrainPolicy(min_labels=200, cooldown=0))
    assert ("probe", f"{NAME}-probe-1", 1, 1001.0) in world.engines.asked
    assert again.status()["retrain"]["probing"] == {"id": f"{NAME}-probe-1", "rows": 1500, "episode": "v1-w0"}


def test_reports_never_fall_behind_however_much_is_served(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    bins = world.predictor(1).bins
    rng = np.random.default_rng(5)
    for turn in range(40):
        x = rng.normal(size=(3000, 2)).astype(np.float32)
        scores = np.full(3000, 0.5)
        for seen in observations(bins, x, scores, float(turn), batch_rows=1000):
            steward.observe({"observed": {1: seen.to_message()}, "rows": seen.rows, "stats": {}})
        steward.tick()
    waiting = steward._watch._pending
    assert len(waiting) <= 8
    last = steward.status()["monitor"]["last"]
    assert last["to_at"] >= 30.0
    assert last["rows"] > last["sampled_rows"]


def test_after_a_promotion_the_new_versions_own_reference_takes_over(world: World) -> None:
    register_small(world.settings, NAME, 3, rounds=1)
    steward = world.steward(Canary(weights=(1.0,), hold_s=1, min_requests=60))
    steward.candidate(1, "e1")
    world.label(1, 0.9, None, 1, 300)
    steward.tick()
    before = steward._watch._watcher
    assert before is not None
    assert steward.status()["monitor"]["labelled"] == 300
    steward.candidate(3, "e3")
    steward.tick()
    steward.observe(told(v1=VariantStats(requests=300), v3=VariantStats(requests=300)))
    world.clock.advance(5)
    steward.tick()
    after = steward._watch._watcher
    assert after is not None
    assert (steward.status()["champion"], after.version, steward._watch.labelled) == (3, 3, 0)
    assert after.baseline.mean > before.baseline.mean  # one round of boosting promises less
    assert after.losses.rows == 0


def test_a_watch_that_could_not_follow_does_so_in_a_later_turn(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    load, failed = steward._watch._load, []

    def once(version: int) -> Predictor:
        if not failed:
            failed.append(version)
            raise StoreError("the lake is away")
        return load(version)

    steward._watch._load = once
    with pytest.raises(StoreError, match="the lake is away"):
        steward.command("promote", "by hand")
    status = steward.status()
    assert (status["champion"], status["monitor"]["version"], failed) == (2, 1, [2])
    steward.tick()
    assert steward.status()["monitor"]["version"] == 2


def test_a_probe_that_answers_while_the_state_changes_is_dropped(world: World) -> None:
    steward = alarmed(world)
    found = Examination(probe=PROBE, parts=PARTS)

    def probed(_probe_id: str) -> Examination:
        steward.command("retrain", "by hand")
        return found

    world.engines.probed = probed
    steward.tick()
    assert steward.status()["retrain"]["probing"] is None
    assert steward._watch.insight._parts is None


def test_what_stood_when_the_steward_died_stands_again(world: World) -> None:
    policy, monitor = RetrainPolicy(on_drift=False, on_harm=False), Monitor(second_opinion="off")
    steward = world.steward(retrain=policy, monitor=monitor)
    steward.candidate(1, "e1")
    bins = world.predictor(1).bins
    x = np.random.default_rng(2).normal(3.0, 1.0, size=(9000, 2)).astype(np.float32)
    scores = np.asarray(world.predictor(1).predict(x), dtype=float)
    for seen in observations(bins, x, scores, 1000.0, batch_rows=1000):
        steward.observe({"observed": {1: seen.to_message()}, "rows": seen.rows})
    steward.tick()
    before = steward._watch
    assert before.standing is not None
    assert before.insight.diagnosis is not None
    after = world.steward(retrain=policy, monitor=monitor)._watch
    assert (after.standing, after._pending) == (before.standing, before._pending)
    assert after.insight.diagnosis == before.insight.diagnosis
    assert json.loads(json.dumps(after.summary())) == json.loads(json.dumps(before.summary()))
    assert len(json.dumps(world.store.get("watch", NAME))) < 1_000_000
    after.answered()
    answered = world.steward(retrain=policy, monitor=monitor)._watch
    assert (answered.standing, answered.insight.diagnosis) == (None, before.insight.diagnosis)


def test_what_the_diagnosis_rests_on_outlives_the_steward(world: World) -> None:
    """The newest window's rows, of which a column went missing; errors since then; what a probe has split the loss into."""
    policy, monitor = RetrainPolicy(min_labels=200, cooldown=0), Monitor(window_rows=300, second_opinion="off")
    steward = world.steward(retrain=policy, monitor=monitor)
    steward.candidate(1, "e1")
    bins = world.predictor(1).bins
    x = np.random.default_rng(2).normal(size=(350, 2)).astype(np.float32)
    x[300:, 1] = np.nan
    for seen in observations(bins, x, np.full(350, 0.5), 1000.0):
        steward.observe({"observed": {1: seen.to_message()}, "rows": 350, **told(v1=VariantStats(requests=350))})
    steward.tick()
    steward.observe(told(v1=VariantStats(requests=700, errors=1)))
    world.label(1, 0.9, None, 0, 1500)
    steward.tick()
    steward._watch.examined(Examination(probe=PROBE, parts=PARTS, suspects=(Suspect(column="a", share=0.2),)))
    before, again = steward._watch, world.steward(retrain=policy, monitor=monitor)._watch
    assert before._watcher is not None
    assert again._watcher is not None
    assert len(again._watcher.newest) == 300
    np.testing.assert_array_equal(again._watcher.newest, before._watcher.newest)
    assert again.insight.of_version() == before.insight.of_version()
    assert again.insight.of_version()["stats"]["errors"] == 1
    assert again.insight.of_version()["parts"] == PARTS.to_dict()
    assert before.standing is not None
    for watch in (before, again):
        watch.insight.look(before.standing, again._watcher.newest)
    assert again.insight.diagnosis == before.insight.diagnosis
    assert again.insight.diagnosis is not None
    assert again.insight.diagnosis.note == "values went missing: b (50 of the newest 100 rows)"


def test_reports_that_wait_outlive_the_steward(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    waits = DriftReport(
        window=3, version=1, rows=9, from_at=1.0, to_at=2.0, severity=0, reference_loss=0.1, loss_limit=0.2
    )
    steward._watch._pending.append(waits)
    steward.observe({"rows": 1})
    steward._watch._save()
    again = world.steward()
    assert list(again._watch._pending) == [waits]
    again.tick()
    assert again._watch.standing == waits


def test_a_new_monitor_spec_is_used_for_the_next_champion(world: World) -> None:
    steward = world.steward()
    steward.candidate(1, "e1")
    steward.candidate(2, "e2")
    pipeline = replace(steward._pipeline, monitor=Monitor(window_rows=333))
    save_pipeline(world.store, world.lake, pipeline)
    steward.reload()
    assert steward._watch.insight.spec != pipeline.monitor
    steward.command("promote", "by hand")
    watcher = steward._watch._watcher
    assert watcher is not None
    assert (watcher.spec, steward._watch.insight.spec) == (pipeline.monitor, pipeline.monitor)
