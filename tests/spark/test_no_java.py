"""A cluster whose nodes have no Java: a helper node brings it, and the cluster is unharmed afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DRIVER = """
import json, sys
import ray
from raymlops.data.ray_prepare import prepare_frame
from raymlops.data.sources import SparkSource
from raymlops.settings import Settings

ray.init(address=sys.argv[1], log_to_driver=False)
before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
source = SparkSource(lambda spark: spark.range(0, 1000, 1, 2).selectExpr("id", "id % 2 y"), label="y")
frame = prepare_frame(source, None, Settings.read())
after = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
answer = ray.get(ray.remote(num_cpus=1)(lambda: 42).remote())
print(json.dumps({"rows": len(frame), "sum": int(frame["id"].sum()), "same_nodes": before == after, "answer": answer}))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH with what Ray's start needs, and no java on it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "ps", "env", "uname", "cat", "dirname", "readlink", "basename", "rm", "chmod"):
        found = shutil.which(name)
        assert found is not None, name
        (tools / name).symlink_to(found)
    assert shutil.which("java", path=str(tools)) is None
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "JAVA_", "PYSPARK_"))}
    home = {"RAYMLOPS_HOME": str(tmp_path / "home"), "PATH": str(tools)}
    # A cluster of this test's own: no token is needed, and none is looked for.
    return {**kept, **home, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def address(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Ray's sockets live below this folder, and the length of a socket's path is limited.
    with tempfile.TemporaryDirectory(prefix="rj", ignore_cleanup_errors=True) as short:
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        options = [f"--temp-dir={short}", "--num-cpus=1", "--include-dashboard=false", "--disable-usage-stats"]
        with open(tmp_path / "head.log", "wb") as log:
            head = subprocess.Popen([*start, *options], env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while b"Ray runtime started" not in (tmp_path / "head.log").read_bytes():
            assert head.poll() is None, (tmp_path / "head.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
        ours = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        head.wait(60)
        for process in ours:
            if process.is_running():
                process.kill()


def test_prepare_works_on_one_cpu_and_no_java(environment: dict[str, str], address: str) -> None:
    command = [sys.executable, "-c", DRIVER, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"rows": 1000, "sum": 499500, "same_nodes": True, "answer": 42}
    assert "Traceback" not in done.stderr
