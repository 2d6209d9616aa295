"""What the surroundings decide: where state lives, which cluster, which ports. Read once, passed on by value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raymlops.errors import ConfigError, nearest

_PREFIX = "RAYMLOPS_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One immutable object; actors and jobs receive it whole, so they agree with the driver.

    Attributes
    ----------
    home : folder of everything that is local
    store : SQLAlchemy URL of the durable store
    mlflow : MLflow tracking and registry URI
    lake : folder or fsspec URL of snapshots, packages, prediction log
    ray_address : cluster to join; ``None`` joins a running one or starts a local one
    http_host, http_port : where Ray Serve's proxy listens
    java_home : a JVM to use instead of the packaged one
    """

    home: str
    store: str
    mlflow: str
    lake: str
    ray_address: str | None = None
    http_host: str = "127.0.0.1"
    http_port: int = 8000
    java_home: str | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read ``RAYMLOPS_*`` from the environment.

        Raises
        ------
        ConfigError : an unknown ``RAYMLOPS_*`` variable, or a value that cannot be used
        """
        env = os.environ if environ is None else environ
        known = ("HOME", "STORE", "MLFLOW", "LAKE", "RAY_ADDRESS", "HTTP_HOST", "HTTP_PORT", "JAVA_HOME")
        for name in env:
            word = name.removeprefix(_PREFIX)
            if name.startswith(_PREFIX) and word not in known and not word.startswith("TEST_"):
                raise ConfigError(f"The environment sets {name}, which raymlops does not know.{nearest(word, known)}")
        home = Path(env.get(_PREFIX + "HOME") or "~/.raymlops").expanduser().absolute()
        port = env.get(_PREFIX + "HTTP_PORT", "8000")
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"{_PREFIX}HTTP_PORT={port!r} is not a port: give a number from 1 to 65535.")
        return cls(
            home=str(home),
            store=env.get(_PREFIX + "STORE") or f"sqlite:///{home}/raymlops.db",
            mlflow=env.get(_PREFIX + "MLFLOW") or f"sqlite:///{home}/mlflow.db",
            lake=env.get(_PREFIX + "LAKE") or f"{home}/lake",
            ray_address=env.get(_PREFIX + "RAY_ADDRESS") or None,
            http_host=env.get(_PREFIX + "HTTP_HOST") or "127.0.0.1",
            http_port=int(port),
            java_home=env.get(_PREFIX + "JAVA_HOME") or None,
        )

    def environ(self) -> dict[str, str]:
        """The variables that make another process read these same settings."""
        values = {
            "HOME": self.home,
            "STORE": self.store,
            "MLFLOW": self.mlflow,
            "LAKE": self.lake,
            "RAY_ADDRESS": self.ray_address,
            "HTTP_HOST": self.http_host,
            "HTTP_PORT": str(self.http_port),
            "JAVA_HOME": self.java_home,
        }
        return {_PREFIX + key: value for key, value in values.items() if value is not None}

    def ensure_home(self) -> Path:
        """Make the home folder, readable by its owner only, and return it."""
        path = Path(self.home)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path
