"""The objective over what was swept: heat maps of two options, or a line of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..groups import Group, Member
from .base import GREY, LINES, SCALE, Figure, figure, log_ticks, said, short, text

PANELS = 12
FILLED = 0.34  # of a grid's cells; with less, a study drew the values, and points show them better
PREFERRED = ("rope.alpha", "rope.beta")
DARK = 0.2  # of the colours' range: text on these is white
STATES = {"failed": "#d9b3a6", "stopped": "#d9d3a6", "pruned": "#c6b8d6", "running": "#b8d0c6", "no value": "#d0d0d0"}
NOT_RUN = "#ececec"


@dataclass(frozen=True)
class Panel:
    """A heat map's cells: the best member of each, None where no run has these values; `rest` names the panel."""

    rest: str
    x: list[Any]
    y: list[Any]
    cells: list[list[Member | None]]


def levels(group: Group, key: str) -> list[Any]:
    """Distinct values of an axis, numbers in order, then words in the order in which they came."""
    listed = group.sweep.axes.get(key) if group.sweep else None
    planned = list(listed) if isinstance(listed, list) else []
    values = [*(m.swept[key] for m in group.members if key in m.swept), *planned]
    found = {said(v): v for v in values}
    return sorted(found.values(), key=lambda v: (not _number(v), float(v) if _number(v) else 0.0))


def plane(group: Group) -> tuple[str, str] | None:
    """The options of the two axes of the heat map: alpha and beta, else those with the most values."""
    counts = {key: len(levels(group, key)) for key in group.axes}
    several = [key for key in group.axes if counts[key] > 1]
    if len(several) < 2:
        return None
    first = sorted(several, key=lambda key: (key not in PREFERRED, -counts[key]))[:2]
    x, y = sorted(first, key=lambda key: (PREFERRED.index(key) if key in PREFERRED else 9, -counts[key]))
    return x, y


def panels(group: Group) -> list[Panel]:
    """One panel for each set of values of the options that are not in the plane; empty where it is no grid."""
    axes = plane(group)
    if axes is None:
        return []
    x, y = levels(group, axes[0]), levels(group, axes[1])
    rest = [key for key in group.axes if key not in axes]
    named: dict[str, list[Member]] = {}
    for member in sorted(group.members, key=lambda m: [levels_key(m.swept.get(key)) for key in rest]):
        if all(key in member.swept for key in group.axes):
            name = ", ".join(f"{key} = {said(member.swept[key])}" for key in rest)
            named.setdefault(name, []).append(member)
    made = [Panel(name, x, y, _cells(axes, x, y, members)) for name, members in named.items()]
    cells = [cell for panel in made for row in panel.cells for cell in row]
    return made if cells and sum(cell is not None for cell in cells) >= FILLED * len(cells) else []


def levels_key(value: Any) -> tuple[bool, float, str]:
    """Numbers in order, words after them."""
    return (not _number(value), float(value) if _number(value) else 0.0, said(value))


def best_panels(group: Group) -> list[Panel]:
    """At most PANELS of them: those with the lowest values, in their order."""
    found = panels(group)

    def lowest(panel: Panel) -> float:
        return min((value(cell) for row in panel.cells for cell in row), default=math.inf)

    kept = {panel.rest for panel in sorted(found, key=lowest)[:PANELS]}
    return [panel for panel in found if panel.rest in kept]


def color_range(group: Group) -> tuple[float, float]:
    """Lowest and highest value of the colours: what is hopeless does not make all the rest look alike."""
    values = sorted(m.objective for m in group.ranked() if m.objective is not None)
    if not values:
        return 0.0, 1.0
    middle = values[len(values) // 2]
    high = min(values[-1], middle + 3 * (middle - values[0])) if middle > values[0] else values[-1]
    return values[0], high if high > values[0] else values[0] + 1e-9


def heat_map(group: Group, panel: Panel) -> Figure:
    """One panel: the value in each cell, the best of the whole group framed, failed and missing cells in grey tones."""
    axes = plane(group)
    assert axes is not None
    low, high = color_range(group)
    best = group.best()
    x, y = [text(said(v)) for v in panel.x], [text(said(v)) for v in panel.y]
    shared = {"type": "heatmap", "x": x, "y": y, "texttemplate": "%{text}", "xgap": 3, "ygap": 3, "showscale": False}
    named = [[text(cell.name) if cell else "" for cell in row] for row in panel.cells]
    bound = low + DARK * (high - low)

    def scored(dark: bool, ink: str) -> dict[str, Any]:
        shown = [[cell if math.isfinite(v := value(cell)) and (v < bound) == dark else None for cell in row]
                 for row in panel.cells]  # fmt: skip
        return {
            **shared,
            "z": [short((value(cell) for cell in row), 6) for row in shown],
            "text": [[_label(cell, best) for cell in row] for row in shown],
            "customdata": named,
            "hovertemplate": "%{customdata}<br>%{z:.5g}<extra></extra>",
            "colorscale": SCALE,
            "zmin": low,
            "zmax": high,
            "textfont": {"color": ink},
        }

    codes = ["not run", *STATES]
    states = [[state(cell) for cell in row] for row in panel.cells]
    other = {
        **shared,
        "z": [[codes.index(s) if s is not None else None for s in row] for row in states],
        "text": [[s or "" for s in row] for row in states],
        "customdata": [[text(cell.reason or cell.name) if cell else "" for cell in row] for row in panel.cells],
        "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
        "colorscale": [[i / (len(codes) - 1), color] for i, color in enumerate([NOT_RUN, *STATES.values()])],
        "zmin": 0,
        "zmax": len(codes) - 1,
        "textfont": {"color": "#333333"},
    }
    frame = [
        {"type": "rect", "x0": j - 0.48, "x1": j + 0.48, "y0": i - 0.48, "y1": i + 0.48}
        | {"line": {"color": LINES[1], "width": 4}}
        for i, row in enumerate(panel.cells)
        for j, cell in enumerate(row)
        if cell and best and cell.name == best.name
    ]
    category = {"type": "category", "showgrid": False}
    made = figure(
        [other, scored(False, "#111111"), scored(True, "#ffffff")],
        max(240, 130 + 46 * len(y)),
        xaxis={**category, "title": {"text": text(axes[0])}, "categoryarray": x, "categoryorder": "array"},
        yaxis={**category, "title": {"text": text(axes[1])}, "categoryarray": y, "categoryorder": "array"},
        shapes=frame,
    )
    return {**made, "widest": 160 + 110 * len(x)}


def over_one(group: Group, key: str) -> Figure | None:
    """The objective against one swept option: a line where it is swept alone, points where it is one of several."""
    found = [m for m in group.ranked() if key in m.swept]
    if len({said(m.swept[key]) for m in found}) < 2:
        return None
    best = group.best()
    values = [m.swept[key] for m in found]
    numbers = all(map(_number, values))
    pairs = sorted(zip(values, found, strict=True), key=lambda pair: levels_key(pair[0]))
    alone = len([axis for axis in group.axes if len(levels(group, axis)) > 1]) == 1 and numbers
    axis: dict[str, Any] = {"title": {"text": text(key)}}
    if not numbers:
        axis |= {"type": "category"}
    elif min(values) > 0 and max(values) / min(values) >= 4:
        axis |= log_ticks(min(values), max(values))
    ticks = sorted({float(v) for v in values}) if numbers else []
    if numbers and len(ticks) < 9:
        axis |= {"tickvals": ticks, "ticktext": [said(v) for v in ticks]}
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if alone else "markers",
        "x": [v if numbers else text(said(v)) for v, _ in pairs],
        "y": short(m.objective for _, m in pairs),
        "text": [text(m.name) for _, m in pairs],
        "line": {"color": GREY, "width": 1.5},
        "marker": {
            "size": [14 if best and m.name == best.name else 8 for _, m in pairs],
            "color": [LINES[1] if best and m.name == best.name else LINES[0] for _, m in pairs],
            "symbol": ["star" if best and m.name == best.name else "circle" for _, m in pairs],
            "opacity": 1 if alone else 0.75,
        },
        "hovertemplate": "%{text}<br>%{y:.5g}<extra></extra>",
    }
    y = {"title": {"text": text(group.metric)}}
    return figure([trace], 340, xaxis=axis, yaxis=y, showlegend=False, hovermode="closest")


def _cells(axes: tuple[str, str], x: list[Any], y: list[Any], members: Sequence[Member]) -> list[list[Member | None]]:
    best: dict[tuple[str, str], Member] = {}
    for member in members:
        place = said(member.swept[axes[1]]), said(member.swept[axes[0]])
        if place not in best or value(member) < value(best[place]):
            best[place] = member
    return [[best.get((said(b), said(a))) for a in x] for b in y]


def value(member: Member | None) -> float:
    if member is None or member.objective is None or member.status not in ("complete", "unknown"):
        return math.inf
    return member.objective


def _label(cell: Member | None, best: Member | None) -> str:
    if not math.isfinite(value(cell)) or cell is None:
        return ""
    star = "★ " if best and cell.name == best.name else ""
    return f"{star}{cell.objective:.4g}"


def state(cell: Member | None) -> str | None:
    """What a cell without a value shows; None where it has one."""
    if cell is None:
        return "not run"
    if math.isfinite(value(cell)):
        return None
    return cell.status if cell.status in STATES else "no value"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
