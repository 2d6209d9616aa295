"""The drift report page: one HTML file, drawn with inline SVG, that needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raymlops.events import Event
from raymlops.monitor.forecast import span
from raymlops.monitor.ledger import LossLedger
from raymlops.report.page import bar, number, page, when

_KINDS = {
    "none": "nothing is wrong",
    "covariate_shift": "the inputs moved",
    "prior_shift": "the rate of the label changed",
    "concept_shift": "what is to be learnt changed",
    "traffic_mix": "the mix of the traffic changed",
    "broken_data": "the data are broken",
    "serving_fault": "the serving is at fault",
}
_DECISIONS = {
    "deployed": "first version deployed",
    "retrain_started": "retraining started",
    "retrain_failed": "retraining failed",
    "candidate_refused": "candidate refused",
    "rollout_started": "canary started",
    "rollout_advanced": "canary advanced",
    "promoted": "promoted",
    "rolled_back": "rolled back",
    "needs_person": "a person is asked",
    "paused": "paused",
    "resumed": "resumed",
}
_MARKS = {"retrain_started": "#0969da", "promoted": "#1a7f37", "rolled_back": "#cf222e", "needs_person": "#8250df"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 240, 60, 24
_SHOWN = 60


def drift_page(
    name: str,
    *,
    loop: Mapping[str, Any],
    monitor: Mapping[str, Any],
    watch: Mapping[str, Any],
    events: Sequence[Event],
    now: float,
) -> str:
    """The page of one endpoint.

    Parameters
    ----------
    loop, monitor, watch : the store's documents of these kinds; an empty one where there is none yet
    events : of this endpoint, in order
    now : wall seconds
    """
    sections = (
        _head(name, loop, monitor, now),
        _windows(watch, events),
        _moved(monitor),
        _cost(monitor),
        _decided(events),
        _due(monitor, loop, now),
    )
    return page(f"{name}: drift report", sections)


def _head(name: str, loop: Mapping[str, Any], monitor: Mapping[str, Any], now: float) -> str:
    phase = str((loop.get("phase") or ["unknown"])[0]).lower()
    diagnosis = monitor.get("diagnosis") or {}
    kind = _KINDS.get(str(diagnosis.get("kind")), "no full window has been seen yet")
    asked = (loop.get("retrain") or {}).get("needs_person")
    lead = f"Version {escape(str(loop.get('champion')))} serves ({escape(phase)}); {kind}."
    why = f"<p>{escape(str(diagnosis.get('note')))}</p>" if diagnosis.get("note") else ""
    call = f"<p class='s4'>A person is asked: {escape(str(asked))}.</p>" if asked else ""
    return f"<h1>{escape(name)}</h1><p class='dim'>{when(now)}</p><p class='lead'>{lead}</p>{why}{call}"


def _windows(watch: Mapping[str, Any], events: Sequence[Event]) -> str:
    rows = [event for event in events if event.kind == "drift"][-_SHOWN:]
    table = "".join(
        f"<tr><td>{when(event.at)}</td><td class='n'>{_text(event.body, 'version')}</td>"
        f"<td class='n'>{_text(event.body, 'window')}</td><td class='n s{_severity(event)}'>{_severity(event)}</td>"
        f"<td>{escape(', '.join(str(item) for item in event.body.get('columns', ())[:5]))}</td>"
        f"<td class='n'>{number(event.body.get('loss'))}</td>"
        f"<td>{_KINDS.get(str((event.body.get('diagnosis') or {}).get('kind')), '')}</td></tr>"
        for event in reversed(rows)
    )
    listed = (
        "<table><tr><th>when</th><th class='n'>version</th><th class='n'>window</th><th class='n'>severity</th>"
        f"<th>moved</th><th class='n'>loss</th><th>diagnosis</th></tr>{table}</table>"
        if rows
        else "<p class='dim'>No window has been out of its limits.</p>"
    )
    return f"<h2>Windows over time</h2>{_chart(watch, events)}{listed}"


def _chart(watch: Mapping[str, Any], events: Sequence[Event]) -> str:
    insight = watch.get("insight") or {}
    if not insight.get("ledger"):
        return "<p class='dim'>No labels have come yet.</p>"
    ledger = LossLedger(insight["ledger"]["block_s"])
    ledger.load(insight["ledger"])
    promised: dict[int, list[float]] = {int(version): pair for version, pair in insight["promised"].items()}
    lines = {version: ledger.blocks(version) for version in promised}
    points = [point for line in lines.values() for point in line]
    if not points:
        return "<p class='dim'>No labels have come yet.</p>"
    first, last = min(p[0] for p in points), max(p[0] for p in points) + ledger.block_s
    top = 1.1 * max(*(p[1] for p in points), *(pair[1] for pair in promised.values()), 1e-12)

    def x(at: float) -> float:
        return _LEFT + (at - first) / (last - first) * (_WIDTH - _LEFT)

    def y(loss: float) -> float:
        return (_HEIGHT - _BOTTOM) * (1 - loss / top)

    drawn = []
    for version, line in lines.items():
        if not line:
            continue
        limit, end = promised[version][1], line[-1][0] + ledger.block_s
        path = " ".join(f"{x(at + ledger.block_s / 2):.1f},{y(loss):.1f}" for at, loss, _ in line)
        drawn.append(
            f"<line x1='{x(line[0][0]):.1f}' x2='{x(end):.1f}' y1='{y(limit):.1f}' y2='{y(limit):.1f}' stroke='#cf222e' "
            f"stroke-dasharray='4 3'/><polyline points='{path}' fill='none' stroke='#24292f'/>"
            + "".join(
                f"<circle cx='{x(at + ledger.block_s / 2):.1f}' cy='{y(loss):.1f}' r='2.5'><title>version {version}, "
                f"{when(at)}: mean loss {loss:.4f} of {count} labels</title></circle>"
                for at, loss, count in line
            )
        )
    for event in events:
        if event.kind in _MARKS and first <= event.at <= last:
            drawn.append(
                f"<line x1='{x(event.at):.1f}' x2='{x(event.at):.1f}' y1='0' y2='{_HEIGHT - _BOTTOM}' "
                f"stroke='{_MARKS[event.kind]}'><title>{when(event.at)}: {_DECISIONS[event.kind]}</title></line>"
            )
    axis = (
        f"<text x='0' y='{y(top / 1.1) + 4:.0f}'>{top / 1.1:.3g}</text><text x='0' y='{_HEIGHT - _BOTTOM}'>0</text>"
        f"<text x='{_LEFT}' y='{_HEIGHT - 6}'>{when(first)}</text>"
        f"<text x='{_WIDTH}' y='{_HEIGHT - 6}' text-anchor='end'>{when(last)}</text>"
    )
    legend = ", ".join(f"<span style='color:{colour}'>{_DECISIONS[kind]}</span>" for kind, colour in _MARKS.items())
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='mean loss over time'>{axis}{''.join(drawn)}</svg>"
        f"<p class='dim'>Mean loss of served rows by when they were served; dashed: what is accepted. Lines: {legend}.</p>"
    )


def _moved(monitor: Mapping[str, Any]) -> str:
    last = monitor.get("last") or {}
    guilty = {item["column"]: item for item in (monitor.get("diagnosis") or {}).get("guilty", ())}
    sure = [item for item in last.get("evidence", ()) if item["drifted"]]
    if not sure:
        return "<h2>What moved, and how sure that is</h2><p class='dim'>Nothing, in the newest window.</p>"
    sure.sort(key=lambda item: -guilty.get(item["column"], {}).get("weight", 0.0))
    rows = "".join(
        f"<tr><td>{escape(str(item['column']))}</td><td>{escape(str(item['name']))}</td>"
        f"<td>{bar(item['distance'])}</td><td class='n'>{item['distance']:.3f}</td>"
        f"<td class='n'>{number(guilty.get(item['column'], {}).get('importance'))}</td>"
        f"<td class='n'>{item['p_value']:.1e}</td><td class='n'>{item['limit']:.1e}</td>"
        f"<td class='n'>{number(item['effective_rows'])}</td></tr>"
        for item in sure[:_SHOWN]
    )
    return (
        "<h2>What moved, and how sure that is</h2><table><tr><th>column</th><th>test</th><th colspan='2' class='n'>distance "
        "over noise</th><th class='n'>importance</th><th class='n'>p</th><th class='n'>limit</th>"
        f"<th class='n'>independent rows</th></tr>{rows}</table>"
    )


def _cost(monitor: Mapping[str, Any]) -> str:
    last, diagnosis = monitor.get("last") or {}, monitor.get("diagnosis") or {}
    if last.get("loss") is None:
        return "<h2>What it costs</h2><p class='dim'>Not known: no labels have come.</p>"
    rise = last["loss"] - last["reference_loss"]
    relative = f" ({rise / last['reference_loss']:+.0%})" if last["reference_loss"] > 0 else ""
    parts = [
        f"{label} {diagnosis[key]:+.4f}"
        for key, label in (("covariate", "inputs"), ("prior", "rate of the label"), ("concept", "what is learnt"))
        if diagnosis.get(key) is not None
    ]
    return (
        f"<h2>What it costs</h2><p>Mean loss {last['loss']:.4f} of the newest of {last['loss_rows']:,} labels, promised "
        f"{last['reference_loss']:.4f}, accepted up to {last['loss_limit']:.4f}: {rise:+.4f} a row{relative}."
        + (f" By part: {', '.join(parts)}." if parts else "")
        + "</p>"
    )


def _decided(events: Sequence[Event]) -> str:
    rows = [event for event in events if event.kind in _DECISIONS][-_SHOWN:]
    if not rows:
        return "<h2>What was decided, and why</h2><p class='dim'>Nothing yet.</p>"
    table = "".join(
        f"<tr><td>{when(event.at)}</td><td>{_DECISIONS[event.kind]}</td>"
        f"<td class='n'>{_text(event.body, 'version')}</td><td>{_text(event.body, 'reason')}</td></tr>"
        for event in reversed(rows)
    )
    head = "<tr><th>when</th><th>what</th><th class='n'>version</th><th>why</th></tr>"
    return f"<h2>What was decided, and why</h2><table>{head}{table}</table>"


def _due(monitor: Mapping[str, Any], loop: Mapping[str, Any], now: float) -> str:
    found, trained = monitor.get("forecast"), (loop.get("retrain") or {}).get("trained_at")
    if not found:
        return "<h2>When the next refit is due</h2><p class='dim'>Not known yet.</p>"
    if found["due_s"] is None or trained is None:
        return f"<h2>When the next refit is due</h2><p>{escape(str(found['note'])).capitalize()}.</p>"
    due = trained + found["due_s"]
    left = f"in {span(due - now)}" if due > now else f"since {span(now - due)}"
    ends = [when(trained + found[key]) if found[key] is not None else "no upper end" for key in ("low_s", "high_s")]
    return (
        f"<h2>When the next refit is due</h2><p>{when(due)}, {left}; 80 % interval {ends[0]} to {ends[1]}. "
        f"{escape(str(found['note'])).capitalize()}.</p>"
    )


def _severity(event: Event) -> int:
    return int(event.body.get("severity", 0))


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return "" if value is None else escape(str(value)[:500])
