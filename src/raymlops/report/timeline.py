"""The picture on the report page: loss, severity and what moved over one axis of time, as inline SVG without a script.

Colours are CSS classes, so that the page's light and dark palettes hold here too. Everything has a ``<title>``, which
browsers show when one points at it and screen readers read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from itertools import pairwise
from typing import Any

from raymlops.events import Event
from raymlops.monitor.ledger import LossLedger

MARKS = {
    "retrain_started": ("r", "retraining started"),
    "promoted": ("p", "promoted"),
    "rolled_back": ("b", "rolled back"),
    "needs_person": ("h", "a person is asked"),
}
"""Events that the picture marks: CSS class and words."""
SEVERITIES = ("nothing", "sure but small", "data moved", "score moved", "measured harm")

_WIDTH, _LEFT, _RIGHT = 960.0, 132.0, 8.0
_TOP, _LOSS_H, _ROW_H, _GAP = 16.0, 190.0, 18.0, 14.0
_COLUMNS = 8
_LEAST_W = 2.0


def timeline(watch: Mapping[str, Any], events: Sequence[Event]) -> str:
    """The picture, or a sentence when there is nothing to draw yet.

    Parameters
    ----------
    watch : the store's document of that kind
    events : of the endpoint, in order
    """
    insight = watch.get("insight") or {}
    lines, promised, block_s = _losses(insight)
    windows = list(insight.get("windows") or ())
    times = [(at, at + block_s) for line in lines.values() for at, _, _ in line]
    times += [(item["from"], item["to"]) for item in windows]
    if not times:
        return "<p class='dim'>No window has been full, and no labels have come yet.</p>"
    first, last = min(item[0] for item in times), max(item[1] for item in times)
    axis = _Axis(first, max(last, first + 1.0))
    rows = _moved_rows(windows)
    loss_bottom = _TOP + _LOSS_H
    strip_top = loss_bottom + _GAP
    height = strip_top + _ROW_H * (1 + len(rows)) + 30
    drawn = [
        *_grid(axis, strip_top + _ROW_H * (1 + len(rows))),
        *_loss_drawn(axis, lines, promised, block_s),
        *_strip(axis, windows, strip_top),
        *(part for i, row in enumerate(rows) for part in _heat(axis, row, windows, strip_top + _ROW_H * (i + 1))),
        *_marks(axis, events, strip_top + _ROW_H * (1 + len(rows))),
    ]
    label = "mean loss, severity of each window, and what moved, over time"
    legend = " ".join(f"<span class='key'><i class='m {css}'></i>{words}</span>" for css, words in MARKS.values())
    scale = " ".join(f"<span class='key'><i class='s{i}'></i>{words}</span>" for i, words in enumerate(SEVERITIES))
    return (
        f"<div class='scroll'><svg viewBox='0 0 {_WIDTH:.0f} {height:.0f}' role='img' aria-label='{label}'>"
        f"{''.join(drawn)}</svg></div>"
        f"<p class='legend'>{legend}<br>{scale}</p>"
        "<p class='dim'>Loss: mean of the served rows whose labels came, by when they were served; the dashed line is what is "
        "accepted of that version. Below it one cell a window: its severity, then each column's distance over its noise.</p>"
    )


class _Axis:
    """Seconds to pixels."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last

    def __call__(self, at: float) -> float:
        share = (min(max(at, self.first), self.last) - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def cell(self, start: float, end: float) -> str:
        x = self(start)
        return f"x='{x:.1f}' width='{max(self(end) - x - 0.6, _LEAST_W):.1f}'"


def _losses(
    insight: Mapping[str, Any],
) -> tuple[dict[int, list[tuple[float, float, int]]], dict[int, Sequence[float]], float]:
    if not insight.get("ledger"):
        return {}, {}, 1.0
    ledger = LossLedger(insight["ledger"]["block_s"])
    ledger.load(insight["ledger"])
    promised = {int(version): pair for version, pair in insight["promised"].items()}
    return {version: ledger.blocks(version) for version in promised if ledger.blocks(version)}, promised, ledger.block_s


def _grid(axis: _Axis, bottom: float) -> list[str]:
    parts = []
    for i in range(5):
        at = axis.first + (axis.last - axis.first) * i / 4
        anchor = ("start", "middle", "middle", "middle", "end")[i]
        x = axis(at)
        parts.append(f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{bottom:.0f}'/>")
        parts.append(
            f"<text x='{x:.1f}' y='{bottom + 18:.0f}' text-anchor='{anchor}'>{_day(at, axis.last - axis.first)}</text>"
        )
    return parts


def _loss_drawn(
    axis: _Axis,
    lines: Mapping[int, list[tuple[float, float, int]]],
    promised: Mapping[int, Sequence[float]],
    block_s: float,
) -> list[str]:
    points = [loss for line in lines.values() for _, loss, _ in line]
    if not points:
        return [f"<text x='{_LEFT}' y='{_TOP + _LOSS_H / 2}'>No labels have come yet.</text>"]
    top = 1.12 * max(*points, *(promised[version][1] for version in lines), 1e-12)

    def y(loss: float) -> float:
        return _TOP + _LOSS_H * (1 - loss / top)

    parts = ["<text x='0' y='12' class='title'>mean loss</text>"]
    for share in (0.0, 0.5, 1.0):
        value = top / 1.12 * share
        parts.append(
            f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y(value):.1f}' y2='{y(value):.1f}'/>"
        )
        parts.append(f"<text x='{_LEFT - 8}' y='{y(value) + 4:.1f}' text-anchor='end'>{value:.3g}</text>")
    for version, line in lines.items():
        start, end, limit = line[0][0], line[-1][0] + block_s, promised[version][1]
        middle = [(axis(at + block_s / 2), y(loss), at, loss, count) for at, loss, count in line]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, *_ in middle)
        parts.append(
            f"<line class='limit' x1='{axis(start):.1f}' x2='{axis(end):.1f}' y1='{y(limit):.1f}' y2='{y(limit):.1f}'>"
            f"<title>version {version}: accepted up to {limit:.4f}</title></line>"
            f"<polyline class='loss' points='{path}'/>"
            f"<text x='{axis(start) + 3:.1f}' y='{_TOP + _LOSS_H - 4:.1f}'>v{version}</text>"
        )
        parts += [
            f"<circle class='{'over' if loss > limit else 'dot'}' cx='{px:.1f}' cy='{py:.1f}' r='2.6'><title>version "
            f"{version}, {when(at)}: mean loss {loss:.4f} of {count:,} labels</title></circle>"
            for px, py, at, loss, count in middle
        ]
    return parts


def _strip(axis: _Axis, windows: Sequence[Mapping[str, Any]], top: float) -> list[str]:
    if not windows:
        return [f"<text x='0' y='{top + 13:.0f}'>No window has been full yet.</text>"]
    parts = [f"<text x='0' y='{top + 13:.0f}' class='title'>severity</text>"]
    for item, (start, end) in zip(windows, _spans(windows), strict=True):
        said = f"window {item['window']} of version {item['version']}, {when(item['from'])}, {item['rows']:,} rows"
        told = SEVERITIES[int(item["severity"])]
        parts.append(
            f"<rect class='s{int(item['severity'])}' {axis.cell(start, end)} y='{top:.1f}' height='{_ROW_H - 3}'>"
            f"<title>{said}: {told}</title></rect>"
        )
    return parts


def _moved_rows(windows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that moved most over all windows."""
    total: dict[str, float] = defaultdict(float)
    for item in windows:
        for column, distance in item["moved"].items():
            total[column] += distance
    return [column for column, _ in sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:_COLUMNS]]


def _heat(axis: _Axis, column: str, windows: Sequence[Mapping[str, Any]], top: float) -> list[str]:
    shown = column if len(column) <= 18 else column[:17] + "…"
    parts = [f"<text x='0' y='{top + 13:.0f}'>{escape(shown)}<title>{escape(column)}</title></text>"]
    for item, (start, end) in zip(windows, _spans(windows), strict=True):
        distance = item["moved"].get(column)
        if distance is None:
            continue
        # The eye tells lightness, not area: a distance of 0.05 must be seen, and one of 0.5 be plain.
        strength = 0.25 + 0.75 * min(distance / 0.5, 1.0)
        parts.append(
            f"<rect class='heat' fill-opacity='{strength:.2f}' {axis.cell(start, end)} y='{top:.1f}' height='{_ROW_H - 3}'>"
            f"<title>{escape(column)}, window {item['window']}, {when(item['from'])}: {distance:.3f}</title></rect>"
        )
    return parts


def _spans(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """From when to when a window's cell is drawn: up to the next one, so that a short one is seen."""
    starts = [float(item["from"]) for item in windows]
    ends = [max(float(item["to"]), start) for item, start in zip(windows, starts, strict=True)]
    drawn = [
        (start, max(end, min(after, 2 * end - start + 1.0)))
        for (start, after), end in zip(pairwise(starts), ends[:-1], strict=True)
    ]
    return [*drawn, (starts[-1], ends[-1])]


def _marks(axis: _Axis, events: Sequence[Event], bottom: float) -> list[str]:
    return [
        f"<line class='m {MARKS[event.kind][0]}' x1='{axis(event.at):.1f}' x2='{axis(event.at):.1f}' y1='{_TOP}' "
        f"y2='{bottom:.0f}'><title>{when(event.at)}: {MARKS[event.kind][1]}"
        f"{_of(event.body.get('version'))}</title></line>"
        for event in events
        if event.kind in MARKS and axis.first <= event.at <= axis.last
    ]


def _of(version: object) -> str:
    return f", version {version}" if isinstance(version, int) else ""


def when(at: float) -> str:
    """Wall seconds for a person, to the minute."""
    return datetime.fromtimestamp(at, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _day(at: float, length_s: float) -> str:
    form = "%Y-%m-%d" if length_s > 5 * 86_400.0 else "%m-%d %H:%M" if length_s > 3_600.0 else "%H:%M:%S"
    return datetime.fromtimestamp(at, tz=timezone.utc).strftime(form)
