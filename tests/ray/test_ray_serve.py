"""Real Serve over HTTP, real packages; the steward is a small actor that publishes what the test tells it to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import ray
from ray import serve

from raymlops.errors import ConfigError, NotReady, Overloaded, ServingFailed
from raymlops.lake import Lake
from raymlops.serving.analysis import VariantStats
from raymlops.serving.ray_replica import MAX_UNREAD_BATCHES, NAMESPACE, StewardSink, steward_name, version_app
from raymlops.serving.ray_serve import ROUTER, Place, ServeEngine
from raymlops.serving.spec import Serving
from raymlops.serving.traffic import TrafficSplit
from raymlops.settings import Settings
from raymlops.sketch.observed import Observed
from raymlops.store import Store
from raymlops.testing.packages import register_small

NAME = "served"
ROW = {"a": 0.5, "b": -0.5}


class FakeSteward:
    """Publishes tables and keeps what gateways tell."""

    def __init__(self) -> None:
        self.split: dict[str, Any] | None = None
        self.batches: list[dict[str, Any]] = []

    async def publish(self, split: dict[str, Any]) -> None:
        self.split = split

    async def wait_routing(self, known_number: int, timeout_s: float = 10.0) -> dict[str, Any] | None:
        for _ in range(int(timeout_s / 0.01)):
            if self.split is not None and self.split["number"] > known_number:
                return self.split
            await asyncio.sleep(0.01)
        return None

    async def observe(self, batch: dict[str, Any]) -> None:
        self.batches.append(batch)

    async def seen(self) -> list[dict[str, Any]]:
        return self.batches


class SlowSteward:
    """Takes batches when it is told to."""

    def __init__(self) -> None:
        self.observe = self
        self.unread: list[Future[None]] = []

    def remote(self, batch: dict[str, Any]) -> SlowSteward:
        self.unread.append(Future())
        return self

    def future(self) -> Future[None]:
        return self.unread[-1]


def test_a_steward_that_lags_or_is_not_there_is_told_later() -> None:
    sink, steward = StewardSink(), SlowSteward()
    with pytest.raises(NotReady, match="The steward is not there"):
        sink.observe({})
    sink.steward = steward
    for _ in range(MAX_UNREAD_BATCHES):
        sink.observe({})
    with pytest.raises(Overloaded, match="The steward has 4 batches to read"):
        sink.observe({})
    steward.unread[0].set_result(None)
    steward.unread[1].set_exception(RuntimeError("it fell over one"))
    sink.observe({})
    sink.observe({})
    with pytest.raises(Overloaded):
        sink.observe({})


def launch_steward() -> Any:
    return (
        ray.remote(FakeSteward)
        .options(name=steward_name(NAME), namespace=NAMESPACE, num_cpus=0, max_concurrency=64)
        .remote()
    )


def broken(frame: pd.DataFrame) -> pd.DataFrame:
    raise RuntimeError("these features never worked")


class World:
    """The deployed endpoint; tables are numbered as they are published."""

    def __init__(self, settings: Settings, store: Store, engine: ServeEngine, place: Place, steward: Any) -> None:
        self.settings, self.store, self.engine, self.place, self.steward = settings, store, engine, place, steward
        self.number = 1
        self.http = httpx.Client(timeout=30, trust_env=False)

    def publish(self, **table: Any) -> TrafficSplit:
        self.number += 1
        split = TrafficSplit(number=self.number, **table)
        self.store.put("routing", NAME, split.to_dict())
        ray.get(self.steward.publish.remote(split.to_dict()))
        self.until(lambda: self.status()["routing"] == split.number)
        return split

    def until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def status(self) -> dict[str, Any]:
        return dict(self.http.get(f"{self.place.direct_url}/status").json())

    def predict(self, url: str | None = None, **body: Any) -> httpx.Response:
        return self.http.post(f"{url or self.place.direct_url}/predict", json={"rows": [ROW], **body})

    def explain(self, version: int) -> httpx.Response:
        return self.http.post(f"{self.place.direct_url}/versions/{version}/explain", json={"rows": [ROW]})

    def figures(self) -> dict[int, VariantStats]:
        total: dict[int, VariantStats] = {}
        for batch in ray.get(self.steward.seen.remote()):
            for version, stats in batch["stats"].items():
                total[version] = total.get(version, VariantStats()) + VariantStats.from_dict(stats)
        return total


@pytest.fixture(scope="module")
def world(ray_cluster: Settings) -> Iterator[World]:
    store = Store(ray_cluster.store)
    for version, rounds in ((1, 3), (2, 6), (3, 9)):
        register_small(ray_cluster, NAME, version, rounds=rounds)
    register_small(ray_cluster, NAME, 4, rounds=12, features=broken)
    store.put("routing", NAME, TrafficSplit(number=1, champion=1).to_dict())
    steward, engine = launch_steward(), ServeEngine(ray_cluster)
    place = engine.deploy_gateway(NAME, Serving(max_body_bytes=100_000))
    made = World(ray_cluster, store, engine, place, steward)
    yield made
    engine.delete_endpoint(NAME)
    assert [name for name in engine.status() if name.startswith(NAME)] == []
    ray.kill(made.steward)
    store.close()


def test_both_routes_answer_with_the_champion(world: World) -> None:
    assert f":{world.settings.http_port}/" in world.place.url
    answers = [world.predict(url) for url in (world.place.url, world.place.direct_url)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["probabilities"] == answers[1].json()["probabilities"]
    assert {answer.json()["version"] for answer in answers} == {1}
    assert answers[1].headers["x-raymlops-variant"] == "champion"


def test_both_routes_explain_what_the_champion_says(world: World) -> None:
    for url in (world.place.url, world.place.direct_url):
        body = world.http.post(f"{url}/explain", json={"rows": [ROW]}).json()
        (row,) = body["rows"]
        assert row["base"] + sum(row["contributions"].values()) == pytest.approx(row["output"], abs=1e-4)
        assert row["probability"] == pytest.approx(world.predict().json()["probabilities"][0], abs=1e-4)


def test_the_open_inference_protocol_on_both_ports(world: World) -> None:
    inputs = [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -0.5]}]
    expected = world.predict().json()["probabilities"]
    for place in (world.place.url, world.place.direct_url):
        root = place.removesuffix(f"/{NAME}")
        answer = world.http.post(f"{root}/v2/models/{NAME}/infer", json={"id": "i1", "inputs": inputs})
        assert answer.status_code == 200
        assert answer.json()["outputs"][1]["data"] == expected
        assert world.http.get(f"{root}/v2/models/{NAME}/ready").json()["ready"] is True
        assert world.http.get(f"{root}/v2/health/ready").status_code == 200
        assert world.http.post(f"{root}/v2/models/{NAME}/infer", content=b"{").status_code == 400


def test_unknown_endpoints_are_404_in_json(world: World) -> None:
    root = world.place.url.removesuffix(f"/{NAME}")
    for path in ("/nobody/predict", "/v2/models/nobody/infer", "/v2/models/served.v2/infer", "/"):
        answer = world.http.post(f"{root}{path}", json={})
        assert answer.status_code == 404
        assert answer.headers["x-raymlops-error"] == "unknown_endpoint"
        assert answer.headers["x-request-id"]
    assert world.http.get(f"{root}/v2/models/nobody").json() == {"error": "There is no endpoint 'nobody' here."}
    assert world.http.get(f"{root}/nobody").json()["error"]["code"] == "unknown_endpoint"


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b'{"rows": [{"a": "x", "b": 1}]}', 422), (b'{"rows": []}', 422), (b" " * 200_000, 413)],
)
def test_bad_input_is_never_a_500_on_either_route(world: World, content: bytes, status: int) -> None:
    for url in (world.place.url, world.place.direct_url):
        answer = world.http.post(f"{url}/predict", content=content, headers={"x-request-timeout-seconds": "0"})
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "message", "details"}
        assert world.http.get(f"{url}/predict").status_code == 405
        assert world.http.get(f"{url}/nothing").status_code == 404


def test_labels_by_serves_route_and_the_stewards_view(world: World) -> None:
    answer = world.predict(world.place.url, request_id="labelled-1")
    assert answer.headers["x-request-id"].split(",")[0] == "labelled-1"
    body = {"labels": [{"request_id": "labelled-1", "row": 0, "label": 1.0}]}
    assert world.http.post(f"{world.place.url}/feedback", json=body).json() == {"stored": 1, "duplicate": 0}
    assert [item.request_id for item in world.store.outcomes(NAME)] == ["labelled-1"]
    world.until(lambda: any(batch["observed"] for batch in ray.get(world.steward.seen.remote())))
    batch = next(batch for batch in ray.get(world.steward.seen.remote()) if batch["observed"])
    (seen,) = map(Observed.from_message, batch["observed"].values())
    assert (seen.whole, seen.sample.x.shape[1]) == (True, 3)
    assert seen.sketch.counts.sum(axis=1).tolist() == [seen.rows] * 3
    assert world.figures()[1].errors == 0


def test_a_new_champion_is_pushed_without_a_failed_request(world: World) -> None:
    stop = threading.Event()
    seen: dict[str, list[tuple[int, int]]] = {}

    def load(url: str) -> None:
        found = seen.setdefault(url, [])
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not stop.is_set():
                answer = client.post(f"{url}/predict", json={"rows": [ROW]})
                found.append((answer.status_code, answer.json().get("version", 0)))

    threads = [threading.Thread(target=load, args=(url,)) for url in (world.place.url, world.place.direct_url)]
    for thread in threads:
        thread.start()
    for champion in (2, 3, 2, 1):
        world.publish(champion=champion)
        world.until(lambda champion=champion: all(found and found[-1][1] == champion for found in seen.values()))
    stop.set()
    for thread in threads:
        thread.join()
    for found in seen.values():
        assert {status for status, _ in found} == {200}
        versions = [version for _, version in found]
        changes = [version for i, version in enumerate(versions) if i == 0 or versions[i - 1] != version]
        assert changes[-4:] == [2, 3, 2, 1]


def test_a_challenger_lives_in_its_own_app(world: World) -> None:
    world.engine.deploy_version(NAME, 2)
    world.engine.deploy_version(NAME, 2)  # a steward that restarts asks again
    assert world.engine.status()[version_app(NAME, 2)] == "RUNNING"
    world.publish(champion=1, challenger=2, weight=0.5)
    seen = {}
    for i in range(40):
        answer = world.predict(key=f"user-{i}").json()
        seen[answer["variant"]] = (answer["version"], answer["probabilities"][0])
    assert {variant: version for variant, (version, _) in seen.items()} == {"champion": 1, "challenger": 2}
    # Each explains what it says, by its number; who names none is explained the champion's.
    for variant, (version, said) in seen.items():
        explained = world.explain(version)
        assert explained.headers["x-raymlops-variant"] == variant
        assert explained.json()["version"] == version
        assert explained.json()["rows"][0]["probability"] == pytest.approx(said, abs=1e-6)
    assert world.explain(99).json()["error"]["message"].endswith("it serves 1, 2.")
    assert seen["champion"][1] != seen["challenger"][1]
    # Promoted: the gateway itself answers with what its challenger answered.
    world.publish(champion=2)
    world.engine.delete_version(NAME, 2)
    world.engine.delete_version(NAME, 2)
    assert version_app(NAME, 2) not in world.engine.status()
    assert world.predict().json()["probabilities"][0] == pytest.approx(seen["challenger"][1], abs=1e-6)


def test_the_champion_shields_from_a_broken_challenger_and_from_one_that_is_gone(world: World) -> None:
    world.publish(champion=1)
    before = world.figures().get(4, VariantStats()).errors
    world.engine.deploy_version(NAME, 4)
    world.publish(champion=1, challenger=4, weight=1.0)
    answers = [world.predict() for _ in range(5)]
    world.engine.delete_version(NAME, 4)
    answers += [world.predict() for _ in range(3)]
    assert {(answer.status_code, answer.json()["version"]) for answer in answers} == {(200, 1)}
    world.until(lambda: world.figures().get(4, VariantStats()).errors == before + 8)
    world.publish(champion=1)


def test_one_changed_byte_is_refused_and_nothing_of_the_version_stays(world: World, tmp_path: Path) -> None:
    register_small(world.settings, NAME, 9, rounds=15)
    lake, key = Lake(world.settings.lake), f"packages/{NAME}/9/model.json"
    content = bytearray(lake.read(key))
    content[len(content) // 2] ^= 1
    lake.write(key, bytes(content))
    with pytest.raises(ServingFailed, match=r"DigestMismatch.*model\.json"):
        world.engine.deploy_version(NAME, 9)
    assert version_app(NAME, 9) not in world.engine.status()
    assert world.predict().status_code == 200


def test_the_gateway_serves_on_without_a_steward_and_follows_the_next_one(world: World) -> None:
    ray.kill(world.steward)
    assert [world.predict().status_code for _ in range(5)] == [200] * 5
    world.steward = launch_steward()
    world.publish(champion=3)
    assert world.predict().json()["version"] == 3
    world.until(lambda: bool(world.figures()))


def test_deploying_again_keeps_the_address_and_fails_no_request(world: World) -> None:
    stop, statuses = threading.Event(), set()

    def load() -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not stop.is_set():
                statuses.add(client.post(f"{world.place.url}/predict", json={"rows": [ROW]}).status_code)

    thread = threading.Thread(target=load)
    thread.start()
    before = world.status()["gateway"]
    again = world.engine.deploy_gateway(NAME, Serving(max_body_bytes=100_000))
    world.until(lambda: world.status()["gateway"] != before)
    stop.set()
    thread.join()
    assert again == world.place
    assert statuses == {200}
    assert world.predict().json()["version"] == 3
    assert world.engine.status()[ROUTER] == "RUNNING"


def test_an_isolated_version_scales_to_zero_and_comes_back_when_it_is_asked(world: World) -> None:
    scaling = {"min_replicas": 0, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 0.1}
    delays = {
        "downscale_delay_s": 0.5,
        "downscale_to_zero_delay_s": 0.5,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 0.5,
    }
    serving = Serving(max_body_bytes=100_000, challenger_autoscaling={**scaling, **delays})
    world.engine.deploy_gateway(NAME, serving)
    world.engine.deploy_version(NAME, 2)

    def replicas() -> int:
        found = serve.status().applications[version_app(NAME, 2)].deployments["version"]
        return sum(found.replica_states.values())

    world.until(lambda: replicas() == 0)
    assert world.engine.status()[version_app(NAME, 2)] == "RUNNING"
    world.publish(champion=1, challenger=2, weight=1.0)
    seen = []

    def asked() -> bool:
        seen.append(world.predict())
        return bool(seen[-1].json()["version"] == 2)

    world.until(asked)
    # Until it was back, the champion answered.
    assert {answer.status_code for answer in seen} == {200}
    world.publish(champion=1)
    world.engine.delete_version(NAME, 2)
    world.engine.deploy_gateway(NAME, Serving(max_body_bytes=100_000))


def test_autoscaling_that_serve_refuses_is_said_in_words(world: World) -> None:
    with pytest.raises(ConfigError, match=r"autoscaling does not know 'max_replica'\. Did you mean 'max_replicas'"):
        world.engine.deploy_gateway(NAME, Serving(autoscaling={"max_replica": 3}))
    with pytest.raises(ConfigError, match=r"autoscaling=.* is refused by Ray Serve: "):
        world.engine.deploy_gateway(NAME, Serving(autoscaling={"min_replicas": 3, "max_replicas": 1}))
    assert world.predict().status_code == 200
