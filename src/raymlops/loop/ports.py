"""What the loop needs of the world around it, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from raymlops.monitor.examine import Examination
from raymlops.search.selection import Trial

JobStatus = Literal["running", "succeeded", "failed", "missing", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFailed:
    """A probe gave no answer."""

    reason: str


class Progress(Protocol):
    """Where a run tells what it is doing. All calls return at once."""

    def stage(self, name: str, detail: str = "") -> None: ...

    def trial(self, trial: Trial) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, detail: str = "") -> None:
        return None

    def trial(self, trial: Trial) -> None:
        return None

    def note(self, text: str) -> None:
        return None


class Serve(Protocol):
    """The serving engine, as the steward uses it."""

    def deploy_version(self, endpoint: str, version: int) -> None: ...

    def delete_version(self, endpoint: str, version: int) -> None: ...


class Jobs(Protocol):
    """Where retrainings and probes run."""

    def submit(self, endpoint: str, event_id: str) -> None:
        """Start the retraining of an event; asking again for the same event starts nothing new."""

    def status(self, event_id: str) -> JobStatus: ...

    def logs(self, event_id: str) -> str: ...

    def probe(self, endpoint: str, probe_id: str, version: int, change_at: float | None) -> None:
        """Start a probe of a champion; asking again for the same one starts nothing new."""

    def probed(self, probe_id: str) -> Examination | Literal["running"] | ProbeFailed:
        """What came of it. One that nobody knows has failed."""


class Aliases(Protocol):
    """The registry, as the steward uses it."""

    def set_alias(self, name: str, alias: str, version: int) -> Any: ...

    def delete_alias(self, name: str, alias: str) -> Any: ...
