"""One pipeline, three ways to run it, and its life from another process on a cluster that was there before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROW = {"hour": 17.5, "demand": 0.7, "transfer": 0.45, "day": "workday"}
ORDER = {"price": 80.0, "age": 30.0, "speed": 0.5}


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYMLOPS_", "JAVA_"))}
    # A token an earlier local cluster left would turn authentication on for some of the processes only.
    kept["RAY_AUTH_MODE"] = "disabled"
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "RAYMLOPS_HOME": str(home), "RAYMLOPS_HTTP_PORT": str(free_port()), **more}


def call(environ: dict[str, str], *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=timeout_s)


class Cluster:
    """`ray start --head` in a process of its own, ended by its pid."""

    def __init__(self, folder: Path) -> None:
        self.port, dashboard = free_port(), free_port()
        self.environ = environment(folder / "home", RAYMLOPS_RAY_ADDRESS=f"127.0.0.1:{self.port}")
        self.jobs_url = f"http://127.0.0.1:{dashboard}"
        exports = call(environment(folder / "home"), "raymlops", "env").stdout
        java = dict(line.removeprefix("export ").split("=", 1) for line in exports.splitlines())
        node = {
            **self.environ,
            "JAVA_HOME": java["JAVA_HOME"],
            "PATH": f"{java['JAVA_HOME']}/bin{os.pathsep}{self.environ['PATH']}",
        }
        self._log = (folder / "ray.log").open("w")
        options = {
            "--node-ip-address": "127.0.0.1",
            "--port": str(self.port),
            "--num-cpus": "4",
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": str(dashboard),
            "--dashboard-agent-listen-port": str(free_port()),
            "--temp-dir": f"/tmp/rml{self.port}",
            "--object-store-memory": "500000000",
        }
        self._process = subprocess.Popen(
            ["ray", "start", "--head", "--block", *(word for pair in options.items() for word in pair)],
            env=node,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.jobs_url}/api/version", timeout=2, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise AssertionError("the cluster did not start")

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.stop()


def test_as_a_script(tmp_path: Path) -> None:
    done = call(environment(tmp_path), sys.executable, "examples/electricity.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "version 1 says" in done.stdout


def test_as_a_command_in_the_foreground(tmp_path: Path) -> None:
    environ = environment(tmp_path, RAYMLOPS_RAY_ADDRESS="local")
    log = (tmp_path / "run.log").open("w+")
    process = subprocess.Popen(
        ["raymlops", "run", "tests/e2e/orders.py:pipeline"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environ,
        cwd=ROOT,
        # A shell's background jobs, and their children, ignore SIGINT: this is a command in the foreground.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        url = f"http://127.0.0.1:{environ['RAYMLOPS_HTTP_PORT']}/orders/predict"
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            try:
                answer = httpx.post(url, json={"rows": [ORDER]}, timeout=5, trust_env=False)
                if answer.is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        assert answer.json()["version"] == 1
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            log.close()


def test_as_a_ray_job_it_outlives_its_driver_and_obeys_other_processes(cluster: Cluster) -> None:
    environ = cluster.environ
    variables = json.dumps({"env_vars": {key: environ[key] for key in ("RAYMLOPS_HOME", "RAYMLOPS_HTTP_PORT")}})
    command = [
        "ray",
        "job",
        "submit",
        "--working-dir",
        "examples",
        "--runtime-env-json",
        variables,
        "--",
        sys.executable,
        "electricity.py",
    ]
    done = call({**environ, "RAY_ADDRESS": cluster.jobs_url}, *command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "version 1 says" in done.stdout
    answer = json.loads(call(environ, "raymlops", "predict", "electricity", json.dumps([ROW])).stdout)
    assert answer["version"] == 1
    assert len(answer["predictions"]) == 1
    status = json.loads(call(environ, "raymlops", "status", "electricity", "--json").stdout)
    assert status["gateway"]["ready"]
    assert status["loop"]["champion"] == 1
    for verb, message in (("promote", "there is no challenger to promote"), ("rollback", "has no earlier champion")):
        refused = call(environ, "raymlops", verb, "electricity")
        assert refused.returncode == 1
        assert message in " ".join(refused.stderr.split())
    url = f"http://127.0.0.1:{environ['RAYMLOPS_HTTP_PORT']}/electricity"
    # Fewer than the policy would retrain on by itself.
    _serve_and_label(url, rows=400)
    assert call(environ, "raymlops", "retrain", "electricity", "--reason", "a test asks").returncode == 0
    history = _wait_for_outcome(environ)
    assert "a test asks" in json.dumps(history)
    if any(event["kind"] == "promoted" for event in history):
        assert call(environ, "raymlops", "rollback", "electricity").returncode == 0
        again = json.loads(call(environ, "raymlops", "predict", "electricity", json.dumps([ROW])).stdout)
        assert again["version"] == 1


def test_detached_it_joins_the_cluster_and_is_left_there(cluster: Cluster) -> None:
    done = call(cluster.environ, "raymlops", "run", "--detach", "tests/e2e/orders.py:pipeline")
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(call(cluster.environ, "raymlops", "predict", "orders", json.dumps([ORDER])).stdout)
    assert answer["version"] == 1
    assert len(answer["predictions"]) == 1


def _serve_and_label(url: str, rows: int) -> None:
    """Traffic whose labels follow another rule than the first training's."""
    rng = np.random.default_rng(0)
    with httpx.Client(trust_env=False, timeout=30) as client:
        for _ in range(rows // 100):
            sent = [
                {"hour": float(hour), "demand": float(demand), "transfer": float(transfer), "day": "workday"}
                for hour, demand, transfer in zip(
                    rng.uniform(0, 24, 100), rng.normal(0.5, 0.2, 100), rng.uniform(0.4, 0.6, 100), strict=True
                )
            ]
            answer = client.post(f"{url}/predict", json={"rows": sent}).raise_for_status().json()
            labels = [
                {"request_id": answer["request_id"], "row": index, "label": int(row["demand"] < 0.5)}
                for index, row in enumerate(sent)
            ]
            client.post(f"{url}/feedback", json={"labels": labels}).raise_for_status()


def _wait_for_outcome(environ: dict[str, str]) -> list[dict[str, object]]:
    ends = {"promoted", "rolled_back", "candidate_refused", "retrain_failed"}
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        text = call(environ, "raymlops", "history", "electricity", "--json").stdout
        history = [json.loads(line) for line in text.splitlines()]
        if history[-1]["kind"] == "rollout_started":
            assert call(environ, "raymlops", "promote", "electricity").returncode == 0
        if any(event["kind"] in ends for event in history):
            assert not any(event["kind"] == "retrain_failed" for event in history), json.dumps(history[-1])
            return history
        time.sleep(1)
    raise AssertionError("the retraining came to no end")
