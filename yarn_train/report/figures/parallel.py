"""Parallel coordinates over all swept options, coloured by the objective.

Drawn as ordinary lines: plotly's own kind needs WebGL, which browsers on servers and remote desktops often lack.
"""

from __future__ import annotations

import math
from typing import Any

from ..groups import Group, Member
from .base import GREY, LINES, SCALE, Figure, figure, said, short, text
from .swept import color_range, levels, levels_key

TICKS = 8


def parallel(group: Group) -> Figure | None:
    """One vertical axis per option and one for the objective (lower is better, the best at the bottom)."""
    axes = [key for key in group.axes if len(levels(group, key)) > 1]
    members = [m for m in group.ranked() if all(key in m.swept for key in axes)]
    if len(axes) < 2 or len(members) < 2:
        return None
    low, high = color_range(group)
    scales = [_scale([m.swept[key] for m in members]) for key in axes]
    objectives = [m.objective or 0.0 for m in members]
    scales.append(_scale(objectives, at_most=5))
    best = group.best()
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": list(range(len(axes) + 1)),
            "y": short((place(value) for (place, _), value in zip(scales, _row(m, axes), strict=True)), 4),
            "line": {"width": 4 if best and m.name == best.name else 1.6, "color": _color(m, low, high)},
            "night": _color(m, high, low),
            "text": [f"{text(m.name)}<br>{m.objective:.5g}"] * (len(axes) + 1),
            "hovertemplate": "%{text}<extra></extra>",
            "hoveron": "points",
            "opacity": 1 if best and m.name == best.name else 0.8,
        }
        for m in sorted(members, key=lambda m: (best is not None and m.name == best.name, -(m.objective or 0.0)))
    ]
    if best:
        traces[-1]["line"]["color"] = traces[-1]["night"] = LINES[1]
    names = [*axes, group.metric]
    annotations: list[dict[str, Any]] = [
        {
            "x": i,
            "y": height,
            "text": text(tick),
            "xanchor": "right" if i < len(axes) else "left",
            "xshift": -6 if i < len(axes) else 6,
            "showarrow": False,
        }
        | {"bgcolor": "page", "font": {"size": 11}}
        for i, (_, ticks) in enumerate(scales)
        for height, tick in ticks
    ]
    lines = [
        {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"color": GREY, "width": 1}, "layer": "below"}
        for i in range(len(names))
    ]
    bare = {"showgrid": False, "zeroline": False, "showline": False}
    x = {"tickvals": list(range(len(names))), "ticktext": [_wrapped(n) for n in names], "side": "top", **bare}
    return figure(
        traces,
        420,
        xaxis={**x, "range": [-0.3, len(names) - 0.7], "ticks": "", "tickangle": 0},
        yaxis={**bare, "range": [-0.06, 1.06], "showticklabels": False, "ticks": ""},
        annotations=annotations,
        shapes=lines,
        showlegend=False,
        hovermode="closest",
        margin={"l": 6, "r": 6, "t": 50, "b": 14},
    )


def _row(member: Member, axes: list[str]) -> list[Any]:
    return [*(member.swept[key] for key in axes), member.objective]


def _scale(values: list[Any], at_most: int = TICKS) -> tuple[Any, list[tuple[float, str]]]:
    """Where a value stands between 0 and 1, and the ticks: evenly for a few values, else linear or logarithmic."""
    found = sorted({said(v): v for v in values}.values(), key=levels_key)
    if (len(found) <= at_most and at_most == TICKS) or any(isinstance(v, str | bool | None | list) for v in found):
        step = max(1, len(found) - 1)
        where = {said(v): i / step for i, v in enumerate(found)}
        every = math.ceil(len(found) / 12)
        return (lambda v: where[said(v)]), [(where[said(v)], said(v)) for v in found[::every]]
    low, high = float(found[0]), float(found[-1])
    turn = math.log if low > 0 and high / low >= 16 else float
    span = (turn(high) - turn(low)) or 1.0
    parts = [i / (at_most - 1) for i in range(at_most)] if high > low else [0.0]
    back = math.exp if turn is math.log else float
    ticks = [(part, f"{back(turn(low) + part * span):.3g}") for part in parts]
    return (lambda v: (turn(float(v)) - turn(low)) / span), ticks


def _color(member: Member, low: float, high: float) -> str:
    """The colour of SCALE for its value, between the stops in proportion; the palest would not show as a line."""
    part = 0.85 * min(1.0, max(0.0, ((member.objective or 0.0) - low) / (high - low)))
    i = min(int(part * (len(SCALE) - 1)), len(SCALE) - 2)
    (at, first), (then, second) = SCALE[i], SCALE[i + 1]
    share = (part - at) / (then - at)
    pairs = zip(_rgb(first), _rgb(second), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def _wrapped(name: str) -> str:
    """``rope.alpha`` as its last word, a metric on two lines: axes stand close."""
    return text(name if " " in name else name.rpartition(".")[2]).replace(" at ", "<br>at ")
