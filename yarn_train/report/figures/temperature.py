"""Perplexity against the temperature t, without training, and the line through the best t of every factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..rows import Best, Line, Warmth
from .base import LINES, Figure, figure, short
from .looks import BAND, Panels, above, band, vertical

PAPER = (0.1, 1.0)  # sqrt(1/t) = 0.1 ln s + 1, the paper's Eq. 22


def rule(factor: float) -> float:
    """The paper's t at a factor."""
    return (PAPER[0] * math.log(factor) + PAPER[1]) ** -2


def temperatures(rows: Sequence[Warmth], best: Sequence[Best]) -> Panels:
    """One panel per factor and window: perplexity over t, the best t with its interval and the paper's marked."""
    found = {b.factor: b for b in best}
    places = sorted({(row.factor, row.window) for row in rows})
    several = len(places) > len({factor for factor, _ in places})
    panels = []
    for factor, window in places:
        here = [row for row in rows if (row.factor, row.window) == (factor, window)]
        curve = sorted(
            {r.temperature: r for r in here if math.isfinite(r.perplexity)}.values(), key=lambda r: r.temperature
        )
        if curve:
            title = f"s = {factor:g}" + (f", window {window:,}" if several else f" at {window:,} tokens")
            panels.append((title, _panel(curve, found.get(factor), factor)))
    return panels


def fit(best: Sequence[Best], line: Line | None) -> Figure | None:
    """sqrt(1/t) of the best t against ln s with its interval, the fitted line, and the paper's line."""
    best = sorted((b for b in best if b.factor > 0 and b.temperature > 0), key=lambda b: b.factor)
    if not best:
        return None
    x = [math.log(b.factor) for b in best]
    ends = [0.0, max(x) * 1.08 + 0.05]
    traces: list[dict[str, Any]] = [_straight(ends, *PAPER, "paper: 0.1 ln s + 1", {"dash": "dot", "color": "#8a8a8a"})]
    if line is not None:
        known = [line.a_low, line.a_high, line.b_low, line.b_high]
        if all(map(math.isfinite, known)):
            steps = [ends[0] + (ends[1] - ends[0]) * i / 24 for i in range(25)]
            low, high = corridor(line, x, steps)
            traces.append(band(steps, low, high, LINES[0], "fit"))
        name = f"fit: {line.a:.3f} ln s + {line.b:.3f}"
        traces.append({**_straight(ends, line.a, line.b, name, {"color": LINES[0]}), "legendgroup": "fit"})
    traces.append(_points(x, best))
    return figure(
        traces,
        400,
        xaxis={
            "title": {"text": "factor s (logarithmic)"},
            "tickvals": short(x),
            "ticktext": [f"{b.factor:g}" for b in best],
            "range": ends,
        },
        yaxis={"title": {"text": "square root of 1/t"}},
        legend={"traceorder": "reversed"},
        hovermode="closest",
    )


def corridor(line: Line, points: Sequence[float], x: Sequence[float]) -> tuple[list[float], list[float]]:
    """95 % band of the fitted line at `x`, from the intervals of its coefficients.

    A line through points (values of ln s) is surest at their mean m, and its slope is independent of its height there:
    half(x)^2 = half(m)^2 + (x - m)^2 half(a)^2, where half(b)^2 = half(m)^2 + m^2 half(a)^2, as in least squares.
    """
    slope, height = (line.a_high - line.a_low) / 2, (line.b_high - line.b_low) / 2
    mean = math.fsum(points) / len(points)
    least = max(0.0, height**2 - (mean * slope) ** 2)
    half = [math.sqrt(least + ((v - mean) * slope) ** 2) for v in x]
    fitted = [line.a * v + line.b for v in x]
    return [v - h for v, h in zip(fitted, half, strict=True)], [v + h for v, h in zip(fitted, half, strict=True)]


def _points(x: Sequence[float], best: Sequence[Best]) -> dict[str, Any]:
    y = [b.temperature**-0.5 for b in best]
    # the root turns the interval round: its lower end belongs to the higher t
    up = [max(0.0, b.low**-0.5 - v) if b.low > 0 else 0.0 for b, v in zip(best, y, strict=True)]
    down = [max(0.0, v - b.high**-0.5) if b.high > 0 else 0.0 for b, v in zip(best, y, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": short(up), "arrayminus": short(down)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "best t",
        "x": short(x),
        "y": short(y),
        "marker": {"size": 9, "color": LINES[1]},
        "error_y": {**bars, "color": LINES[1], "thickness": 1.6, "width": 5},
        "customdata": [f"s = {b.factor:g}: t = {b.temperature:.3f} ({b.low:.3f} to {b.high:.3f})" for b in best],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _straight(x: Sequence[float], a: float, b: float, name: str, look: dict[str, Any]) -> dict[str, Any]:
    y = short(a * v + b for v in x)
    return {"type": "scatter", "mode": "lines", "x": short(x), "y": y, "name": name, "line": {"width": 2, **look}}


def _panel(curve: Sequence[Warmth], best: Best | None, factor: float) -> Figure:
    # No area around it: its interval is how hard documents are, which is the same at every t and hides the curve.
    said = [f" ({row.low:.4g} to {row.high:.4g})" if math.isfinite(row.low + row.high) else "" for row in curve]
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": short(row.temperature for row in curve),
        "y": short(row.perplexity for row in curve),
        "line": {"color": LINES[0], "width": 2.5},
        "marker": {"color": LINES[0], "size": 7},
        "customdata": said,
        "hovertemplate": "perplexity %{y:.4g}%{customdata} at t = %{x:.3f}<extra></extra>",
    }
    paper = best.rule if best and math.isfinite(best.rule) else rule(factor)
    shapes, names = [vertical(paper)], [above(paper, "rule")]
    if best:
        mark = vertical(best.temperature, dash="solid")
        shapes.append({**mark, "line": {**mark["line"], "color": LINES[1], "width": 2}})
        names.append({**above(best.temperature, "best"), "font": {"color": LINES[1]}, "yshift": 13})
        if math.isfinite(best.low + best.high):
            shapes.append({"type": "rect", "x0": best.low, "x1": best.high, "y0": 0, "y1": 1, "yref": "paper",
                           "fillcolor": LINES[1], "opacity": BAND, "line": {"width": 0}, "layer": "below"})  # fmt: skip
    return figure(
        [trace],
        340,
        xaxis={"title": {"text": "temperature t"}},
        yaxis={"title": {"text": "perplexity"}},
        shapes=shapes,
        annotations=names,
        margin={"t": 44},
        showlegend=False,
    )
