"""Perplexity against the context window, of one run's models or of many runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..collect import Run
from ..rows import Row
from ..tables import main_mode
from .base import Figure, context_ticks, figure, short, text
from .looks import above, band, is_base, looks, vertical

HOVER = "%{y:.4g}%{customdata} at %{x:,} tokens<extra>%{fullData.name}</extra>"


def perplexity(run: Run) -> Figure | None:
    """One line per label: trained models in colour with their 95 % interval, untrained ones grey and thin."""
    rows = main_mode(run.perplexity)
    labels = dict.fromkeys(row.label for row in rows)
    curves = {label: curve for label in labels if (curve := finite_curve(rows, label))}
    if not curves:
        return None
    lines, bands = [], []
    for label, look in looks(rows).items():
        curve = curves.get(label, [])
        if not curve:
            continue
        if look.main or is_base(curve[0]):
            bands += intervals(curve, look.color, label)
        name = text(label, 48)
        lines.append({**trace(curve), "name": name, "legendgroup": name, **look.lines()})
    return axes([*bands, *lines], {row.window for curve in curves.values() for row in curve}, lengths(run))


def intervals(curve: Sequence[Row], color: str, label: str) -> list[dict[str, Any]]:
    """The band of a curve's 95 % intervals, where it has them."""
    known = [row for row in curve if math.isfinite(row.low) and math.isfinite(row.high)]
    if len(known) < 2:
        return []
    x, low, high = ([getattr(row, key) for row in known] for key in ("window", "low", "high"))
    return [band(x, low, high, color, label)]


def trace(curve: Sequence[Row]) -> dict[str, Any]:
    """A line of windows and perplexities, without its looks."""
    x, y = [row.window for row in curve], short(row.perplexity for row in curve)
    said = [f" ({row.low:.4g} to {row.high:.4g})" if math.isfinite(row.low + row.high) else "" for row in curve]
    return {"type": "scatter", "mode": "lines+markers", "x": x, "y": y, "hovertemplate": HOVER, "customdata": said}


def axes(traces: Sequence[dict[str, Any]], windows: set[int], marks: Sequence[tuple[float, str]]) -> Figure:
    """Both axes logarithmic; `marks` are vertical lines with a name above."""
    low, high = min(windows), max(windows)
    inside = [(x, name) for x, name in marks if low <= x <= high]
    return figure(
        traces,
        460,
        xaxis={**context_ticks(windows), "title": {"text": "context window (tokens)"}},
        yaxis={"type": "log", "title": {"text": "perplexity"}, **perplexity_ticks(shown_values(traces))},
        legend={"traceorder": "reversed"},
        hovermode="closest",
        shapes=[vertical(x) for x, _ in inside],
        annotations=[above(math.log10(x), name) for x, name in inside],
    )


def lengths(run: Run) -> list[tuple[float, str]]:
    """L and what each stage was scaled to, by name."""
    length = run.original_length()
    factors = {f for stage in run.stages if isinstance(f := stage.option("rope.factor"), int | float)}
    factors |= {row.factor for row in run.perplexity if row.stage is not None}
    return [(f * length, "L" if f == 1 else f"s={f:g}") for f in sorted({1.0, *factors})] if length else []


def finite_curve(rows: Iterable[Row], label: str) -> list[Row]:
    """Finite points of one label by window; the later of two at the same window counts."""
    points = {row.window: row for row in rows if row.label == label}
    return [points[w] for w in sorted(points) if math.isfinite(points[w].perplexity)]


def shown_values(traces: Sequence[dict[str, Any]]) -> list[float]:
    """Values of the lines that are drawn at first."""
    return [v for t in traces if t.get("visible") != "legendonly" and not t.get("fill") for v in t["y"] if v]


def perplexity_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5, or more of them where the values lie close together."""
    low, high = min(values), max(values)
    digits = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    if high / low > 1e4:
        return {}
    if high / low < 2:  # between these ticks there might be none
        return {"type": "linear"}
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [d * 10.0**e for e in decades for d in digits if low / 1.3 <= d * 10.0**e <= high * 1.3]
    return {"tickvals": ticks, "ticktext": [f"{t:,.0f}" if t >= 10 else f"{t:g}" for t in ticks]}
