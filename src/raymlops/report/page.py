"""What the pages for people share: one HTML file, drawn with inline SVG, that needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from html import escape

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:1rem 0 .25rem}
p.lead{font-size:1.05rem}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem .25rem 0;
vertical-align:top;border-bottom:1px solid #e3e6ea}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.dim{color:#667}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#556}.s2{color:#9a6700}
.s3{color:#bc4c00}.s4{color:#cf222e}.ok{color:#1a7f37}code{font-size:.85em;overflow-wrap:anywhere}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of sections that are HTML already; ``title`` is text."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Cells are HTML already; the columns in ``right`` hold numbers."""
    classes = dict.fromkeys(right, " class='n'")
    top = "".join(f"<th{classes.get(i, '')}>{name}</th>" for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{classes.get(i, '')}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def bar(share: float, colour: str = "#bc4c00") -> str:
    """A bar as long as ``share`` of its place, from 0 to 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f"<svg viewBox='0 0 100 10' style='width:8rem'><rect width='{width:.1f}' height='10' fill='{colour}'/></svg>"


def number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and math.isfinite(value) else ""


def when(at: float) -> str:
    return datetime.fromtimestamp(at, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
