"""The model card page: what :func:`raymlops.registry.card.build_card` says, for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from raymlops.report.page import bar, number, page, table, when
from raymlops.search.ensemble import FAMILY, named, plain

_VERDICTS = {"pass": "ok", "warn": "s2", "fail": "s4", "skipped": "dim"}
_SHOWN = 40
_MAPS = {
    "identity": "none: the model's own probabilities",
    "platt": "Platt's, on the log-odds",
    "beta": "beta",
    "isotonic": "isotonic",
    "temperature": "temperature",
}
_RULES = {"half": "0.5, nothing else was asked for", "fixed": "fixed", "costs": "by costs", "f1": "for the best F1"}
_METHODS = {
    "tree_shap": "TreeSHAP, exact for the trees",
    "linear": "exact for the linear model, against reference rows",
    "sampled_shapley": "Shapley values sampled against reference rows",
}


def card_page(card: Mapping[str, Any], version: Mapping[str, Any] | None = None) -> str:
    """The page.

    Parameters
    ----------
    version : what the registry knows since: ``version``, ``aliases``, ``tags``, ``lineage``; the copy inside the package was made
        before there was a number and has none
    """
    title = f"{card['name']} version {version['version']}" if version else f"{card['name']} · {card['event_id']}"
    sections = (
        _head(title, card, version),
        _data(card),
        _search(card),
        _gate(card),
        _slices(card),
        _explanations(card),
        _calibration(card),
        _threshold(card),
        _package(card),
        "<h2>Limits</h2><ul>" + "".join(f"<li>{_text(item)}</li>" for item in card["limits"]) + "</ul>",
        _lineage(card, version),
    )
    return page(f"{title}: model card", sections)


def _head(title: str, card: Mapping[str, Any], version: Mapping[str, Any] | None) -> str:
    search, gate = card["search"], card["gate"]
    verdict = "passed" if gate["passed"] else "did not pass"
    lead = (
        f"A {_text(card['task'])} model ({_text(search['family'])}); {_text(search['metric'])} {number(search['test_score'])} "
        f"on held-out rows, where the best constant reaches {number(search['baseline_score'])}. It {verdict} the gate."
    )
    known = ""
    if version:
        words = [*(f"<strong>{_text(alias)}</strong>" for alias in version["aliases"])]
        words += [f"{_text(key)} = {_text(value)}" for key, value in sorted(version["tags"].items()) if value]
        known = f"<p>{' · '.join(words)}</p>" if words else ""
    return (
        f"<h1>{_text(title)}</h1><p class='dim'>{when(card['created_at'])} · raymlops {_text(card['raymlops'])}</p>"
        f"<p class='lead'>{lead}</p>{known}"
    )


def _data(card: Mapping[str, Any]) -> str:
    data, split = card["data"], card["data"]["split"]
    order = f"in the order of {_text(data['time'])}" if split["ordered"] else "in no order of time, by class"
    facts = [
        ("source", _text(data["source"])),
        (
            "rows",
            f"{data['rows']:,}: {split['train']:,} train, {split['validation']:,} validation, {split['test']:,} test, {order}",
        ),
        ("label", _label(data["label"])),
        ("features function", _text(data["features"] or "none")),
        ("fingerprint", f"<code>{_text(data['fingerprint'])}</code>"),
    ]
    columns = [
        (_text(item["name"]), _text(item["kind"]), "yes" if item["nullable"] else "", _seen(item))
        for item in data["columns"][:_SHOWN]
    ]
    more = len(data["columns"]) - len(columns)
    checks = data["assessment"]["checks"]
    notes = [
        (_verdict(item["verdict"]), _text(item["name"]), _text(item["message"]))
        for item in checks
        if item["verdict"] != "pass"
    ]
    passed = sum(item["verdict"] == "pass" for item in checks)
    assessed = f"<p class='dim'>{passed} of {len(checks)} checks of the assessment passed.</p>" + (
        table(("verdict", "check", "what"), notes) if notes else ""
    )
    return (
        f"<h2>Data</h2>{_pairs(facts)}<h3>Columns</h3>"
        f"{table(('column', 'kind', 'may be missing', 'seen in training'), columns)}"
        f"{f'<p class=dim>{more} more columns.</p>' if more > 0 else ''}<h3>Assessment</h3>{assessed}"
    )


def _label(label: Mapping[str, Any]) -> str:
    if "classes" in label:
        shares = ", ".join(
            f"{_text(name)}: {share:.1%}" for name, share in zip(label["classes"], label["shares"], strict=True)
        )
        return f"{_text(label['name'])}, of the test rows {shares}"
    return f"{_text(label['name'])}: mean {number(label.get('mean'))}, standard deviation {number(label.get('spread'))}"


def _seen(column: Mapping[str, Any]) -> str:
    if column["kind"] == "category":
        names = column["categories"]
        return f"{len(names)} categories: {_text(', '.join(names[:8]))}{' …' if len(names) > 8 else ''}"
    return "" if column["minimum"] is None else f"{number(column['minimum'])} to {number(column['maximum'])}"


def _ensemble(tried: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if tried is None:
        return []
    members = f" {_text(tried['named'])}." if tried["members"] else ""
    return [("ensemble", f"{'taken' if tried['taken'] else 'not taken'}: {_text(tried['reason'])}{members}")]


def _members(trial: Mapping[str, Any]) -> str:
    return named(trial["params"]["members"]) if trial["family"] == FAMILY else ""


def _search(card: Mapping[str, Any]) -> str:
    search = card["search"]
    counts = ", ".join(f"{count} {_text(status)}" for status, count in search["trials"].items())
    params = ", ".join(f"{key} {_short(value)}" for key, value in plain(search["family"], search["params"]).items())
    facts = [
        ("metric", f"{_text(search['metric'])}, {'higher' if search['mode'] == 'max' else 'lower'} is better"),
        ("trials", f"{counts}; {search['fit_s']:.1f} s of fitting. {_text(search['ended'])}"),
        ("chosen", f"trial {search['winner']}, {_text(search['family'])}: {_text(params)}"),
        (
            "scores",
            f"train {number(search['train_score'])}, validation {number(search['validation_score'])}, test "
            f"{number(search['test_score'])}, best constant {number(search['baseline_score'])}",
        ),
        *_ensemble(search.get("ensemble")),
    ]
    rows = [
        (
            str(item["number"]),
            _text(item["family"]),
            number(item["score"]),
            number(item["train_score"]),
            number(item["fit_s"]),
            _text(item["status"]),
            _text(item["error"][:120] or _members(item)),
        )
        for item in search["leaderboard"]
    ]
    head = ("trial", "family", "score", "train", "seconds", "status", "reason")
    return f"<h2>Search</h2>{_pairs(facts)}<h3>Leaderboard</h3>{table(head, rows, (2, 3, 4))}"


def _gate(card: Mapping[str, Any]) -> str:
    rows = [
        (
            _verdict(item["verdict"]),
            _text(item["name"].replace("_", " ")),
            number(item["value"]),
            number(item["limit"]),
            f"{_text(item['message'])} <span class='dim'>{_text(item['advice'])}</span>",
        )
        for item in card["gate"]["checks"]
    ]
    return f"<h2>Gate</h2>{table(('verdict', 'check', 'number', 'limit', 'what'), rows, (2, 3))}"


def _slices(card: Mapping[str, Any]) -> str:
    parts = card["slices"]
    if not parts:
        return "<h2>Slices</h2><p class='dim'>No slice was large enough to look at.</p>"
    rows = [
        (
            _text(item["name"]) + (" <span class='dim'>asked for</span>" if item["asked"] else ""),
            f"{item['rows']:,}",
            number(item["candidate"]),
            number(item["champion"]),
            "" if item["p_value"] is None else f"{item['p_value']:.2g}",
            "<span class='s4'>worse</span>" if item["worse"] else "",
        )
        for item in parts[:_SHOWN]
    ]
    head = ("slice", "rows", _text(card["search"]["metric"]), "champion", "p that worse is chance", "")
    note = "p-values are adjusted for the number of slices (Holm)."
    return f"<h2>Slices</h2>{table(head, rows, (1, 2, 3, 4))}<p class='dim'>{note}</p>"


def _explanations(card: Mapping[str, Any]) -> str:
    found = card["explanations"]
    loss = {item["column"]: item for item in found["permutation"]}
    largest = max((item["share"] for item in found["columns"]), default=0.0) or 1.0
    rows = [
        (
            _text(item["column"]),
            bar(item["share"] / largest, "#0969da"),
            _spread(item["mean_abs"], item["error"]),
            f"{item['share']:.1%}",
            _spread(loss.get(item["column"], {}).get("loss"), loss.get(item["column"], {}).get("error")),
            "" if loss.get(item["column"], {}).get("matters", True) else "<span class='dim'>idle</span>",
        )
        for item in found["columns"][:_SHOWN]
    ]
    head = ("column", "", f"mean |contribution|, {_text(found['units'])}", "share", "loss when shuffled", "")
    note = f"{_METHODS.get(found['method'], _text(found['method']))}, over {found['rows']:,} held-out rows; ± one standard error."
    return f"<h2>What the model goes by</h2>{table(head, rows, (2, 3, 4))}<p class='dim'>{note}</p>"


def _calibration(card: Mapping[str, Any]) -> str:
    found = card["calibration"]
    if found is None:
        return ""
    losses = [
        (_text(kind), number(loss), _spread(found["gains"].get(kind), found["errors"].get(kind)))
        for kind, loss in sorted(found["losses"].items(), key=lambda item: item[1])
    ]
    tried = table(("map", "log loss of unseen rows", "gain"), losses, (1, 2)) if losses else ""
    lead = f"<p>Map: {_MAPS.get(found['kind'], _text(found['kind']))}. {_text(found['note'])}</p>"
    return f"<h2>Calibration</h2>{lead}{_diagram(found['reliability'])}{tried}"


def _diagram(reliability: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Predicted against observed; on the diagonal a probability means what it says."""
    size, left = 260, 40

    def at(point: Mapping[str, Any]) -> tuple[float, float]:
        return left + point["predicted"] * size, size - point["observed"] * size + 10

    drawn = [f"<line x1='{left}' y1='{size + 10}' x2='{left + size}' y2='10' stroke='#aab'/>"]
    for name, colour in (("before", "#bbb"), ("after", "#0969da")):
        points = [point for point in reliability[name] if point["predicted"] is not None]
        path = " ".join("{:.1f},{:.1f}".format(*at(point)) for point in points)
        drawn.append(f"<polyline points='{path}' fill='none' stroke='{colour}'/>")
        for point in points:
            x, y = at(point)
            words = (
                f"{name}: predicted {point['predicted']:.3f}, observed {point['observed']:.3f}, {point['rows']} rows"
            )
            drawn.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'><title>{words}</title></circle>")
    axis = (
        f"<text x='0' y='20'>1</text><text x='0' y='{size + 10}'>0</text><text x='{left}' y='{size + 28}'>0</text>"
        f"<text x='{left + size}' y='{size + 28}' text-anchor='end'>1</text>"
    )
    return (
        f"<svg viewBox='0 0 640 {size + 34}' style='max-width:40rem' role='img' aria-label='predicted against observed'>{axis}{''.join(drawn)}"
        f"<text x='{left + size + 24}' y='30'>observed share (up) by predicted probability (right),</text>"
        f"<text x='{left + size + 24}' y='46'>tenths of the test rows; grey: before, blue: after</text></svg>"
    )


def _threshold(card: Mapping[str, Any]) -> str:
    found = card["threshold"]
    if found is None:
        return ""
    facts = [("positive from", number(found["value"])), ("chosen", _text(_RULES.get(found["rule"], found["rule"])))]
    if found["measure"]:
        said = f"{number(found['here'])} here, {number(found['at_half'])} at 0.5, on {found['rows']:,} unseen rows"
        facts.append(({"cost": "cost a row", "f1": "F1"}[found["measure"]], said))
    if found["note"]:
        facts.append(("why", _text(found["note"])))
    return f"<h2>Decision threshold</h2>{_pairs(facts)}"


def _package(card: Mapping[str, Any]) -> str:
    found = card["package"]
    times = ", ".join(f"{_text(name)} {number(us)} µs" for name, us in found["latency_us"].items())
    facts = [
        ("native form", _text(found["form"])),
        ("answers one row by", _text(found["runtime"])),
        ("median of one row", times),
        ("size", f"{found['size_mb']:.2f} MB, without this card"),
        ("ONNX", _text(found["onnx"] or "agrees with the native model")),
    ]
    return f"<h2>Package</h2>{_pairs(facts)}"


def _lineage(card: Mapping[str, Any], version: Mapping[str, Any] | None) -> str:
    found = card["lineage"]
    facts = [
        ("caused by", _text(found["event_id"])),
        ("snapshot", f"<code>{_text(found['snapshot'])}</code>"),
        ("made to replace", "nothing: it is the first" if found["parent"] is None else f"version {found['parent']}"),
        ("search in MLflow", f"<code>{_text(found['run_id'])}</code>"),
        ("rows learnt from", f"{found['rows_learnt_from']:,}"),
    ]
    if version:
        up, down = version["lineage"]["up"], version["lineage"]["down"]
        facts += [
            ("ancestors", _numbers(up["ancestors"])),
            ("versions made to replace it", _numbers(down["children"])),
            ("package", f"<code>{_text(up['package'])}</code>"),
            ("SHA-256 of its manifest", f"<code>{_text(up['digest'])}</code>"),
        ]
    return f"<h2>Lineage</h2>{_pairs(facts)}"


def _numbers(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


def _pairs(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th style='width:12rem'>{name}</th><td>{value}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _verdict(verdict: str) -> str:
    return f"<span class='{_VERDICTS.get(verdict, 'dim')}'>{_text(verdict)}</span>"


def _spread(value: object, error: object) -> str:
    return number(value) + (f" ± {number(error)}" if number(value) and number(error) else "")


def _short(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _text(value: object) -> str:
    return escape(str(value)[:1000])
