"""Monitor and Watcher: windows, severity, triage, budget, restart, and the sentences of refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raymlops.data.schema import Column, DataContract
from raymlops.errors import ConfigError, DataError
from raymlops.monitor.evidence import JOINT
from raymlops.monitor.monitor import Monitor, Watcher
from raymlops.monitor.report import SCORE, DriftReport
from raymlops.registry.package import Reference
from raymlops.sketch.period import CHUNK, PeriodPlan
from raymlops.sketch.period import counted as sum_of
from raymlops.sketch.profile import Profile, with_score
from raymlops.testing.traffic import observations

SPEC = Monitor(second_opinion="off")


def contract() -> DataContract:
    number = {"nullable": False, "minimum": None, "maximum": None}
    columns = (
        Column(name="a", kind="number", **number),
        Column(name="b", kind="number", **number),
        Column(name="job", kind="category", nullable=True, minimum=None, maximum=None, categories=("x", "y", "z")),
    )
    return DataContract(columns=columns, label="y", task="binary", classes=(0, 1))


def rows(n: int, seed: int, shift: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    x = np.column_stack((rng.normal(size=n) + shift, rng.normal(size=n), rng.integers(0, 3, n))).astype(np.float32)
    return x, 1 / (1 + np.exp(-x[:, 1].astype(np.float64)))


def reference() -> Reference:
    x, scores = rows(4000, 0)
    losses = (np.random.default_rng(1).uniform(size=4000) < 0.1).astype(np.float64)
    return Reference(columns=("a", "b", "job"), x=x, scores=scores, losses=losses, ordered=True)


def watcher(spec: Monitor = SPEC) -> Watcher:
    return Watcher(spec, reference(), contract(), version=3)


def test_a_quiet_window_is_severity_0() -> None:
    watch = watcher()
    x, scores = rows(1000, 2)
    watch.observe(x, scores, np.arange(1000.0))
    (report,) = watch.step(2000.0)
    assert (report.severity, report.rows, report.window, report.version) == (0, 1000, 1, 3)
    assert (report.from_at, report.to_at) == (0.0, 999.0)
    assert not report.may_retrain
    assert report.loss is None
    assert report.second_opinion is None
    assert watch.step(2000.0) == []


def test_moved_columns_are_named_most_first_but_do_not_retrain() -> None:
    watch = watcher()
    x, scores = rows(1000, 3, shift=1.0)
    x[:, 2] = np.where(np.arange(1000) % 3 == 0, np.nan, x[:, 2])
    watch.observe(x, scores, 5.0)
    (report,) = watch.step(6.0)
    assert report.severity == 2
    assert set(report.columns) == {"a", "job"}
    assert "Moved: a (0." in report.note
    assert "Missing values changed in job (+33%)" in report.note
    assert not report.may_retrain


def test_a_moved_score_must_be_seen_twice_and_only_counts_without_labels() -> None:
    watch, labelled = watcher(), watcher()
    labelled.add_outcomes((np.random.default_rng(5).uniform(size=1000) < 0.1) * 1.0, 1.0)
    found = []
    for seed in (4, 5):
        x, _ = rows(1000, seed)
        for each in (watch, labelled):
            each.observe(x, np.random.default_rng(seed).uniform(0.6, 1.0, 1000), 5.0)
        found += watch.step(6.0)
    assert [(r.severity, r.confirmed, r.may_retrain) for r in found] == [(3, 1, False), (3, 2, True)]
    assert found[0].columns == (SCORE,)
    assert [(r.severity, r.may_retrain) for r in labelled.step(6.0)] == [(3, False), (3, False)]


def test_measured_harm_is_reported_at_once_and_stays_until_it_is_over() -> None:
    watch = watcher()
    watch.add_outcomes((np.random.default_rng(6).uniform(size=600) < 0.5) * 1.0, np.arange(600.0))
    (report,) = watch.step(700.0)
    assert (report.kind, report.severity, report.rows, report.harm, report.may_retrain) == (
        "outcomes",
        4,
        0,
        True,
        True,
    )
    assert report.note.startswith("Measured harm: mean loss 0.4750 of the newest outcomes, accepted up to 0.1")
    assert watch.step(701.0) == []
    x, scores = rows(1000, 7)
    watch.observe(x, scores, 800.0)
    (report,) = watch.step(801.0)
    assert (report.kind, report.severity, report.may_retrain) == ("window", 4, True)
    watch.add_outcomes(np.zeros(1000), 900.0)
    watch.observe(x, scores, 901.0)
    assert [r.severity for r in watch.step(902.0)] == [0]


def test_several_windows_in_one_step_and_the_rest_waits() -> None:
    watch = watcher()
    x, scores = rows(2500, 8)
    watch.observe(x, scores, np.arange(2500.0))
    assert [(r.window, r.from_at) for r in watch.step(2500.0)] == [(1, 0.0), (2, 1000.0)]
    assert watch.step(2600.0) == []


def test_an_old_window_closes_early_only_with_enough_rows() -> None:
    watch = watcher()
    x, scores = rows(300, 9)
    watch.observe(x[:299], scores[:299], 0.0)
    assert watch.step(1e6) == []
    watch.observe(x[299:], scores[299:], 0.0)
    assert watch.step(3599.0) == []
    assert [r.rows for r in watch.step(3600.0)] == [300]


def test_budget_by_the_month_follows_the_time_a_window_took() -> None:
    spec = Monitor(second_opinion="off", false_alarms_per_month=1.0)
    x, scores = rows(1000, 10)
    spent = []
    for hours in (1, 10):
        watch = watcher(spec)
        watch.observe(x, scores, np.linspace(0.0, hours * 3600.0, 1000))
        spent.append(watch.step(1e6)[0].alpha)
    assert spent == pytest.approx([0.5 / 720, 5 / 720])


def test_a_restart_changes_nothing() -> None:
    steady, restarted = watcher(), watcher()
    reports: list[list[dict[str, Any]]] = [[], []]
    for seed in range(9):
        x, scores = rows(700, 20 + seed, shift=0.2 * seed)
        losses = (np.random.default_rng(seed).uniform(size=333) < 0.1 + 0.05 * seed) * 1.0
        for i, watch in enumerate((steady, restarted)):
            watch.observe(x, scores, float(seed))
            watch.add_outcomes(losses, float(seed))
            reports[i] += [r.to_dict() for r in watch.step(float(seed))]
        again = watcher()
        again.load_state(json.loads(json.dumps(restarted.state_dict())))
        restarted = again
    assert json.dumps(reports[0]) == json.dumps(reports[1])
    assert steady.state_dict() == restarted.state_dict()
    assert len(json.dumps(steady.state_dict())) < 1_000_000
    assert max(r["severity"] for r in reports[0]) == 4


def test_a_report_survives_json() -> None:
    watch = watcher()
    x, scores = rows(1000, 3, shift=1.0)
    watch.observe(x, scores, 5.0)
    (report,) = watch.step(6.0)
    assert DriftReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_scores_that_are_not_numbers_are_drift() -> None:
    watch = watcher()
    x, scores = rows(1000, 12)
    scores[:400] = np.nan
    watch.observe(x, scores, 5.0)
    (report,) = watch.step(6.0)
    assert report.severity == 3
    assert "Missing values changed in (score) (+40%)" in report.note


def test_what_does_not_fit_is_refused() -> None:
    watch = watcher()
    x, scores = rows(10, 13)
    with pytest.raises(DataError, match="Rows with 2 columns do not fit a reference of 3"):
        watch.observe(x[:, :2], scores, 0.0)
    with pytest.raises(DataError, match=r"do not fit scores of shape \(9,\)"):
        watch.observe(x, scores[:9], 0.0)
    other = Watcher(
        SPEC,
        Reference(
            columns=("a", "b", "job"), x=x.repeat(50, 0), scores=scores.repeat(50), losses=np.ones(500), ordered=True
        ),
        contract(),
        version=4,
    )
    with pytest.raises(DataError, match="belongs to version 4, not 3"):
        watch.load_state(other.state_dict())


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("window_rows", 10, "window_rows=10 cannot be used: give a whole number of at least 100"),
        ("min_rows", True, "min_rows=True cannot be used"),
        ("max_age", "soon", "max_age='soon' is not a duration"),
        ("max_age", 0, "max_age=0 would close every window at once"),
        ("alpha", 0.0, "alpha=0.0 cannot be used: give a number above 0 up to 0.1"),
        ("false_alarms_per_month", -1, "false_alarms_per_month=-1 cannot be used"),
        ("tolerance", "10%", "tolerance='10%' cannot be used"),
        ("reference", "all", "reference='all' is not known: give 'period' or 'recent'"),
        ("second_opinion", "yes", "second_opinion='yes' is not known: give 'auto' or 'off'"),
    ],
)
def test_a_monitor_that_cannot_work_is_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Monitor(**{field: value})
    assert sentence in str(caught.value)


def brier_reference() -> Reference:
    """A model that is right about the first column only where it is small."""
    x, scores, y = labelled(6000, 0)
    return Reference(columns=("a", "b", "job"), x=x, scores=scores, losses=(scores - y) ** 2, ordered=True)


def labelled(
    n: int, seed: int, shift: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    x, _ = rows(n, seed, shift)
    scores = 1 / (1 + np.exp(-2 * x[:, 1].astype(np.float64)))
    truth = 1 / (1 + np.exp(-2 * x[:, 1] * np.where(x[:, 0] > 1.0, -1.0, 1.0)))
    return x, scores, (np.random.default_rng(seed + 1).uniform(size=n) < truth) * 1.0


def test_without_labels_a_loss_estimated_above_the_limit_is_severity_3() -> None:
    watch = Watcher(SPEC, brier_reference(), contract(), version=3)
    found = []
    for seed, at in ((40, 5.0), (41, 9.0), (42, 15.0)):
        x, scores, _ = labelled(1000, seed, shift=2.0)
        watch.observe(x, scores, at)
        found += watch.step(at + 1)
        again = Watcher(SPEC, brier_reference(), contract(), version=3)
        again.load_state(json.loads(json.dumps(watch.state_dict())))
        watch = again
    # The second window is so near that it carries the first one's estimate along, which confirms nothing.
    assert [(r.severity, r.estimated_harm, r.confirmed, r.may_retrain) for r in found] == [
        (3, True, 1, False),
        (3, True, 1, False),
        (3, True, 2, True),
    ]
    assert found[0].estimate == found[1].estimate != found[2].estimate
    assert SCORE not in found[0].columns
    assert "assuming no concept drift" in found[0].note
    assert DriftReport.from_dict(json.loads(json.dumps(found[0].to_dict()))) == found[0]
    measured = Watcher(SPEC, brier_reference(), contract(), version=3)
    measured.add_outcomes(np.full(1000, 0.01), 1.0)
    x, scores, _ = labelled(1000, 40, shift=2.0)
    measured.observe(x, scores, 5.0)
    assert measured.step(6.0)[0].estimate is None


def test_wild_rows_are_reported_one_by_one_with_their_requests() -> None:
    watch = watcher()
    x, scores = rows(1300, 30)
    x[1204, 0] = 1e6
    ids = [f"request-{i}" for i in range(1300)]
    watch.observe(x[:700], scores[:700], 0.0, ids[:700])
    again = watcher()
    again.load_state(json.loads(json.dumps(watch.state_dict())))
    again.observe(x[700:], scores[700:], 0.0, ids[700:])
    assert [r.wild_rows <= 5 for r in again.step(1.0)] == [True]
    x2, scores2 = rows(700, 31)
    again.observe(x2, scores2, 1.0)
    (report,) = again.step(2.0)
    assert (report.wild[0].request_id, report.wild[0].row, report.wild[0].columns[0]) == ("request-1204", 1204, "a")
    with pytest.raises(DataError, match="2 request ids do not fit 700 rows"):
        again.observe(x2, scores2, 1.0, ["a", "b"])


def test_correlation_alone_is_severity_2_and_named_joint() -> None:
    watch = watcher()
    reports = []
    for seed in range(3):
        x, scores = rows(1000, 50 + seed)
        x[:, 0] = 0.9 * x[:, 1] + 0.44 * x[:, 0]
        watch.observe(x, scores, float(seed))
        reports += watch.step(float(seed))
    assert [r.severity for r in reports] == [0, 2, 2]
    assert reports[-1].columns == (JOINT,)
    assert "Columns hang together otherwise" in reports[-1].note


def test_the_budget_is_told_by_the_month() -> None:
    watch = watcher()
    x, scores = rows(1000, 60)
    watch.observe(x, scores, np.linspace(0.0, 60.0, 1000))
    (report,) = watch.step(61.0)
    assert report.alarms_per_month == pytest.approx(43.2)
    spent = sum(item.limit for item in report.evidence)
    assert spent <= report.alpha * (1 + 1e-9)


def test_wild_rows_outside_the_range_are_found_though_only_few_rows_are_shown() -> None:
    x, scores = rows(20_000, 30)
    x[12_345, 0], x[777, 2] = 1e6, 9.0
    ids = [f"request-{i}" for i in range(20_000)]
    watch = watcher()
    for told in observations(watch.bins, x, scores, 0.0, ids, batch_rows=5000, sample_rows=200, gateways=3):
        watch.take(told)
    (report,) = watch.step(1.0)
    assert (report.rows, 700 <= report.sampled_rows <= 800) == (20_000, True)
    assert {row.request_id for row in report.wild[:2]} == {"request-12345", "request-777"}
    assert {row.row for row in report.wild} == {-1}
    assert report.wild_rows >= 2


def test_a_window_of_counts_spends_one_windows_budget_and_finds_what_moved() -> None:
    quiet, moved = watcher(), watcher()
    for watch, shift in ((quiet, 0.0), (moved, 0.25)):
        x, scores = rows(30_000, 61, shift=shift)
        for told in observations(watch.bins, x, scores, 0.0, batch_rows=10_000, sample_rows=500):
            watch.take(told)
    (calm,), (found,) = quiet.step(1.0), moved.step(1.0)
    assert calm.severity == 0
    assert calm.alpha == pytest.approx(0.5e-3)
    assert found.severity == 2
    assert found.columns == ("a",)
    ks = next(e for e in found.evidence if e.name == "ks" and e.column == "a")
    assert ks.effective_rows > 10_000


def test_counts_in_other_bins_are_refused() -> None:
    watch = watcher()
    other = Profile.learn(*rows(500, 1), ("a", "b", "job"), {2: 3})
    with pytest.raises(DataError, match="different bins"):
        watch.take(next(observations(other.bins, *rows(10, 2), 0.0)))


def test_a_frozen_profile_gives_what_the_reference_gives() -> None:
    frozen = Watcher(SPEC, reference(), contract(), 3, Profile.from_bytes(reference().profile(contract()).to_bytes()))
    learned = watcher()
    x, scores = rows(1000, 3, shift=0.3)
    for watch in (frozen, learned):
        watch.observe(x, scores, 5.0)
    assert frozen.step(6.0) == learned.step(6.0)
    assert frozen.state_dict() == learned.state_dict()


DAY = 8_000


def daily(days: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """``a`` follows the hour, ``b`` and the score do not."""
    x, scores = rows(days * DAY, seed)
    x[:, 0] += np.sin(2 * np.pi * np.arange(len(x)) / DAY)
    return x, scores


def held_daily(days: int = 10) -> tuple[Reference, Profile]:
    """The newest 3,000 rows, which are a part of a day, and all days counted."""
    x, scores = daily(days, 0)
    losses = (np.random.default_rng(1).uniform(size=3_000) < 0.1).astype(np.float64)
    kept = Reference(columns=("a", "b", "job"), x=x[-3_000:], scores=scores[-3_000:], losses=losses, ordered=True)
    counted = with_score(x, scores)
    plan = PeriodPlan.learn(counted[::20], ("a", "b", "job", SCORE), {2: 3})
    parts = [plan.count(k, counted[k * CHUNK : (k + 1) * CHUNK]) for k in range(-(-len(x) // CHUNK))]
    return kept, plan.profile(sum_of(parts), ordered=True)


def test_hours_of_a_day_are_no_drift_of_a_period_that_holds_days() -> None:
    kept, profile = held_daily()
    x, scores = daily(3, 5)
    flagged: dict[str, set[str]] = {}
    for compared in ("period", "recent"):
        watch = Watcher(replace(SPEC, reference=compared), kept, contract(), 3, profile)
        watch.observe(x, scores, 5.0)
        reports = watch.step(6.0)
        flagged[compared] = {item.column for report in reports for item in report.evidence if item.drifted}
        assert {report.reference_rows for report in reports} == {80_000 if compared == "period" else 3_000}
    assert flagged["period"] == set()
    assert "a" in flagged["recent"]


def test_what_has_no_rhythm_is_judged_by_the_whole_period_at_once() -> None:
    kept, profile = held_daily()
    watch = Watcher(SPEC, kept, contract(), 3, profile)
    x, scores = daily(1, 6)
    x[:, 1] += 0.3
    watch.observe(x[:1000], scores[:1000], 5.0)
    (report,) = watch.step(6.0)
    moved = {item.column: item for item in report.evidence if item.name in ("ks", "chi2")}
    assert moved["b"].drifted
    assert moved["b"].effective_rows > 600
    assert moved["a"].status == "insufficient"
    assert moved["job"].status == "tested"
    assert not moved["job"].drifted


def test_a_restart_by_another_reference_begins_its_bets_anew() -> None:
    kept, profile = held_daily()
    x, scores = daily(1, 7)
    x[:, 1] += 0.1
    before = Watcher(SPEC, kept, contract(), 3, profile)
    before.observe(x, scores, 5.0)
    before.step(6.0)
    state = json.loads(json.dumps(before.state_dict()))
    same, other = (Watcher(replace(SPEC, reference=by), kept, contract(), 3, profile) for by in ("period", "recent"))
    fresh = other.state_dict()["detectors"]
    for watch in (same, other):
        watch.load_state(state)
    assert same.state_dict() == before.state_dict()
    assert other.state_dict()["detectors"] == fresh
    assert (other.rows, other.windows) == (before.rows, before.windows)


@pytest.mark.parametrize("shown", [None, 300])
def test_what_waits_is_small_whatever_the_traffic(shown: int | None) -> None:
    names = tuple(f"c{i}" for i in range(100))
    free = {"nullable": True, "minimum": None, "maximum": None}
    wide = DataContract(
        columns=tuple(Column(name=name, kind="number", **free) for name in names), label="y", task="regression"
    )
    rng = np.random.default_rng(70)
    x = rng.normal(size=(3000, 100)).astype(np.float32)
    held = Reference(columns=names, x=x, scores=x[:, 0].astype(float), losses=np.abs(x[:, 1]) + 0.0, ordered=True)
    watch = Watcher(SPEC, held, wide, version=1)
    live = rng.normal(size=(1900, 100)).astype(np.float32)
    ids = [f"{i:064d}" for i in range(1900)]
    for told in observations(watch.bins, live, live[:, 0], 0.0, ids, batch_rows=950, sample_rows=shown, gateways=2):
        watch.take(told)
        watch.step(1.0)
    assert len(json.dumps(watch.state_dict())) < 1_000_000
