"""Serving: how an endpoint is served, declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymlops.clock import seconds
from raymlops.errors import ConfigError

NAMESPACE = "raymlops"


def steward_name(endpoint: str) -> str:
    """The actor that publishes the endpoint's traffic tables, in the namespace :data:`NAMESPACE`."""
    return f"raymlops-steward-{endpoint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Replicas and limits of an endpoint's gateway.

    Attributes
    ----------
    replicas : gateway processes; with ``autoscaling`` the number to start with is Serve's own
    port : the gateways' own listener; 0 picks a free port when the endpoint is deployed and keeps it
    max_rows : rows a request may hold
    max_body_bytes : bytes a request body may hold
    deadline_s : seconds (or ``"10s"``) within which a request is answered or refused; its body must be there by then
    header_timeout_s : seconds within which a request's headers must be there, on the gateways' own listener
    autoscaling : Ray Serve's ``autoscaling_config``, given on unchanged
    challenger_autoscaling : the same for each isolated version, one replica when not given. With ``min_replicas=0`` a
        version that nobody asks gives up its process; the first request after that is answered by the champion
    num_cpus : logical CPUs each replica reserves

    Raises
    ------
    ConfigError : names the field, what was given, and what would be accepted
    """

    replicas: int = 1
    port: int = 0
    max_rows: int = 10_000
    max_body_bytes: int = 8 * 1024 * 1024
    deadline_s: float | str = 10.0
    header_timeout_s: float | str = 10.0
    autoscaling: Mapping[str, Any] | None = None
    challenger_autoscaling: Mapping[str, Any] | None = None
    num_cpus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("replicas", "max_rows", "max_body_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r} cannot be: give a whole number from 1.")
        if not isinstance(self.port, int) or isinstance(self.port, bool) or not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port!r} is not a port: give a number from 1 to 65535, or 0 for a free one.")
        object.__setattr__(self, "deadline_s", seconds(self.deadline_s, "deadline_s"))
        object.__setattr__(self, "header_timeout_s", seconds(self.header_timeout_s, "header_timeout_s"))
        if not self.deadline > 0:
            raise ConfigError("deadline_s=0 leaves no time to answer: give more than 0 seconds.")
        if not self.header_timeout > 0:
            raise ConfigError("header_timeout_s=0 leaves no time to ask: give more than 0 seconds.")
        for name in ("autoscaling", "challenger_autoscaling"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"{name}={value!r} is not a mapping: give Ray Serve's autoscaling_config.")
        cpus = self.num_cpus
        if not isinstance(cpus, (int, float)) or isinstance(cpus, bool) or not 0 <= cpus < 1e6:
            raise ConfigError(f"num_cpus={self.num_cpus!r} cannot be reserved: give a number from 0.")

    @property
    def deadline(self) -> float:
        """``deadline_s`` as a number of seconds."""
        return float(self.deadline_s)

    @property
    def header_timeout(self) -> float:
        """``header_timeout_s`` as a number of seconds."""
        return float(self.header_timeout_s)
