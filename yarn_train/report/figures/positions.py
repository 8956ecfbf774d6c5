"""Loss against the position of a token: how much a model still gains from text far back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..rows import Gain, Position
from .base import Figure, context_ticks, figure, short, text
from .looks import Panels, above, band, is_base, looks, vertical

HOVER = "%{y:.4g} nats/token%{customdata}<extra>%{fullData.name}</extra>"


def positions(rows: Sequence[Position], marks: Sequence[tuple[float, str]]) -> Figure | None:
    """One line per label over logarithmic bins of positions, those of interest and the base with 95 % intervals.

    Args:
        marks: positions to mark, such as L, with their names.
    """
    rows = [row for row in rows if math.isfinite(row.loss)]
    if not rows:
        return None
    bands, lines = [], []
    for label, look in looks(rows).items():
        curve = sorted((row for row in rows if row.label == label), key=lambda row: (row.begin, row.window))
        curve = list({row.begin: row for row in curve}.values())  # of several windows the largest
        name, x = text(label, 48), [middle(row.begin, row.end) for row in curve]
        if (look.main or is_base(curve[0])) and all(math.isfinite(row.low + row.high) for row in curve):
            bands.append(band(x, [row.low for row in curve], [row.high for row in curve], look.color, label))
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": short(x, 8),
                "y": short(row.loss for row in curve),
                "name": name,
                "legendgroup": name,
                "customdata": [_where(row) for row in curve],
                "hovertemplate": HOVER,
                **look.lines(),
            }
        )
        lines[-1]["marker"]["size"] = 5
    return _over_positions([*bands, *lines], rows, marks, "loss (nats per token)", 440)


def gains(rows: Sequence[Gain], marks: Sequence[tuple[float, str]] = ()) -> Panels:
    """One panel per factor: nats per token that a temperature gains over t = 1, by position, one line per t."""
    panels = []
    for factor in sorted({row.factor for row in rows}):
        here = [row for row in rows if row.factor == factor and math.isfinite(row.improvement)]
        shades = temperatures_shades(sorted({row.temperature for row in here}))
        traces: list[dict[str, Any]] = []
        for t, color in shades.items():
            curve = sorted((row for row in here if row.temperature == t), key=lambda row: row.begin)
            x = [middle(row.begin, row.end) for row in curve]
            if len(shades) == 1 and all(math.isfinite(row.low + row.high) for row in curve):
                traces.append(band(x, [row.low for row in curve], [row.high for row in curve], color, f"t = {t:.3g}"))
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": short(x, 8),
                    "y": short(row.improvement for row in curve),
                    "name": f"t = {t:.3g}",
                    "legendgroup": f"t = {t:.3g}",
                    "line": {"color": color, "width": 2},
                    "marker": {"color": color, "size": 5},
                    "customdata": [f", positions {row.begin:,} to {row.end - 1:,}" for row in curve],
                    "hovertemplate": "%{y:.3g} nats better%{customdata}<extra>%{fullData.name}</extra>",
                }
            )
        if traces:
            made = _over_positions(traces, here, marks, "nats per token better than t = 1", 340)
            made["layout"]["shapes"].append(_zero())
            panels.append((f"s = {factor:g}", made))
    return panels


def temperatures_shades(values: Sequence[float]) -> dict[float, str]:
    """A colour for each temperature: from orange for the hottest to blue for the coldest."""
    colors = ("#0072B2", "#56B4E9", "#009E73", "#999933", "#E69F00", "#D55E00", "#882255", "#332288")
    return {t: colors[i * (len(colors) - 1) // max(1, len(values) - 1)] for i, t in enumerate(values)}


def middle(begin: int, end: int) -> float:
    """Where a bin stands on a logarithmic axis: the geometric mean of its first and last position, at least 1."""
    return math.sqrt(max(1, begin) * max(1, end - 1))


def _where(row: Position) -> str:
    interval = f" ({row.low:.3f} to {row.high:.3f})" if math.isfinite(row.low + row.high) else ""
    return f"{interval}, {row.begin:,} to {row.end - 1:,} tokens before it"


def _zero() -> dict[str, Any]:
    return {**vertical(0), "x0": 0, "x1": 1, "xref": "paper", "y0": 0, "y1": 0, "yref": "y"}


def _over_positions(
    traces: Sequence[dict[str, Any]], rows: Sequence[Position | Gain], marks: Sequence[tuple[float, str]], y: str,
    height: int,
) -> Figure:  # fmt: skip
    top = max(row.end for row in rows)
    inside = [(x, name) for x, name in marks if x <= top]
    exponents = range(0, math.floor(math.log2(top)) + 1, max(1, math.ceil(math.log2(top) / 8)))
    return figure(
        traces,
        height,
        xaxis={**context_ticks(2**e for e in exponents), "title": {"text": "tokens before the predicted one"}},
        yaxis={"title": {"text": y}},
        legend={"traceorder": "reversed"},
        hovermode="closest",
        shapes=[vertical(x) for x, _ in inside],
        annotations=[above(math.log10(x), name) for x, name in inside],
    )
