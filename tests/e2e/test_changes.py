"""Over HTTP on a real cluster: broken data raise an alarm and start nothing; a changed world is learnt, gated, canaried, promoted.

Both endpoints live on the session's cluster, are trained without a JVM, and are asked as callers ask: rows by ``/predict``, what
became of them by ``/feedback`` a little later. Retrainings are the Ray jobs that they are in use.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pandas as pd
from tests.e2e.orders import WINDOW, orders, pipeline_of

from raymlops import Endpoint
from raymlops.settings import Settings
from raymlops.store import Store


@contextmanager
def served(name: str, settings: Settings) -> Iterator[Endpoint]:
    import ray

    from raymlops.loop import ray_steward
    from raymlops.serving.ray_serve import ServeEngine

    endpoint = pipeline_of(name).run(settings=settings)
    try:
        yield endpoint
    finally:
        ServeEngine(settings).delete_endpoint(name)
        ray.kill(ray_steward.find(name))


class Callers:
    """Ask, and send labels a few requests later."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.store = endpoint, Store(endpoint.settings.store)
        self._late: list[tuple[str, list[int]]] = []
        self.versions: list[int] = []

    def ask(self, frame: pd.DataFrame, lag: int = 3, pause_s: float = 0.05) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            for start in range(0, len(frame), 20):
                part = frame.iloc[start : start + 20]
                rows = part.drop(columns="returned").astype(object).where(part.notna(), None).to_dict("records")
                answer = http.post(f"{self.endpoint.direct_url}/predict", json={"rows": rows})
                assert answer.status_code == 200, answer.text
                self.versions.append(answer.json()["version"])
                self._late.append((answer.json()["request_id"], part.returned.tolist()))
                if len(self._late) > lag:
                    request_id, labels = self._late.pop(0)
                    sent = [{"request_id": request_id, "row": i, "label": label} for i, label in enumerate(labels)]
                    stored = http.post(f"{self.endpoint.direct_url}/feedback", json={"labels": sent})
                    assert stored.status_code == 200, stored.text
                time.sleep(pause_s)

    def reports(self) -> list[dict[str, Any]]:
        return [event.body for event in self.endpoint.history() if event.kind == "drift"]

    def windows(self) -> int:
        """Windows that the steward has judged."""
        last = ((self.endpoint.status()["monitor"] or {}).get("last")) or {"window": 0}
        return int(last["window"])

    def kinds(self) -> list[str]:
        return [event.kind for event in self.endpoint.history()]


def told(report: dict[str, Any]) -> str:
    """A report in a line."""
    sure = [(item["column"], item["name"], item["distance"]) for item in report["evidence"] if item["drifted"]]
    return f"{report['kind']} {report['window']} of {report['rows']} rows: {report['diagnosis']['note']}; {sure}; {report['note']}"


def guilty_columns(report: dict[str, Any]) -> list[str]:
    """The guiltiest first, without those that stand for the score or for all columns together."""
    return [item["column"] for item in report["diagnosis"]["guilty"] if not item["column"].startswith("(")]


def test_a_column_that_goes_null_is_an_alarm_and_starts_no_retraining(ray_cluster: Settings) -> None:
    with served("nulls", ray_cluster) as endpoint:
        callers = Callers(endpoint)
        callers.ask(orders(WINDOW, 2))
        _until(lambda: callers.windows() == 1)
        assert [told(report) for report in callers.reports()] == []
        callers.ask(orders(3 * WINDOW, 3).assign(age=None))
        _until(lambda: len(callers.reports()) > 1)
        for report in callers.reports():
            assert report["diagnosis"]["kind"] == "broken_data", told(report)
            assert report["diagnosis"]["veto"]
        window = next(report for report in callers.reports() if report["kind"] == "window")
        assert window["severity"] >= 2
        assert guilty_columns(window)[0] == "age"
        assert "age" in window["diagnosis"]["note"]
        time.sleep(2.0)  # several turns of the steward
        assert not {"retrain_started", "rollout_started", "needs_person"} & set(callers.kinds())
        assert set(callers.versions) == {1}


def test_a_changed_world_is_learnt_gated_canaried_and_promoted(ray_cluster: Settings) -> None:
    with served("changed", ray_cluster) as endpoint:
        callers = Callers(endpoint)
        callers.ask(orders(WINDOW, 4))
        _until(lambda: callers.windows() == 1)
        assert [told(report) for report in callers.reports()] == []
        seed, ends = 5, {"promoted", "retrain_failed", "needs_person"}
        deadline = time.monotonic() + 240
        while not ends & set(callers.kinds()) and time.monotonic() < deadline:
            callers.ask(orders(100, seed, changed=True), pause_s=0.1)
            seed += 1
        kinds = callers.kinds()
        order = ["drift", "retrain_started", "gated", "registered", "rollout_started", "promoted"]
        places = [len(kinds) - 1 - kinds[::-1].index(kind) if kind != "drift" else kinds.index(kind) for kind in order]
        assert places == sorted(places), kinds
        gated = [event for event in endpoint.history() if event.kind == "gated"][-1]
        assert gated.body["passed"]
        started = next(event for event in endpoint.history() if event.kind == "retrain_started")
        assert started.body["reason"].startswith("harm: ")
        blamed = [guilty_columns(report) for report in callers.reports() if report["kind"] == "window"]
        assert {columns[0] for columns in blamed if columns} == {"price"}
        assert {1, 2} <= set(callers.versions)
        callers.ask(orders(60, 99, changed=True))
        assert set(callers.versions[-2:]) == {2}


def _until(done: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)
