"""What all interactive figures are made of: plain dicts in plotly's JSON schema, numbers shortened, texts escaped.

Beside plotly's ``data`` and ``layout`` a figure may have ``controls``, choices above it, which assets/page.js applies:
``[{"name": "x", "label": "over", "options": ["steps", "tokens"]}, ...]``. A trace with ``xs`` takes its x by the choice
of "x", one with ``when`` is drawn where all choices named there are made; ``titles`` names the x axis for each choice
of "x". A line with ``night`` has that colour on dark pages. ``widest`` is the width in pixels beyond which a figure
does not grow.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

Figure = dict[str, Any]

GREY = "#8a8a8a"
# Okabe and Ito, then Tol: they stay apart for colour-blind readers. page.js lightens the dark ones on dark pages.
LINES = ("#0072B2", "#D55E00", "#117733", "#882255", "#E69F00", "#56B4E9", "#CC79A7", "#332288")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
SHOWN_BY_NAME = len(LINES)  # of more lines than colours only the best is named
# Of one lightness after another, dark for low: the best stands out, in grey print and for colour-blind readers too.
SCALE = [(0.0, "#084081"), (0.25, "#2b8cbe"), (0.5, "#7bccc4"), (0.75, "#bfe5c0"), (1.0, "#e6f5e0")]


def text(value: object, longest: int = 0) -> str:
    """A text that plotly shows as it is; it reads a little HTML otherwise."""
    said = str(value)
    said = f"{said[: longest - 1]}…" if longest and len(said) > longest else said
    return html.escape(said, quote=False)


def short(values: Iterable[float | None], digits: int = 5) -> list[float | None]:
    """Numbers with so many significant digits, None for what is not finite: JSON has no NaN."""
    return [
        None if v is None or not math.isfinite(v) else int(v) if v == int(v) else float(f"{v:.{digits}g}")
        for v in values
    ]


def figure(data: Sequence[dict[str, Any]], height: int = 420, **layout: Any) -> Figure:
    """A figure; axes that are not mentioned get plotly's defaults and the page's colours."""
    return {"data": list(data), "layout": {"height": height, **layout}}


def context_ticks(values: Iterable[int]) -> dict[str, Any]:
    """Axis of context windows, logarithmic, ticks at the powers that occur: 256, 512, 1k."""
    ticks = sorted(set(values))
    return {"type": "log", "tickvals": ticks, "ticktext": [tokens(v) for v in ticks], "minor": {"showgrid": False}}


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5 of each decade, or at 1 alone where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [d * 10.0**e for e in decades for d in digits if low / 1.5 <= d * 10.0**e <= high * 1.5]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}


def tokens(value: float) -> str:
    """4096 as 4k."""
    return f"{value / 1024:g}k" if value >= 1024 and value % 512 == 0 else f"{value:,.0f}"


def said(value: Any) -> str:
    """An option's value as it is typed."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
