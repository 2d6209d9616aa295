"""What the controller may ask of the steward. Values only; the steward carries them out in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from raymlops.loop.state import EndpointState
from raymlops.serving.traffic import TrafficSplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Append an event."""

    kind: str
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Give every gateway this traffic table."""

    split: TrafficSplit


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployChallenger:
    """Serve a version in isolation; later actions wait until it answers."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropChallenger:
    """Take an isolated version down."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAlias:
    """Point a registry alias at a version, or at nothing."""

    alias: str
    version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRetraining:
    """Start a retraining job for an event."""

    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitProbe:
    """Start a probe, a cheap refit compared with the champion on the newest labels.

    Attributes
    ----------
    version : the champion
    change_at : served time at which a change began, ``None`` where none is suspected
    """

    probe_id: str
    version: int
    change_at: float | None = None


Action: TypeAlias = Record | Publish | DeployChallenger | DropChallenger | SetAlias | SubmitRetraining | SubmitProbe
Step: TypeAlias = tuple[EndpointState, tuple[Action, ...]]
