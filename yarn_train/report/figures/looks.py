"""What the lines of several models look like: those of interest in colour and thick, the others grey and thin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..style import TRAINED
from .base import DASHES, GREY, SYMBOLS, Figure, short, text

BAND = 0.16  # opacity of an interval
MARK = {"color": GREY, "width": 1, "dash": "dot"}


class Named(Protocol):
    """A row that names its model."""

    @property
    def label(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def stage(self) -> str | None: ...


@dataclass(frozen=True)
class Look:
    """One label's colour, line and marks; `main` where it is of interest: trained here, or the only kind there is."""

    color: str
    width: float
    dash: str
    symbol: str
    main: bool

    def lines(self) -> dict[str, Any]:
        """Line and marks of a trace."""
        line = {"color": self.color, "width": self.width, "dash": self.dash}
        return {"line": line, "marker": {"color": self.color, "size": 8 if self.main else 6, "symbol": self.symbol}}


def is_base(row: Named) -> bool:
    """Whether the row is of weights that nothing scaled."""
    return row.stage is None and row.method == "none"


def looks(rows: Sequence[Named]) -> dict[str, Look]:
    """Label -> look; those of interest last, so that they are drawn above the others. Legends are turned round."""
    first = {row.label: row for row in reversed(rows)}
    ordered = [first[label] for label in dict.fromkeys(row.label for row in rows)]
    stages = sorted({row.stage for row in rows if row.stage is not None})
    colors = {row.label: stages.index(row.stage) for row in ordered if row.stage is not None}
    if not stages:  # an evaluation alone: all that is not the base is what it is about
        others = [row for row in ordered if not is_base(row)]
        colors = {row.label: number for number, row in enumerate(others or ordered)}
    found: dict[str, Look] = {}
    for main in (False, True):
        for number, row in enumerate(row for row in ordered if (row.label in colors) == main):
            color = TRAINED[colors[row.label] % len(TRAINED)] if main else GREY
            solid = main and number < len(set(colors.values()))
            dash = DASHES[0] if solid else DASHES[1 + number % 3]
            found[row.label] = Look(color, 3 if main else 1.3, dash, SYMBOLS[number % len(SYMBOLS)], main)
    return found


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str, group: str) -> dict[str, Any]:
    """The area between two curves, which goes and comes with the legend's entry of its group."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": short([*x, *reversed(x)], 8),
        "y": short([*low, *reversed(high)], 6),
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},{BAND})",
        "line": {"width": 0, "color": color},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": text(group, 48),
    }


def vertical(x: float, dash: str = "dot") -> dict[str, Any]:
    """A line from the bottom to the top of a figure."""
    line = {**MARK, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line, "layer": "below"}


def above(x: float, said: str) -> dict[str, Any]:
    """A name above the axes; of a logarithmic axis, `x` is the logarithm."""
    return {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text(said), "showarrow": False}


def dots(rows: Sequence[tuple[str, float, float]], look: Look, name: str, hover: Sequence[str]) -> dict[str, Any]:
    """Marks at (name on the y axis, x) with horizontal bars of half the given length.

    With ``scattermode="group"`` in the layout, marks of several labels at one name stand above each other.
    """
    trace = {
        "type": "scatter",
        "mode": "markers",
        "orientation": "h",
        "offsetgroup": text(name, 48),
        "name": text(name, 48),
        "y": [text(where, 48) for where, _, _ in rows],
        "x": short(x for _, x, _ in rows),
        "marker": look.lines()["marker"],
        "customdata": list(hover),
        "hovertemplate": "%{customdata}<extra>%{fullData.name}</extra>",
    }
    reach = short((half for _, _, half in rows), 4)
    if any(reach):
        trace["error_x"] = {"type": "data", "array": reach, "color": look.color, "thickness": 1.4, "width": 4}
    return trace


Panels = list[tuple[str, Figure]]
