"""The report page: what a person finds on it, and that nothing on it can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from raymlops.cli import app
from raymlops.clock import ManualClock
from raymlops.errors import ConfigError
from raymlops.events import Event, EventLog
from raymlops.monitor.evidence import Evidence
from raymlops.monitor.forecast import Forecast
from raymlops.monitor.ledger import LossLedger
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import triage
from raymlops.report.drift_page import drift_page
from raymlops.store import Store
from raymlops.testing.pages import Page

NASTY = "<script>alert(1)</script>'\""
DAY = 86_400.0


def material(column: str = "price", reason: str = "harm: measured") -> dict[str, Any]:
    evidence = Evidence(
        name="ks",
        column=column,
        statistic=0.4,
        p_value=1e-12,
        limit=1e-5,
        drifted=True,
        distance=0.4,
        effective_rows=90.0,
    )
    report = DriftReport(
        window=5,
        version=2,
        rows=1000,
        from_at=0,
        to_at=1,
        severity=4,
        harm=True,
        evidence=(evidence,),
        columns=(column,),
        loss=0.25,
        loss_rows=3000,
        reference_loss=0.2,
        loss_limit=0.22,
    )
    diagnosis = triage(report)
    ledger = LossLedger(DAY)
    for day in range(6):
        ledger.add(2, np.full(50, 0.2 + 0.01 * day), np.full(50, day * DAY + 5))
    due = Forecast(due_s=9 * DAY, low_s=4 * DAY, high_s=None, lives=5, censored=2, method="survival", note="half left")

    def event(seq: int, day: float, kind: str, body: dict[str, Any]) -> Event:
        return Event(seq=seq, at=day * DAY, endpoint="shop", kind=kind, body=body, previous="", hash="")

    return {
        "loop": {"phase": ["Monitoring", {}], "champion": 2, "retrain": {"trained_at": 0.0, "needs_person": None}},
        "monitor": {"last": report.to_dict(), "diagnosis": diagnosis.to_dict(), "forecast": due.to_dict()},
        "watch": {"insight": {"ledger": ledger.to_dict(), "promised": {"2": [0.2, 0.22]}}},
        "events": [
            event(1, 4.0, "drift", {**report.to_dict(), "diagnosis": diagnosis.to_dict()}),
            event(2, 4.5, "retrain_started", {"reason": reason}),
            event(3, 5.0, "candidate_refused", {"reason": "gate: worse"}),
            event(4, 5.1, "assessed", {"checks": []}),
        ],
        "now": 6 * DAY,
    }


def test_the_page_tells_what_moved_how_sure_what_it_costs_what_was_decided_and_what_is_due() -> None:
    page = drift_page("shop", **material())
    text = " ".join(" ".join(Page(page).words).split())
    assert "Version 2 serves (monitoring); the inputs moved." in text
    assert "price ks 0.400 1 1.0e-12 1.0e-05 90" in text
    assert (
        "Mean loss 0.2500 of the newest of 3,000 labels, promised 0.2000, accepted up to 0.2200: +0.0500 a row (+25%)"
        in text
    )
    assert "retraining started harm: measured" in text
    assert "candidate refused gate: worse" in text
    assert "1970-01-10 00:00 UTC, in 3 d; 80 % interval 1970-01-05 00:00 UTC to no upper end. Half left." in text
    circles = [tag for tag, _ in Page(page).tags if tag == "circle"]
    assert len(circles) == 6


def test_nothing_on_the_page_runs_or_is_fetched() -> None:
    given = material(column=NASTY, reason=NASTY)
    given["loop"]["retrain"]["needs_person"] = NASTY
    given["loop"]["phase"] = [NASTY, {}]
    given["monitor"]["diagnosis"]["note"] = NASTY
    given["monitor"]["forecast"]["note"] = NASTY
    page = drift_page(NASTY, **given)
    read = Page(page)
    assert not {tag for tag, _ in read.tags} & {"script", "img", "link", "iframe", "object", "a"}
    assert not [key for _, held in read.tags for key in held if key.startswith("on") or key in ("src", "href")]
    assert ("".join(read.words)).count("alert(1)") >= 7
    assert any("default-src 'none'" in str(held.get("content")) for _, held in read.tags)


def test_an_endpoint_that_has_only_begun_has_a_page_too() -> None:
    page = drift_page("shop", loop={}, monitor={}, watch={}, events=[], now=0.0)
    text = " ".join(Page(page).words)
    for sentence in ("no full window has been seen yet", "No labels have come yet.", "Nothing yet.", "Not known yet."):
        assert sentence in text


def test_the_command_writes_the_page_and_names_the_nearest_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMLOPS_HOME", str(tmp_path))
    monkeypatch.delenv("RAYMLOPS_STORE", raising=False)
    from raymlops.settings import Settings

    store, given = Store(Settings.read().store, ManualClock(5.0)), material()
    for kind in ("loop", "monitor", "watch"):
        store.put(kind, "shop", given[kind])
    EventLog(store).append("shop", "promoted", {"version": 2, "reason": "better"})
    target = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", "shop", "--output", str(target)])
    assert done.exit_code == 0, done.output
    assert "better" in target.read_text(encoding="utf-8")
    refused = CliRunner().invoke(app, ["report", "shopp"])
    assert isinstance(refused.exception, ConfigError)
    assert "shop" in str(refused.exception)
