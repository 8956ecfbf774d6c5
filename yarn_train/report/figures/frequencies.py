"""What a method does to the frequencies: scaled over original, for every pair of head dimensions."""

from __future__ import annotations

from typing import Any

from ..collect import Frequencies, Run, Table
from ..style import identity
from .base import DASHES, GREY, Figure, figure, short, text

POWERS = [2.0**-i for i in range(12)]
METHOD_NAMES = {"pi": "PI", "ntk": "NTK-aware", "ntk_by_parts": "NTK-by-parts", "yarn": "YaRN"}


def frequencies(run: Run) -> list[tuple[str, Figure]]:
    """One figure per factor, by its title; tables that agree share a line."""
    data = run.frequencies
    if data is None:
        return []
    factors = sorted({table.factor for table in data.tables if table.factor > 1})
    marks = [
        (pair, name) for name in ("beta", "alpha") if (pair := data.pair_of(run.option(f"rope.{name}"))) is not None
    ]
    return [(f"s = {factor:g}", _panel(data, factor, marks)) for factor in factors]


def alike(data: Frequencies, factor: float) -> dict[tuple[float, ...], tuple[str, list[Table]]]:
    """Scaled over original frequency of every pair -> the name of that line, and the tables of `factor` that have it.

    Lines are named by their methods, or by labels where methods do not tell them apart, as in a sweep.
    """
    base = data.base()
    lines: dict[tuple[float, ...], list[Table]] = {}
    for table in data.tables:
        if table.factor == factor:
            kept = tuple(round(scaled / f, 6) for scaled, f in zip(table.inv_freq, base, strict=True))
            lines.setdefault(kept, []).append(table)
    names = {kept: " / ".join(dict.fromkeys(map(_method, tables))) for kept, tables in lines.items()}
    if len(set(names.values())) < len(names):
        names = {kept: " / ".join(t.label for t in tables) for kept, tables in lines.items()}
    return {kept: (names[kept], tables) for kept, tables in lines.items()}


def _method(table: Table) -> str:
    ramp = " (Eq. 18 ramp)" if table.ramp == "by_rotations" else ""
    return METHOD_NAMES.get(table.method, table.method) + ramp


def _panel(data: Frequencies, factor: float, marks: list[tuple[float, str]]) -> Figure:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": list(range(len(kept))),
            "y": short(kept),
            "name": text(name, 60),
            "line": {"color": identity(tables[-1], ())[0], "width": 2, "dash": DASHES[number % len(DASHES)]},
            "marker": {"size": 4, "color": identity(tables[-1], ())[0]},
            "hovertemplate": "pair %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
        }
        for number, (kept, (name, tables)) in enumerate(alike(data, factor).items())
    ]
    ticks = [p for p in POWERS if p >= 0.7 / factor]
    names = ["1" if p == 1 else f"1/{1 / p:g}" for p in ticks]
    dotted: dict[str, Any] = {"type": "line", "line": {"color": GREY, "width": 1, "dash": "dot"}, "layer": "below"}
    return figure(
        traces,
        430,
        xaxis={"title": {"text": "pair of head dimensions (fast to slow)"}},
        yaxis={"type": "log", "title": {"text": "frequency kept"}, "tickvals": ticks, "ticktext": names},
        legend={"orientation": "h"},
        showlegend=True,
        shapes=[
            {**dotted, "x0": 0, "x1": 1, "xref": "paper", "y0": 1, "y1": 1},
            *({**dotted, "x0": pair, "x1": pair, "yref": "paper", "y0": 0, "y1": 1} for pair, _ in marks),
        ],
        annotations=[
            {"x": pair, "y": 1, "yref": "paper", "yanchor": "bottom", "text": name, "showarrow": False}
            for pair, name in marks
        ],
    )
