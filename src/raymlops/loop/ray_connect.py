"""Joining a Ray cluster, or starting one in this process."""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import parameter

from raymlops.data.ray_dp import ensure_java
from raymlops.serving.spec import NAMESPACE
from raymlops.settings import Settings


def connect(settings: Settings) -> None:
    """Join the cluster of the settings, the one that is running, or start a local one. A second call does nothing.

    The JVM is put on PATH first: a raylet starts Java workers with its own environment.
    """
    if ray.is_initialized():
        return
    ensure_java(settings)
    # In a job that was submitted with the same variables Ray would refuse ours, even where the values agree.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": settings.environ()},
    }
    if settings.ray_address not in (None, "local"):
        ray.init(address=settings.ray_address, **common)
        return
    if settings.ray_address is None:
        try:
            ray.init(address="auto", **common)
            return
        except ConnectionError:
            logging.getLogger(__name__).debug("no cluster is running: starting a local one")
    # Logical CPUs: Spark, trials and replicas take turns on a small machine instead of waiting for ever.
    with _free_agent_port():
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), dashboard_host="127.0.0.1", **common)
    _protect_token()


@contextmanager
def _free_agent_port() -> Iterator[None]:
    """Give the new node's job agent a port of its own.

    ``ray.init`` always takes 52365, and a second cluster on one machine then has no agent that starts jobs; only
    ``ray start`` has an option for it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    whole: Any = parameter.RayParams
    changed: Any = parameter
    changed.RayParams = functools.partial(whole, dashboard_agent_listen_port=port)
    try:
        yield
    finally:
        changed.RayParams = whole


def _protect_token() -> None:
    """Ray writes its token readable by everybody on the machine."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.exists():
        token.chmod(0o600)
