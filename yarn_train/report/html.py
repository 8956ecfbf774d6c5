"""The report as one HTML file that needs no other and asks no network: tables, figures as data, and plotly's script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .blocks import Block, Code, Folded, Heading, Picture
from .figures.base import SCALE, Figure
from .plotly import for_script, packed_script
from .tables import Grid, to_html

ASSETS = Path(__file__).parent / "assets"
GENERATOR = '<meta name="generator" content="yarn-train report">'
# Nothing is loaded from anywhere, but for the PNG files beside the page where scripts are off.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' file: data: blob:"


def as_html(page: Sequence[Block], title: str) -> str:
    """The page; without figures, or where plotly is not installed, it has no script of plotly's."""
    figures: dict[str, Figure] = {}
    body = [_block(block, figures) for block in page]
    script = packed_script() if figures else ""
    if script:
        body += [f'<script type="application/json" id="figures">{for_script(figures)}</script>']
        body += [f'<script type="text/plain" id="plotly">{script}</script>']
    head = [
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{GENERATOR}',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_asset('page.css')}</style>",
    ]
    lines = ["<!doctype html>", '<html lang="en"><head>', *head, "</head>", "<body>", *body]
    return "\n".join([*lines, f"<script>{_asset('page.js')}</script>", "</body></html>\n"])


def is_report(path: Path) -> bool:
    """Whether an index.html was written here, so that it may be replaced."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return GENERATOR in file.read(2000)


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _block(block: Block, figures: dict[str, Figure]) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Picture):
        return _picture(block, figures)
    if isinstance(block, Grid):
        return f'<div class="wide">\n{to_html(block)}</div>'
    if isinstance(block, Code):
        return f"<pre><code>{html.escape(block.text)}</code></pre>"
    if isinstance(block, Folded):
        title = html.escape(block.title)
        return f'<details><summary>{title}</summary><div class="wide">\n{to_html(block.grid)}</div></details>'
    return f"<p>{html.escape(block)}</p>"


def _picture(block: Picture, figures: dict[str, Figure]) -> str:
    parts = []
    for title, figure in block.figures:
        name = f"f{len(figures)}"
        figures[name] = figure
        caption = f"<h3>{html.escape(title)}</h3>" if title else ""
        size = f"min-height:{figure['layout']['height']}px;max-width:{figure.get('widest', 9999)}px"
        parts.append(f'<div>{caption}<div class="plot" id="{name}" style="{size}"></div></div>')
    label = html.escape(block.text)
    still = f'<img alt="{label}" src="{html.escape(block.path.name)}">' if block.path else ""
    if not parts or not packed_script():
        return f"<p>{still}</p>"
    kind = "single" if len(parts) == 1 else "panels pairs" if len(parts) in (2, 4) else "panels"
    instead = f"<noscript>{still}</noscript>" if still else ""
    above = f"<p>{html.escape(block.caption)}</p>" if block.caption else ""
    inside = f'{above}<div class="{kind}">{"".join(parts)}</div>{_scale(block.scale)}{instead}'
    return f'<figure aria-label="{label}">{inside}</figure>'


def _scale(ends: tuple[str, str] | None) -> str:
    if ends is None:
        return ""
    low, high = map(html.escape, ends)
    stops = ",".join(color for _, color in SCALE)
    strip = f'<span class="strip" style="background:linear-gradient(to right,{stops})"></span>'
    return f'<figcaption class="scale">{low} {strip} {high}</figcaption>'
