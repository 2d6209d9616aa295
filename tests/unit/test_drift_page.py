"""The report page: what a person finds on it, and that nothing on it can run."""

from __future__ import annotations

from dataclasses import asdict
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
from raymlops.monitor.pace import Pace
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import triage
from raymlops.report.drift_page import drift_page
from raymlops.search.probe import Probe
from raymlops.store import LabelConflictRow, Store
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

    windows = [
        {
            "window": number,
            "version": 2,
            "from": number * DAY,
            "to": (number + 1) * DAY,
            "rows": 1000,
            "severity": 4 if number == 4 else 0,
            "kind": "none",
            "loss": 0.2,
            "limit": 0.22,
            "moved": {column: 0.4} if number == 4 else {},
        }
        for number in range(6)
    ]

    def event(seq: int, day: float, kind: str, body: dict[str, Any]) -> Event:
        return Event(seq=seq, at=day * DAY, endpoint="shop", kind=kind, body=body, previous="", hash="")

    return {
        "loop": {"phase": ["Monitoring", {}], "champion": 2, "retrain": {"trained_at": 0.0, "needs_person": None}},
        "monitor": {"last": report.to_dict(), "diagnosis": diagnosis.to_dict(), "forecast": due.to_dict()},
        "watch": {"insight": {"ledger": ledger.to_dict(), "promised": {"2": [0.2, 0.22]}, "windows": windows}},
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
    assert "price ks 0.400 1 0.4 1.0e-12 1.0e-05 90" in text
    assert "window 4 of version 2, 1970-01-05 00:00 UTC, 1,000 rows: measured harm" in text
    assert "price, window 4, 1970-01-05 00:00 UTC: 0.400" in text
    assert (
        "Mean loss 0.2500 of the newest of 3,000 labels, promised 0.2000, accepted up to 0.2200: +0.0500 a row (+25%)"
        in text
    )
    assert "retraining started candidate refused harm: measured over 12 h" in text
    assert "candidate refused gate: worse" in text
    assert (
        "By earlier versions: 1970-01-10 00:00 UTC, in 3 d; 80 % interval 1970-01-05 00:00 UTC to no upper end. Half left."
        in text
    )
    circles = [tag for tag, _ in Page(page).tags if tag == "circle"]
    assert len(circles) == 6


@pytest.mark.parametrize(
    ("month", "told"),
    [
        (
            43.2,
            "All alarms together may be false once in 1,000 such windows at most: 43 times in 30 days of such traffic.",
        ),
        (0.5, "at most: 0.5 times in 30 days of such traffic."),
        (None, "at most: how often a month is not known, for its rows were served at one moment."),
    ],
)
def test_the_budget_is_stated_by_windows_and_by_the_month(month: float | None, told: str) -> None:
    given = material()
    given["monitor"]["last"] |= {"alpha": 5e-4, "alarms_per_month": month}
    assert told in " ".join(" ".join(Page(drift_page("shop", **given)).words).split())


def test_an_estimate_stands_with_its_check_and_what_it_assumes() -> None:
    given = material()
    loss = {"value": 0.21, "low": 0.2, "high": 0.23, "check": 0.205, "reference": 0.19}
    estimate = {"metrics": {"brier": loss}, "refused": {}, "rows": 900, "effective_rows": 80.0, "assumes": "no drift"}
    given["monitor"]["last"] |= {"estimate": estimate, "loss": None}
    told = (
        "Estimated without labels (PAPE): mean loss 0.2100, 95 % interval 0.2000 to 0.2300, promised 0.1900; the check without "
        "weights (CBPE) says 0.2050. It assumes no drift."
    )
    assert told in " ".join(" ".join(Page(drift_page("shop", **given)).words).split())
    given["monitor"]["last"]["loss"] = 0.25  # too few labels to go by them
    assert told in " ".join(" ".join(Page(drift_page("shop", **given)).words).split())


def test_what_could_not_be_judged_is_not_called_quiet() -> None:
    given = material()
    evidence = [asdict(Evidence.insufficient("ks", f"c{i}", 1e-5)) for i in range(7)]
    given["monitor"]["last"] |= {"evidence": evidence, "columns": (), "reference_rows": 240_000}
    text = " ".join(" ".join(Page(drift_page("shop", **given)).words).split())
    assert "Not known: nothing could be judged in the newest window." in text
    assert "to judge by this window alone: c0, c1, c2, c3, c4 and 2 more. Compared with 240,000 held-out rows." in text
    evidence.append({**evidence[0], "column": "d", "status": "tested"})
    given["monitor"]["last"]["evidence"] = evidence
    assert "Nothing, in the newest window." in " ".join(" ".join(Page(drift_page("shop", **given)).words).split())


def test_a_second_opinion_says_of_which_window_it_is() -> None:
    given = material()
    opinion = {"detector": "alibi-detect KSDrift", "drifted": True, "columns": ["price"], "note": "assumes much"}
    for window, told in ((5, "Second opinion, alibi"), (3, "Second opinion of window 3, alibi")):
        given["monitor"]["last"]["second_opinion"] = {**opinion, "window": window}
        text = " ".join(" ".join(Page(drift_page("shop", **given)).words).split())
        assert f"{told}-detect KSDrift: drift (price); it assumes much." in text


def test_the_parts_of_a_rise_and_the_pace_of_the_next_refit_are_told() -> None:
    given = material()
    given["monitor"]["diagnosis"] |= {"covariate": 0.01, "prior": 0.0, "concept": 0.04}
    given["monitor"]["labelled"] = 600
    probed = Probe(gain=0.02, standard_error=0.005, gains=True, rows=100, note="", loss=0.1)
    given["loop"]["retrain"]["pace"] = Pace().probed(probed, 500, 60.0).to_dict()
    text = " ".join(" ".join(Page(drift_page("shop", **given)).words).split())
    assert "By part: inputs +0.0100, rate of the label +0.0000, what is learnt +0.0400." in text
    assert (
        "A probe refit at 500 labels: the champion loses +25.0% (± 6.2%) against a fresh model, and has lost as much as 62 usual "
        "rows; a retraining costs 60. At this pace it pays now" in text
    )


def test_probes_that_changed_nothing_are_one_line_and_the_one_that_did_belongs_to_its_retraining() -> None:
    given = material()
    kinds = ("deployed", "probed", "probed", "probed", "retrain_started", "rollout_started", "promoted", "retrain_held")
    given["events"] = [
        Event(seq=i, at=i * DAY, endpoint="shop", kind=kind, body={"reason": f"reason {i}"}, previous="", hash="")
        for i, kind in enumerate(kinds, start=1)
    ]
    text = " ".join(" ".join(Page(drift_page("shop", **given)).words).split())
    at = text.index("What was decided")
    rows = (
        "1970-01-09 00:00 UTC held back reason 8",
        "1970-01-06 00:00 UTC retraining started promoted reason 5 over 2 d",
        "1970-01-04 00:00 UTC 2 × probe refit reason 3",
        "1970-01-02 00:00 UTC first version deployed reason 1",
    )
    places = [text.index(row, at) for row in rows]
    assert places == sorted(places)
    assert "probe refit reason 4" in text


def test_figures_of_the_version_before_say_whose_they_are() -> None:
    given = material()
    given["loop"]["champion"] = 3
    text = " ".join(Page(drift_page("shop", **given)).words)
    assert text.count("These figures are version 2's, which served before.") == 2


def test_labels_that_disagree_are_shown_to_a_person() -> None:
    row = LabelConflictRow(request_id=NASTY, row_index=2, kept=1, refused=0, received_at=DAY)
    page = drift_page("shop", **material(), conflicts=[row])
    assert f"1970-01-02 00:00 UTC {NASTY} 2 1 0" in " ".join(" ".join(Page(page).words).split())
    assert "Labels that disagree" not in drift_page("shop", **material())


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
    for sentence in (
        "its first window is not full yet",
        "No window has been full, and no labels have come yet.",
        "Not known: no labels have come.",
        "Nothing yet.",
        "Not known yet.",
    ):
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
