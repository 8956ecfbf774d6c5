"""Perplexity over alpha and beta, of both ramps at every factor, without training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..rows import Ramp
from ..tables import number
from .base import LINES, SCALE, Figure, figure, text
from .looks import Panels

DARK = 0.2  # of the colours' range: text on these is white
DEFAULT = (1.0, 32.0, "by_index")
RAMPS = {"by_index": "by index", "by_rotations": "by rotations (Eq. 18)"}


def ramps(rows: Sequence[Ramp]) -> Panels:
    """One panel per factor, window and ramp; colours are shared by the ramps of one factor and window.

    The lowest cell of a factor and window is framed, the default is marked with a dot.
    """
    panels = []
    for factor, window in sorted({(row.factor, row.window) for row in rows}):
        here = [row for row in rows if (row.factor, row.window) == (factor, window)]
        lowest = best(here)
        if lowest is None:
            continue
        ends = _range([row.perplexity for row in here if math.isfinite(row.perplexity)])
        for name in dict.fromkeys(row.ramp for row in here):
            title = f"s = {factor:g} at {window:,} tokens, {RAMPS.get(name, name)}"
            panels.append((title, _map([row for row in here if row.ramp == name], lowest, ends)))
    return panels


def best(rows: Sequence[Ramp]) -> Ramp | None:
    """The row with the lowest perplexity."""
    return min((row for row in rows if math.isfinite(row.perplexity)), key=lambda row: row.perplexity, default=None)


def is_default(row: Ramp) -> bool:
    """Whether these are the values that training takes if nothing else is said."""
    return (row.alpha, row.beta, row.ramp) == DEFAULT


def _range(values: Sequence[float]) -> tuple[float, float]:
    """What is hopeless does not make all the rest look alike."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    high = min(ordered[-1], middle + 3 * (middle - ordered[0])) if middle > ordered[0] else ordered[-1]
    return ordered[0], high if high > ordered[0] else ordered[0] + 1e-9


def _map(rows: Sequence[Ramp], lowest: Ramp, ends: tuple[float, float]) -> Figure:
    alphas, betas = sorted({row.alpha for row in rows}), sorted({row.beta for row in rows})
    cells = {(row.beta, row.alpha): row for row in rows}
    low, high = ends
    grid = [[cells.get((beta, alpha)) for alpha in alphas] for beta in betas]
    limit = low + DARK * (high - low)

    def layer(dark: bool, ink: str) -> dict[str, Any]:
        shown = [[c if c and math.isfinite(c.perplexity) and (c.perplexity < limit) == dark else None for c in row]
                 for row in grid]  # fmt: skip
        return {
            "type": "heatmap",
            "x": [f"{alpha:g}" for alpha in alphas],
            "y": [f"{beta:g}" for beta in betas],
            "z": [[c.perplexity if c else None for c in row] for row in shown],
            "text": [[_said(c) for c in row] for row in shown],
            "customdata": [[_interval(c) for c in row] for row in shown],
            "texttemplate": "%{text}",
            "hovertemplate": "alpha %{x}, beta %{y}: %{z:.5g}%{customdata}<extra></extra>",
            "colorscale": SCALE,
            "zmin": low,
            "zmax": high,
            "xgap": 3,
            "ygap": 3,
            "showscale": False,
            "textfont": {"color": ink},
        }

    frame = [
        {"type": "rect", "x0": j - 0.48, "x1": j + 0.48, "y0": i - 0.48, "y1": i + 0.48}
        | {"line": {"color": LINES[1], "width": 4}}
        for i, row in enumerate(grid)
        for j, cell in enumerate(row)
        if cell is lowest
    ]
    made = figure(
        [layer(True, "#ffffff"), layer(False, "#1d2a33")],
        140 + 46 * len(betas),
        xaxis={"type": "category", "title": {"text": "alpha"}, "showgrid": False},
        yaxis={"type": "category", "title": {"text": "beta"}, "showgrid": False},
        shapes=frame,
    )
    return {**made, "widest": 160 + 120 * len(alphas)}


def _said(cell: Ramp | None) -> str:
    return "" if cell is None else text(number(cell.perplexity) + (" •" if is_default(cell) else ""))


def _interval(cell: Ramp | None) -> str:
    known = cell is not None and math.isfinite(cell.low + cell.high)
    return f" ({cell.low:.4g} to {cell.high:.4g})" if cell is not None and known else ""
