"""The drift report page: one HTML file, drawn with inline SVG, that needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from raymlops.events import Event
from raymlops.monitor.budget import SHARES
from raymlops.monitor.forecast import span
from raymlops.monitor.pace import Pace
from raymlops.monitor.triage import CONCEPT
from raymlops.report.timeline import SEVERITIES, timeline, when
from raymlops.store import LabelConflictRow

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5d6773;--rule:#dfe3e8;--card:#f6f8fa;--back:#fff;--line:#24292f;
--s0:#c9d7cc;--s1:#9fc3e0;--s2:#e3b341;--s3:#e8743b;--s4:#c8202f;--heat:#8a4b08;--good:#1a7f37;--blue:#0969da;--violet:#8250df}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--dim:#98a2ad;--rule:#30363d;--card:#161b22;--back:#0d1117;
--line:#d0d7de;--s0:#31443a;--s1:#2f5d82;--s2:#bb8a1a;--s3:#d9622b;--s4:#f0525f;--heat:#f0a35e;--good:#3fb950;--blue:#58a6ff;
--violet:#b48cff}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:66rem;margin:0 auto;padding:2rem 1.25rem 4rem;
color:var(--ink);background:var(--back)}
h1{font-size:1.7rem;line-height:1.2;margin:0}h2{font-size:1.15rem;margin:2.6rem 0 .6rem}p{margin:.4rem 0;max-width:44rem}
.dim{color:var(--dim);font-size:.9rem}.lead{font-size:1.1rem;margin-top:.8rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.75rem;margin:1.4rem 0 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;padding:.7rem .9rem}
.card b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}.card span{color:var(--dim);font-size:.85rem}
.ask{border:1px solid var(--s4);border-left-width:.4rem;border-radius:.4rem;padding:.6rem .9rem;margin:1rem 0;max-width:none}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.93rem}
th{font-weight:600;color:var(--dim);font-size:.83rem}
td,th{text-align:left;padding:.35rem .9rem .35rem 0;vertical-align:top;border-bottom:1px solid var(--rule)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.w{white-space:nowrap}td.why{min-width:17rem}
summary{cursor:pointer;list-style-position:inside}details p{margin:.25rem 0 .25rem 1.1rem}
.tag{display:inline-block;border:1px solid currentColor;border-radius:1rem;padding:0 .55rem;font-size:.82rem;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--s4)}.busy{color:var(--blue)}.human{color:var(--violet)}
svg{width:100%;height:auto;display:block;min-width:40rem}svg text{font:11.5px system-ui,sans-serif;fill:var(--dim)}
svg text.title{fill:var(--ink)}
.grid{stroke:var(--rule)}.limit{stroke:var(--s4);stroke-dasharray:5 4}.loss{fill:none;stroke:var(--line);stroke-width:1.6}
.dot{fill:var(--line)}.over{fill:var(--s4)}.heat{fill:var(--heat)}line.m{stroke-width:1.6}
.s0{fill:var(--s0);background:var(--s0)}.s1{fill:var(--s1);background:var(--s1)}.s2{fill:var(--s2);background:var(--s2)}
.s3{fill:var(--s3);background:var(--s3)}.s4{fill:var(--s4);background:var(--s4)}
line.r{stroke:var(--blue)}i.r{background:var(--blue)}line.p{stroke:var(--good)}i.p{background:var(--good)}
line.b{stroke:var(--s4)}i.b{background:var(--s4)}line.h{stroke:var(--violet)}i.h{background:var(--violet)}
.legend{font-size:.85rem;max-width:none}.key{margin-right:1rem;white-space:nowrap}
.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.35rem;border-radius:.15rem;vertical-align:-.08rem}.key i.m{width:.2rem}
.bar{display:flex;height:.8rem;width:9rem;background:var(--rule);border-radius:.2rem;overflow:hidden;margin-top:.4rem}
.bar i{background:var(--heat)}.bar i.second{background:var(--blue)}.bar i.third{background:var(--s4)}.wide{width:100%;max-width:44rem}
@media print{body{max-width:none}}
"""
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
    "deployed": ("first version deployed", ""),
    "retrain_started": ("retraining started", "busy"),
    "retrain_held": ("held back", "human"),
    "retrain_failed": ("retraining failed", "bad"),
    "candidate_refused": ("candidate refused", "bad"),
    "rollout_started": ("canary started", "busy"),
    "rollout_advanced": ("canary advanced", "busy"),
    "approval_awaited": ("waits for approval", "human"),
    "approved": ("approved", "human"),
    "promoted": ("promoted", "good"),
    "promotion_confirmed": ("promotion confirmed", "good"),
    "rolled_back": ("rolled back", "bad"),
    "needs_person": ("a person is asked", "human"),
    "paused": ("paused", "human"),
    "resumed": ("resumed", "human"),
    "probed": ("probe refit", ""),
    "probe_failed": ("probe failed", "bad"),
}
_PROBES = frozenset({"probed", "probe_failed"})
_ENDS = frozenset({"retrain_failed", "candidate_refused", "promoted", "rolled_back"})
_SHOWN = 60


def drift_page(
    name: str,
    *,
    loop: Mapping[str, Any],
    monitor: Mapping[str, Any],
    watch: Mapping[str, Any],
    events: Sequence[Event],
    now: float,
    conflicts: Sequence[LabelConflictRow] = (),
) -> str:
    """The page of one endpoint.

    Parameters
    ----------
    loop, monitor, watch : the store's documents of these kinds; an empty one where there is none yet
    events : of this endpoint, in order
    now : wall seconds
    conflicts : rows that were given two different labels
    """
    sections = (
        _head(name, loop, monitor, now),
        _cards(loop, monitor, events, now),
        f"<h2>Windows over time</h2>{timeline(watch, events)}",
        _moved(monitor, loop),
        _cost(monitor, loop),
        _decided(events),
        _due(monitor, loop, now),
        _disagreeing(conflicts),
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(name)}: drift report</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _head(name: str, loop: Mapping[str, Any], monitor: Mapping[str, Any], now: float) -> str:
    phase = str((loop.get("phase") or ["unknown"])[0])
    words = "".join(f" {sign.lower()}" if sign.isupper() else sign for sign in phase).strip()
    diagnosis = monitor.get("diagnosis") or {}
    kind = _KINDS.get(str(diagnosis.get("kind")), "its first window is not full yet")
    asked = (loop.get("retrain") or {}).get("needs_person")
    lead = f"Version {escape(str(loop.get('champion')))} serves ({escape(words)}); {kind}."
    why = f"<p>{escape(_sentence(diagnosis.get('note')))}</p>" if diagnosis.get("note") else ""
    call = (
        f"<p class='ask'><b>A person is asked:</b> {escape(str(asked))}. The champion serves on; "
        f"<code>raymlops resume {escape(name)}</code> lets retrainings start again.</p>"
        if asked
        else ""
    )
    return f"<h1>{escape(name)}</h1><p class='dim'>Drift report, {when(now)}</p><p class='lead'>{lead}</p>{why}{call}"


def _cards(loop: Mapping[str, Any], monitor: Mapping[str, Any], events: Sequence[Event], now: float) -> str:
    last, trained = monitor.get("last") or {}, (loop.get("retrain") or {}).get("trained_at")
    rows, labelled = monitor.get("rows"), monitor.get("labelled")
    starts = [event for event in events if event.kind == "retrain_started" and event.at > now - 30 * 86_400.0]
    loss = "no labels" if last.get("loss") is None else f"{last['loss']:.4g}"
    cards = [
        (loss, "" if last.get("loss") is None else f"mean loss, accepted up to {last['loss_limit']:.4g}"),
        (SEVERITIES[int(last.get("severity", 0))] if last else "—", "newest window"),
        ("—" if trained is None else span(max(now - trained, 0.0)), "age of the champion"),
        (str(len(starts)), "retrainings in 30 days"),
        ("—" if rows is None else f"{rows:,}", f"rows watched, {labelled or 0:,} labels since the last training"),
    ]
    return (
        "<div class='cards'>"
        + "".join(f"<div class='card'><b>{a}</b><span>{b}</span></div>" for a, b in cards)
        + "</div>"
    )


def _diagnosis(monitor: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the newest report, which may still be the champion's before this one."""
    found: Mapping[str, Any] = monitor.get("diagnosis") or (monitor.get("last") or {}).get("diagnosis") or {}
    return found


def _whose(loop: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    if last.get("version") in (None, loop.get("champion")):
        return ""
    return f"<p class='dim'>These figures are version {escape(str(last['version']))}'s, which served before.</p>"


def _moved(monitor: Mapping[str, Any], loop: Mapping[str, Any]) -> str:
    last = monitor.get("last") or {}
    title = f"<h2>What moved, and how sure that is</h2>{_whose(loop, last)}"
    guilty = {item["column"]: item for item in _diagnosis(monitor).get("guilty", ())}
    sure = [item for item in last.get("evidence", ()) if item["drifted"]]
    if not sure:
        return f"{title}<p class='dim'>{_quiet(last)}</p>{_also(last)}"
    sure.sort(key=lambda item: (-guilty.get(item["column"], {}).get("weight", 0.0), item["column"], -item["distance"]))
    rows = "".join(
        f"<tr><td>{escape(str(item['column']))}</td><td>{escape(str(item['name']))}</td>"
        f"<td>{_bar([('', item['distance'])])}</td><td class='n'>{item['distance']:.3f}</td>"
        f"<td class='n'>{_number(guilty.get(item['column'], {}).get('importance'))}</td>"
        f"<td class='n'>{_number(guilty.get(item['column'], {}).get('weight'))}</td>"
        f"<td class='n'>{_tiny(item['p_value'])}</td><td class='n'>{_tiny(item['limit'])}</td>"
        f"<td class='n'>{_number(item['effective_rows'])}</td></tr>"
        for item in sure[:_SHOWN]
    )
    head = (
        "<tr><th>column</th><th>test</th><th colspan='2'>distance over noise</th><th class='n'>importance</th>"
        "<th class='n'>guilt</th><th class='n'>p</th><th class='n'>limit</th><th class='n'>independent rows</th></tr>"
    )
    told = (
        "<p class='dim'>The guiltiest first: guilt is the distance (0 to 1, what chance gives taken off) times how much the "
        "column moves the model's output, 1 for the mean column.</p>"
    )
    return f"{title}<div class='scroll'><table>{head}{rows}</table></div>{told}{_also(last)}"


def _quiet(last: Mapping[str, Any]) -> str:
    """That nothing was found, where anything was judged."""
    if last.get("evidence") and all(item["status"] == "insufficient" for item in last["evidence"]):
        return "Not known: nothing could be judged in the newest window."
    return "Nothing, in the newest window."


def _unjudged(last: Mapping[str, Any]) -> str:
    """What was no verdict: a column that remembers long says little in one window."""
    columns = dict.fromkeys(
        str(item["column"])
        for item in last.get("evidence", ())
        if item["status"] == "insufficient" and item["name"] in ("ks", "chi2")
    )
    if not columns:
        return ""
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return f"Too few independent rows to judge by this window alone: {', '.join([*columns][:5])}{more}."


def _also(last: Mapping[str, Any]) -> str:
    """What was not judged, what was compared with, the budget, the second opinion and the rows that were strange one by one."""
    parts = [_unjudged(last)]
    if last.get("reference_rows"):
        parts.append(f"Compared with {last['reference_rows']:,} held-out rows.")
    if last.get("alpha"):
        parts.append(_budget(last))
    opinion = last.get("second_opinion")
    if opinion:
        columns = ", ".join(str(item) for item in opinion["columns"][:5])
        said = f"drift ({columns})" if opinion["drifted"] else "no drift"
        of = f" of window {opinion['window']}" if opinion.get("window", last["window"]) != last["window"] else ""
        parts.append(f"Second opinion{of}, {opinion['detector']}: {said}; it {opinion['note']}.")
    if last.get("wild_rows"):
        shown = ", ".join(str(item.get("request_id") or f"row {item.get('row')}") for item in last.get("wild", ())[:5])
        parts.append(f"{last['wild_rows']} rows were strange one by one: {shown}.")
    if last.get("iid_assumed"):
        parts.append("The reference has no time order, so rows are taken as independent.")
    said = " ".join(filter(None, parts))
    return f"<p class='dim'>{escape(said)}</p>" if said else ""


def _budget(last: Mapping[str, Any]) -> str:
    """What all alarms together may cost, by windows and by the month; ``alpha`` is the part that columns and score may spend."""
    windows, month = (1.0 - SHARES.outcomes) / last["alpha"], last.get("alarms_per_month")
    often = (
        "how often a month is not known, for its rows were served at one moment"
        if month is None
        else f"{month:,.0f} times in 30 days of such traffic"
        if month >= 10
        else f"{month:.2g} times in 30 days of such traffic"
    )
    return f"All alarms together may be false once in {windows:,.0f} such windows at most: {often}."


def _estimated(last: Mapping[str, Any]) -> str:
    """Performance without labels, its check and what it rests on; nothing where it was not estimated."""
    estimate = last.get("estimate") or {}
    loss = estimate.get("metrics", {}).get("brier")
    if loss is None:
        return ""
    return (
        f"<p>Estimated without labels (PAPE): mean loss {loss['value']:.4f}, 95 % interval {loss['low']:.4f} to {loss['high']:.4f}, "
        f"promised {loss['reference']:.4f}; the check without weights (CBPE) says {loss['check']:.4f}. "
        f"It assumes {escape(str(estimate['assumes']))}.</p>"
    )


def _cost(monitor: Mapping[str, Any], loop: Mapping[str, Any]) -> str:
    last, diagnosis = monitor.get("last") or {}, _diagnosis(monitor)
    title = f"<h2>What it costs</h2>{_whose(loop, last)}"
    if last.get("loss") is None:
        return title + (_estimated(last) or "<p class='dim'>Not known: no labels have come.</p>")
    rise = last["loss"] - last["reference_loss"]
    relative = f" ({rise / last['reference_loss']:+.0%})" if last["reference_loss"] > 0 else ""
    text = (
        f"<p>Mean loss {last['loss']:.4f} of the newest of {last['loss_rows']:,} labels, promised {last['reference_loss']:.4f}, "
        f"accepted up to {last['loss_limit']:.4f}: {rise:+.4f} a row{relative}.</p>" + _estimated(last)
    )
    names = (("covariate", "inputs"), ("prior", "rate of the label"), ("concept", "what is learnt"))
    parts = [(label, diagnosis[key]) for key, label in names if diagnosis.get(key) is not None]
    if not parts:
        return title + text
    whole = sum(max(value, 0.0) for _, value in parts) or 1.0
    listed = ", ".join(f"{label} {value:+.4f}" for label, value in parts)
    bar = _bar([(label, max(value, 0.0) / whole) for label, value in parts], "bar wide")
    along = [f"{item['column']} ({item['distance']:.0%})" for item in diagnosis["guilty"] if item["what"] == CONCEPT]
    told = (
        f"<p>The champion is wrong along {escape(', '.join(along[:8]))}: the share of its errors' variance that each explains."
        "</p>"
        if along
        else ""
    )
    return f"{title}{text}<p>By part: {listed}.</p>{bar}{told}"


def _decided(events: Sequence[Event]) -> str:
    """Every retraining as one line that opens into its steps; what stands alone has a line of its own."""
    title = "<h2>What was decided, and why</h2>"
    groups = list(_grouped([event for event in events if event.kind in _DECISIONS]))[-_SHOWN:]
    if not groups:
        return f"{title}<p class='dim'>Nothing yet.</p>"
    rows = "".join(_group_row(group) for group in reversed(groups))
    head = "<tr><th>when</th><th>what</th><th class='n'>version</th><th>why</th></tr>"
    return f"{title}<div class='scroll'><table>{head}{rows}</table></div>"


def _grouped(events: Sequence[Event]) -> Iterator[list[Event]]:
    """A retraining with the probe that asked for it and all that came of it; probes that changed nothing, run together."""
    held: list[Event] = []
    for event in events:
        started = any(item.kind == "retrain_started" for item in held)
        if event.kind in _PROBES and not started:
            held.append(event)
        elif event.kind == "retrain_started":
            if started or len(held) > 1:
                yield held if started else held[:-1]
            held = [event] if started else [*held[-1:], event]
        elif started and (event.kind in _ENDS or event.kind.startswith(("rollout", "appro", "pause", "resume"))):
            held.append(event)
            if event.kind in _ENDS:
                yield held
                held = []
        else:
            if held and not started:
                yield held
                held = []
            yield [event]
    if held:
        yield held


def _group_row(group: Sequence[Event]) -> str:
    first, last = group[0], group[-1]
    version = next((event.body["version"] for event in reversed(group) if event.body.get("version") is not None), None)
    main = next((event for event in group if event.kind == "retrain_started"), last)
    if len(group) == 1:
        what, why = _tag(first.kind), _text(first.body, "reason")
    else:
        steps = "".join(
            f"<p>{when(event.at)} {_tag(event.kind)} {_text(event.body, 'reason')}</p>"
            for event in group
            if event is not main
        )
        took = f" <span class='dim'>over {span(last.at - main.at)}</span>" if last.at > main.at else ""
        ended = f" {_tag(last.kind)}" if last.kind in _ENDS else ""
        what = f"{_tag(main.kind)}{ended}" if main.kind not in _PROBES else f"{len(group)} × {_tag(main.kind)}"
        why = f"<details><summary>{_text(main.body, 'reason')}{took}</summary>{steps}</details>"
    shown = "" if version is None else escape(str(version))
    return f"<tr><td class='w'>{when(main.at)}</td><td>{what}</td><td class='n'>{shown}</td><td class='why'>{why}</td></tr>"


def _tag(kind: str) -> str:
    words, css = _DECISIONS[kind]
    return f"<span class='tag {css}'>{words}</span>"


def _due(monitor: Mapping[str, Any], loop: Mapping[str, Any], now: float) -> str:
    retrain = loop.get("retrain") or {}
    trained, title = retrain.get("trained_at"), "<h2>When the next refit is due</h2>"
    parts = [_by_probes(retrain, monitor, trained, now), _by_history(monitor.get("forecast"), trained, now)]
    said = "".join(part for part in parts if part)
    return title + (said or "<p class='dim'>Not known yet.</p>")


def _by_probes(retrain: Mapping[str, Any], monitor: Mapping[str, Any], trained: float | None, now: float) -> str:
    """From what refits would have gained so far, carried on at the rate at which labels came."""
    pace = Pace.from_dict(retrain.get("pace") or {})
    labelled = int(monitor.get("labelled") or 0)
    if pace.newest is None or pace.cost <= 0 or trained is None:
        return ""
    text = (
        f"<p>A probe refit at {pace.rows:,} labels: the champion loses {pace.excess:+.1%} (± {pace.error:.1%}) against a fresh "
        f"model, and has lost as much as {pace.lost:.0f} usual rows; a retraining costs {pace.cost:.0f}."
    )
    if pace.excess < pace.least:
        text += f" Less than {pace.least:.0%} is not worth a new version."
    if labelled <= 0 or now <= trained:
        return text + "</p>"
    seconds_a_row = (now - trained) / labelled
    low, middle, high = (None if rows is None else max(trained + rows * seconds_a_row, now) for rows in pace.due())
    if middle is None:
        return f"{text} At this pace it never pays{_until(low, ': at the earliest ')}.</p>"
    return f"{text} At this pace it pays {_left(middle, now)} ({_until(low)} to {_until(high) or 'no upper end'}).</p>"


def _by_history(found: Mapping[str, Any] | None, trained: float | None, now: float) -> str:
    """From how earlier versions aged."""
    if not found:
        return ""
    note = escape(_sentence(found["note"]))
    if found["due_s"] is None or trained is None:
        return f"<p>{note}</p>"
    due = trained + found["due_s"]
    ends = [when(trained + found[key]) if found[key] is not None else "no upper end" for key in ("low_s", "high_s")]
    return f"<p>By earlier versions: {_left(due, now)}; 80 % interval {ends[0]} to {ends[1]}. {note}</p>"


def _disagreeing(conflicts: Sequence[LabelConflictRow]) -> str:
    if not conflicts:
        return ""
    rows = "".join(
        f"<tr><td class='w'>{when(row.received_at)}</td><td>{escape(row.request_id)}</td><td class='n'>{row.row_index}</td>"
        f"<td>{escape(str(row.kept))}</td><td>{escape(str(row.refused))}</td></tr>"
        for row in conflicts[:_SHOWN]
    )
    head = "<tr><th>when</th><th>request</th><th class='n'>row</th><th>label that counts</th><th>label that came later</th></tr>"
    return f"<h2>Labels that disagree</h2><div class='scroll'><table>{head}{rows}</table></div>"


def _left(due: float, now: float) -> str:
    return (
        f"{when(due)}, in {span(due - now)}"
        if due > now
        else f"{when(due)}, since {span(now - due)}"
        if due < now
        else "now"
    )


def _until(at: float | None, before: str = "") -> str:
    return "" if at is None else before + when(at)


def _bar(parts: Sequence[tuple[str, float]], css: str = "bar") -> str:
    """Shares of a whole, as coloured lengths."""
    classes = ("first", "second", "third")
    drawn = "".join(
        f"<i class='{classes[i % 3]}' style='width:{100 * min(max(share, 0.0), 1.0):.1f}%' title='{escape(label)}'></i>"
        for i, (label, share) in enumerate(parts)
    )
    return f"<div class='{css}'>{drawn}</div>"


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    return "" if value is None else escape(str(value)[:500])


def _sentence(text: object) -> str:
    said = str(text).strip()
    return said if not said else said[0].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")


def _tiny(probability: float) -> str:
    return f"{probability:.1e}" if probability > 0 else "&lt; 1e-300"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) and math.isfinite(value) else ""
