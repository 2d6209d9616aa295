"""The states of the loop, each with its own data, and their JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from raymlops.retrain import RetrainState
from raymlops.serving.rollout import Confirming, Rollout
from raymlops.serving.traffic import TrafficSplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """No champion yet; the first training is under way."""

    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingOut:
    """A challenger takes a growing share of the traffic."""

    rollout: Rollout
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """The champion serves and is watched."""

    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The endpoint was taken down by a person."""

    since: float
    reason: str


LoopState: TypeAlias = Preparing | RollingOut | Monitoring | Stopped
_PHASES: dict[str, type[Preparing | RollingOut | Monitoring | Stopped]] = {
    kind.__name__: kind for kind in (Preparing, RollingOut, Monitoring, Stopped)
}

Stage = Literal["submitted", "preparing", "searching", "gating", "registering"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """A retraining job in flight; at most one an endpoint."""

    event_id: str
    reason: str
    started_at: float
    stage: Stage = "submitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """An isolated version that may be taken down once gateways had time to stop calling it."""

    version: int
    drop_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """A former champion that stays loaded in the gateways until wall time ``until``."""

    version: int
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """All the steward must not forget. Small, saved at each change, the same after a crash.

    Attributes
    ----------
    split : the traffic table last published; its number only grows
    previous : the champion before this one, which a rollback goes back to
    warm : former champions that the gateways keep loaded for that
    confirming : the promotion of this champion is provisional
    turns : retrainings started so far; names the next one's event
    """

    name: str
    phase: LoopState
    champion: int | None = None
    previous: int | None = None
    split: TrafficSplit | None = None
    retraining: Retraining | None = None
    retrain: RetrainState = field(default_factory=RetrainState)
    retired: tuple[Retired, ...] = ()
    warm: tuple[Warm, ...] = ()
    confirming: Confirming | None = None
    turns: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(replace(self, retrain=RetrainState())),
            "phase": [type(self.phase).__name__, asdict(self.phase)],
            "retrain": self.retrain.to_dict(),
        }

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> EndpointState:
        kind, data = body["phase"]
        if kind == "RollingOut":
            data = {**data, "rollout": Rollout(**{"began_at": data["rollout"]["entered_at"], **data["rollout"]})}
        return cls(
            **{
                **body,
                "phase": _PHASES[kind](**data),
                "split": TrafficSplit.from_dict(body["split"]) if body["split"] else None,
                "retraining": Retraining(**body["retraining"]) if body["retraining"] else None,
                "retrain": RetrainState.from_dict(body["retrain"]),
                "retired": tuple(Retired(**item) for item in body["retired"]),
                "warm": tuple(Warm(**item) for item in body.get("warm", ())),
                "confirming": Confirming(**body["confirming"]) if body.get("confirming") else None,
            }
        )


def phase_word(state: EndpointState) -> str:
    """The phase in a sentence about the endpoint."""
    words = {
        "Preparing": "being prepared",
        "RollingOut": "rolling out",
        "Monitoring": "monitoring",
        "Stopped": "stopped",
    }
    return words[type(state.phase).__name__]
