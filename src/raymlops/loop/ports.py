"""What the loop needs of the world around it, and no more."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from raymlops.search.selection import Trial

JobStatus = Literal["running", "succeeded", "failed", "unknown"]


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
    """Where retrainings run."""

    def submit(self, endpoint: str, event_id: str) -> None:
        """Start the retraining of an event; asking again for the same event starts nothing new."""

    def status(self, event_id: str) -> JobStatus: ...

    def logs(self, event_id: str) -> str: ...


class Aliases(Protocol):
    """The registry, as the steward uses it."""

    def set_alias(self, name: str, alias: str, version: int) -> Any: ...

    def delete_alias(self, name: str, alias: str) -> Any: ...
