"""Endpoint: a running endpoint from any process, by HTTP for its traffic and through its steward for its life."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from raymlops.errors import NotReady, RaymlopsError, UnknownEndpoint
from raymlops.events import Event, EventLog
from raymlops.settings import Settings
from raymlops.store import Store

if TYPE_CHECKING:
    from raymlops.data.sources import Format
    from raymlops.loop.ports import Progress
    from raymlops.loop.ray_bulk import BatchResult
    from raymlops.serving.bulk_run import OnBad


class Endpoint:
    """A handle; making one starts nothing.

    Raises
    ------
    UnknownEndpoint : no pipeline of that name was served from this store
    """

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        self.name = name
        self.settings = settings or Settings.read()
        self._store = Store(self.settings.store)
        place = self._store.get("endpoints", name)
        if place is None:
            known = ", ".join(self._store.names("endpoints")) or "none"
            raise UnknownEndpoint(
                f"No endpoint {name!r} is known in {self.settings.home}. Known: {known}. Run its pipeline first, or set "
                "RAYMLOPS_HOME or RAYMLOPS_STORE to where it ran."
            )
        self.url: str = place["url"]
        self.direct_url: str = place["direct_url"]

    def predict(
        self, rows: Sequence[Mapping[str, Any]], *, key: str | None = None, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Predictions for rows; the answer also names request id, version and variant."""
        body: dict[str, Any] = {"rows": list(rows), **({} if key is None else {"key": key})}
        return self._http("POST", "predict", body, timeout_s)

    def feedback(self, labels: Sequence[Mapping[str, Any]], *, timeout_s: float = 30.0) -> dict[str, Any]:
        """Labels as ``{"request_id":, "row": 0, "label":}``; durable when this returns, idempotent."""
        return self._http("POST", "feedback", {"labels": list(labels)}, timeout_s)

    def explain(
        self, rows: Sequence[Mapping[str, Any]], *, version: int | None = None, timeout_s: float = 60.0
    ) -> dict[str, Any]:
        """How much each column moved the prediction of each row: contributions, base, units, method; by the champion, or by a
        challenger that is served, whose ``version`` is named."""
        path = "explain" if version is None else f"versions/{version}/explain"
        return self._http("POST", path, {"rows": list(rows)}, timeout_s)

    def batch(
        self,
        input: str | Sequence[str],
        output: str,
        *,
        version: int | None = None,
        format: Format | None = None,
        keep: Sequence[str] | None = None,
        on_bad: OnBad = "fail",
        resume: bool = False,
        part_rows: int | None = None,
        progress: Progress | None = None,
    ) -> BatchResult:
        """Score CSV or Parquet files with the champion's package, on Ray Data; the endpoint need not be serving.

        Parameters
        ----------
        input : a path, a glob, a folder or an fsspec URL, or several, which every node can reach
        output : a folder or URL for ``part-*.parquet``; empty, unless a run is resumed
        version : instead of the champion; a resumed run keeps its own
        keep : columns that go to the output beside the prediction, ``["all"]`` for every one; by default those that the
            model does not take, such as ids
        on_bad : ``"fail"`` stops at the first row that a request would be refused for, ``"keep"`` puts such rows into
            ``_refused/`` with the reason
        resume : go on with the run in ``output``; parts that are done are not scored again
        part_rows : rows that are scored, written and, after a crash, repeated together; about 262,144 when not given

        Raises
        ------
        ConfigError : the output holds another run or cannot be written, a column to keep is not there
        DataError : nothing to read, or files that cannot be read
        ContractViolation : a column is missing, or with ``on_bad="fail"`` a row breaks the contract
        UnknownVersion : there is no such version
        """
        from raymlops.loop.ray_bulk import batch

        return batch(
            self.name,
            input=input,
            output=output,
            settings=self.settings,
            version=version,
            format=format,
            keep=keep,
            on_bad=on_bad,
            resume=resume,
            part_rows=part_rows,
            progress=progress,
        )

    def status(self) -> dict[str, Any]:
        """What the gateway says of itself, and the loop's state as last saved."""
        loop = self._store.get("loop", self.name)
        try:
            gateway: dict[str, Any] = self._http("GET", "status", None, 5.0)
        except RaymlopsError as error:
            gateway = {"ready": False, "error": error.message}
        return {
            "endpoint": self.name,
            "url": self.url,
            "gateway": gateway,
            "loop": loop,
            "monitor": self._store.get("monitor", self.name),
        }

    def history(self, limit: int | None = None) -> list[Event]:
        """The endpoint's events, oldest first."""
        return EventLog(self._store).read(self.name, limit=limit)

    def promote(self, reason: str = "by hand") -> dict[str, Any]:
        """Make the challenger the champion now."""
        return self._command("promote", reason)

    def abort(self, reason: str = "by hand") -> dict[str, Any]:
        """Take the challenger out of the traffic."""
        return self._command("abort", reason)

    def approve(self, reason: str = "by hand") -> dict[str, Any]:
        """Release the one step, promotion included, that ``approval="manual"`` holds."""
        return self._command("approve", reason)

    def rollback(self, reason: str = "by hand") -> dict[str, Any]:
        """Out of a rollout, abort it; otherwise serve the champion before this one again."""
        return self._command("rollback", reason)

    undo = rollback

    def pause(self) -> dict[str, Any]:
        """Hold the rollout at its present weight."""
        return self._command("pause", "by hand")

    def resume(self) -> dict[str, Any]:
        """Let a paused rollout go on."""
        return self._command("resume", "by hand")

    def retrain(self, reason: str = "by hand") -> dict[str, Any]:
        """Start a retraining job."""
        return self._command("retrain", reason)

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Return when the endpoint answers.

        Raises
        ------
        NotReady : it did not within ``timeout_s``
        """
        deadline, last = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline:
            try:
                if self._http("GET", "status", None, 5.0).get("ready"):
                    return
            except RaymlopsError as error:
                last = error.message
            time.sleep(0.1)
        raise NotReady(f"{self.name} did not become ready within {timeout_s:.0f} s at {self.url}. {last}".rstrip())

    def _command(self, verb: str, reason: str) -> dict[str, Any]:
        from raymlops.loop import ray_steward
        from raymlops.loop.ray_connect import connect

        connect(self.settings)
        result: dict[str, Any] = ray_steward.call(ray_steward.find(self.name), "command", verb, reason)
        return result

    def _request(self, method: str, verb: str, body: Any, timeout_s: float) -> tuple[httpx.Response, str]:
        """By the gateways' own listener; where nobody listens there, by Serve's route, which every node has."""
        problem: httpx.HTTPError | None = None
        for base in (self.direct_url, self.url):
            url = f"{base}/{verb}"
            try:
                return httpx.request(method, url, json=body, timeout=timeout_s, trust_env=False), url
            except httpx.ConnectError as error:
                problem = error
            except httpx.HTTPError as error:
                problem = error
                break
        raise NotReady(f"{self.name} does not answer at {url}: {problem}. Is its Ray cluster running?") from problem

    def _http(self, method: str, verb: str, body: Any, timeout_s: float) -> dict[str, Any]:
        answer, url = self._request(method, verb, body, timeout_s)
        content: dict[str, Any] = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        if answer.is_success:
            return content
        problem = content.get("error", {})
        said = problem.get("message") or f"{url} answered {answer.status_code}: {answer.text[:200]}"
        refusal = RaymlopsError(said, problem.get("details"))
        refusal.code, refusal.http_status = problem.get("code", "error"), answer.status_code
        raise refusal
