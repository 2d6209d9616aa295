"""The page of an assessment: one HTML file, drawn with inline SVG, that needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from typing import Any

from raymlops.data.assess import Assessment, CheckResult

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p.lead{font-size:1.1rem;margin:.5rem 0 1rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem .3rem 0;vertical-align:top;
border-bottom:1px solid #e3e6ea}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.dim{color:#667}.mark{display:inline-block;min-width:3.6rem;text-align:center;border-radius:.3rem;font-size:.85rem;
color:#fff}.fail{background:#cf222e}.warn{background:#9a6700}.pass{background:#1a7f37}.skipped{background:#8b949e}
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#556}.advice{color:#0550ae}
code{font-size:.9em;background:#f3f5f7;padding:0 .2rem;border-radius:.2rem}
"""
_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Is there enough?", ("rows", "columns", "label", "classes", "imbalance", "enough_rows", "slices")),
    ("Does it say anything about the label?", ("predictive", "unrelated")),
    ("Is it honest?", ("leak", "suspicious", "disguise", "time_travel", "collapse", "overlap", "identifier")),
    (
        "Is it clean?",
        (
            "missing",
            "constant",
            "near_constant",
            "types",
            "mixed_types",
            "numbers_as_text",
            "encoding",
            "spelling",
            "categories",
            "infinite",
            "huge",
            "outliers",
            "sentinel",
            "negative",
            "duplicate_ids",
            "duplicate_rows",
            "duplicate_columns",
            "skewed_key",
        ),
    ),
    (
        "Is it steady and of today?",
        ("time", "future", "dates", "timezone", "gaps", "freshness", "stability", "label_stability", "filling"),
    ),
)
_RANK = {"fail": 0, "warn": 1, "skipped": 2, "pass": 3}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 260, 56, 28


def assess_page(name: str, assessment: Assessment, *, now: float) -> str:
    """The page of one assessment; ``now`` in wall seconds."""
    sections = [_head(name, assessment, now), _to_do(assessment), _curve(assessment), _skills(assessment)]
    sections += [_group(title, names, assessment) for title, names in _GROUPS]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<meta name='viewport' content='width=device-width'><title>{escape(name)}: data assessment</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(filter(None, sections)) + "\n</body></html>\n"
    )


def _head(name: str, assessment: Assessment, now: float) -> str:
    failed, warned = len(assessment.failures), len(assessment.warnings)
    verdict = "fail" if failed else "warn" if warned else "pass"
    said = {
        "fail": f"Not fit to train on: {_count(failed, 'check')} failed"
        + (f", {_count(warned, 'warning')}." if warned else "."),
        "warn": f"Fit to train on, with {_count(warned, 'warning')}.",
        "pass": "Fit to train on. Nothing was found.",
    }[verdict]
    return (
        f"<h1>{escape(name)}</h1><p class='dim'>Data assessment of {assessment.rows:,} rows, {_when(now)}</p>"
        f"<p class='lead'>{_mark(verdict)} {said}</p>"
    )


def _to_do(assessment: Assessment) -> str:
    found = sorted((*assessment.failures, *assessment.warnings), key=lambda check: _RANK[check.verdict])
    if not found:
        return ""
    rows = "".join(
        f"<tr><td>{_mark(check.verdict)}</td><td>{escape(check.message)}<br>"
        f"<span class='advice'>{escape(check.advice)}</span></td></tr>"
        for check in found
    )
    return f"<h2>What to do</h2><table>{rows}</table>"


def _curve(assessment: Assessment) -> str:
    """The learning curve: points measured, the fitted line, and its interval up to four times the rows."""
    check = _find(assessment, "enough_rows")
    if check is None or "curve" not in check.evidence:
        return ""
    curve: Mapping[str, Any] = check.evidence["curve"]
    ahead = [float(size) for size in curve["ahead"]]
    low, high = ([1.0 - float(one) for one in curve[key]] for key in ("high", "low"))
    points = [(float(size), 1.0 - float(error)) for size, error in zip(curve["sizes"], curve["errors"], strict=True)]
    steps = [ahead[0] * (ahead[-1] / ahead[0]) ** (step / 60) for step in range(61)]
    line = [(size, 1.0 - curve["a"] - curve["b"] * size ** -curve["c"]) for size in steps]
    every = [*low, *high, *(y for _, y in points)]
    bottom, top = min(every), max(every)
    margin = max(0.05 * (top - bottom), 1e-6)
    bottom, top = bottom - margin, top + margin

    def x(size: float) -> float:
        return _LEFT + math.log(size / ahead[0]) / math.log(ahead[-1] / ahead[0]) * (_WIDTH - _LEFT - 10)

    def y(value: float) -> float:
        return (_HEIGHT - _BOTTOM) * (1 - (value - bottom) / (top - bottom))

    share = 1.0 if "R²" in check.message else 0.5

    def scale(value: float) -> float:
        return 1.0 - share + share * value

    band = [*zip(ahead, high, strict=True), *reversed(list(zip(ahead, low, strict=True)))]
    drawn = [
        f"<polygon points='{_path(band, x, y)}' fill='#0969da' fill-opacity='.12'/>",
        f"<polyline points='{_path(line, x, y)}' fill='none' stroke='#0969da'/>",
        *(
            f"<circle cx='{x(size):.1f}' cy='{y(value):.1f}' r='3.5' fill='#24292f'><title>{size:,.0f} rows: "
            f"{scale(value):.4f}</title></circle>"
            for size, value in points
        ),
        f"<line x1='{x(points[-1][0]):.1f}' x2='{x(points[-1][0]):.1f}' y1='0' y2='{_HEIGHT - _BOTTOM}' stroke='#8b949e' "
        "stroke-dasharray='3 3'/>",
        *(
            f"<text x='{x(size):.0f}' y='{_HEIGHT - 8}' text-anchor='{'end' if size == ahead[-1] else 'start' if size == ahead[0] else 'middle'}'>{size:,.0f}</text>"
            for size in ahead[::2]
            if size != ahead[-2]
        ),
        f"<text x='0' y='12'>{scale(top):.3f}</text><text x='0' y='{_HEIGHT - _BOTTOM}'>{scale(bottom):.3f}</text>",
    ]
    return (
        "<h2>Would more rows help?</h2>"
        f"<p>{_mark(check.verdict)} {escape(check.message)}</p>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='learning curve'>{''.join(drawn)}</svg>"
        "<p class='dim'>Skill on held-out rows of quick models (dots: median of several) by rows trained on, logarithmic; the "
        "fitted curve with its 95 % interval; right of the dashed line it is carried on.</p>"
    )


def _path(points: Sequence[tuple[float, float]], x: Any, y: Any) -> str:
    return " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)


def _skills(assessment: Assessment) -> str:
    """What each column tells alone, and how often it mattered more than the best shuffled copy."""
    related = _find(assessment, "unrelated")
    scores: Mapping[str, float] = next((c.evidence["scores"] for c in assessment.checks if "scores" in c.evidence), {})
    if not scores:
        return ""
    hits: Mapping[str, int] = related.evidence.get("hits", {}) if related else {}
    runs = related.evidence.get("runs", 0) if related else 0
    idle = set(related.evidence.get("columns", ())) if related else set()
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td><svg viewBox='0 0 100 10' style='width:10rem'>"
        f"<rect width='{100 * min(max(score, 0.0), 1.0):.1f}' height='10' fill='#0969da'/></svg></td>"
        f"<td class='n'>{score:.3f}</td><td class='n'>{f'{hits[name]} of {runs}' if name in hits else ''}</td>"
        f"<td>{'unrelated' if name in idle else ''}</td></tr>"
        for name, score in sorted(scores.items(), key=lambda pair: -pair[1])[:60]
    )
    return (
        "<h2>What each column tells</h2><table><tr><th>column</th><th colspan='2' class='n'>score alone</th>"
        f"<th class='n'>beat the best shuffled copy</th><th></th></tr>{rows}</table>"
    )


def _group(title: str, names: Sequence[str], assessment: Assessment) -> str:
    found = [check for check in assessment.checks if check.check in names]
    if not found:
        return ""
    found.sort(key=lambda check: (_RANK[check.verdict], list(names).index(check.check)))
    rows = "".join(
        f"<tr><td>{_mark(check.verdict)}</td><td><code>{escape(check.name)}</code></td><td>{escape(check.message)}</td>"
        f"<td class='n'>{_number(check.value)}</td><td class='n'>{_number(check.limit)}</td></tr>"
        for check in found
    )
    head = "<tr><th></th><th>check</th><th>what was found</th><th class='n'>number</th><th class='n'>limit</th></tr>"
    return f"<h2>{title}</h2><table>{head}{rows}</table>"


def _find(assessment: Assessment, name: str) -> CheckResult | None:
    return next((check for check in assessment.checks if check.name == name), None)


def _mark(verdict: str) -> str:
    return f"<span class='mark {verdict}'>{verdict}</span>"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
