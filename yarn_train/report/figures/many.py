"""Curves of many runs in one figure: few runs have a colour each, of more the best one stands out."""

from __future__ import annotations

import math
from typing import Any

from ..groups import Group, Member
from ..objective import final_rows
from ..rows import Row
from ..style import mean
from ..tables import main_mode
from ..thin import limit, smooth, thin
from . import context
from .base import DASHES, GREY, LINES, SHOWN_BY_NAME, SYMBOLS, Figure, figure, short, text
from .looks import is_base
from .training import LOOK, TITLES, X, progress

NOT_COMPLETE = "#D55E00"
OTHERS = "#9aa4b1"


def losses(group: Group) -> Figure | None:
    """Training loss of the last stage of every run that has steps."""
    members = [m for m in group.members if m.run and any(stage.metrics for stage in m.run.stages)]
    traces, few = [], len(members) <= SHOWN_BY_NAME
    for member in _best_last(group, members):
        stage = next(stage for stage in reversed(member.run.stages if member.run else ()) if stage.metrics)
        values, x, look = stage.series("loss"), progress(stage), _look(group, member, members)
        width = max(1, len(values) // 40)
        even = smooth(values, width)
        kept = thin(even, 400 if few else 150)  # it has no spikes to keep
        smoothed = {"xs": {k: short((v[i] for i in kept), 8) for k, v in x.items()}, "y": short(even[i] for i in kept)}
        traces.append({**look, **smoothed, "when": {"lines": "smoothed"}})
        points = thin(values, limit(len(members)))
        raw = {"xs": {k: short((v[i] for i in points), 8) for k, v in x.items()}, "y": short(values[i] for i in points)}
        traces.append({**look, **raw, "when": {"lines": "as measured"}})
    if not traces:
        return None
    made = figure(traces, 440, yaxis={"title": {"text": "loss (nats per token)"}}, legend={"traceorder": "reversed"})
    made["layout"]["hovermode"] = "closest"
    return {**made, "controls": [LOOK, X], "titles": TITLES}


def perplexities(group: Group) -> Figure | None:
    """Perplexity against context of every run's last trained stage, and of the base that they share."""
    curves: list[tuple[Member, list[Row]]] = []
    base: list[Row] = []
    for member in group.members:
        rows = final_rows(member.run) if member.run else []
        curve = context.finite_curve(rows, rows[-1].label) if rows else []
        if curve:
            curves.append((member, curve))
        untouched = [row for row in main_mode(member.run.perplexity if member.run else ()) if is_base(row)]
        base = base or (context.finite_curve(untouched, untouched[0].label) if untouched else [])
    if any(is_base(curve[0]) for _, curve in curves):
        base = []  # it stands among the runs, by its own evaluation
    if not curves:
        return None
    members = [member for member, _ in curves]
    found = dict(zip((m.name for m in members), (curve for _, curve in curves), strict=True))
    traces = []
    if base:
        thin_line = {"color": GREY, "width": 1.5, "dash": "dash"}
        traces.append({**context.trace(base), "name": text(base[0].label), "line": thin_line, "marker": {"size": 5}})
        traces[0]["marker"]["color"] = GREY
        if base[-1].perplexity > 3 * max(curve[-1].perplexity for curve in found.values()):
            traces[0]["visible"] = "legendonly"  # it would press all others together
    for number, member in enumerate(_best_last(group, members)):
        look = _look(group, member, members)
        shape = SYMBOLS[number % len(SYMBOLS)] if len(members) <= SHOWN_BY_NAME else "circle"
        marks = {"color": look["line"]["color"], "size": 7 if look["line"]["width"] > 1.5 else 4, "symbol": shape}
        made = {**context.trace(found[member.name]), **look, "mode": "lines+markers", "marker": marks}
        traces.append({**made, "hovertemplate": f"%{{y:.4g}} at %{{x:,}} tokens<extra>{_hover(member)}</extra>"})
    windows = {row.window for _, curve in curves for row in curve}
    return context.axes(traces, windows, context.lengths(members[0].run) if members[0].run else [])


def speed_and_memory(group: Group) -> Figure | None:
    """Mean tokens/s against peak memory, one point per run."""
    points = [(m, *_cost(m)) for m in group.members if m.run]
    points = [(m, speed, memory) for m, speed, memory in points if math.isfinite(speed) and math.isfinite(memory)]
    if len(points) < 2:
        return None
    best = group.best()
    colors = [LINES[0] if best and m.name == best.name else OTHERS for m, _, _ in points]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": short(speed for _, speed, _ in points),
        "y": short(memory for _, _, memory in points),
        "text": [text(m.name) for m, _, _ in points],
        "marker": {"size": 10, "color": colors, "opacity": 0.8},
        "hovertemplate": "%{text}<br>%{x:,.0f} tokens/s, %{y:.3f} GiB<extra></extra>",
    }
    lowest = min(memory for _, _, memory in points)
    same = max(memory for _, _, memory in points) - lowest < 0.05 * lowest  # a difference of nothing fills no plot
    room = {"range": [0.9 * lowest, 1.1 * lowest]} if same else {}
    y = {"title": {"text": "peak memory (GiB)"}, **room}
    return figure([trace], 340, xaxis={"title": {"text": "tokens/s"}}, yaxis=y, hovermode="closest", showlegend=False)


def _cost(member: Member) -> tuple[float, float]:
    stages = member.run.stages if member.run else ()
    speeds = [mean(stage.typical().series("tokens_per_second")) for stage in stages if stage.metrics]
    memory = [v / 2**30 for stage in stages for v in stage.series("peak_memory_bytes") if math.isfinite(v)]
    return mean(speeds), max(memory, default=math.nan)


def _best_last(group: Group, members: list[Member]) -> list[Member]:
    """So that it is drawn above the others."""
    best = group.best()
    return sorted(members, key=lambda m: best is not None and m.name == best.name)


def _look(group: Group, member: Member, members: list[Member]) -> dict[str, Any]:
    """Line, name and legend entry: by colour where there are few runs, else best, others and those not complete."""
    best = group.best()
    is_best = best is not None and best.name == member.name
    base: dict[str, Any] = {"type": "scatter", "mode": "lines"}
    if len(members) <= SHOWN_BY_NAME:
        number = members.index(member)
        look = {"color": LINES[number], "width": 3 if is_best else 1.8, "dash": DASHES[0 if is_best else number % 4]}
        name = f"{member.name} (best)" if is_best else member.name
        return {**base, "name": text(name, 48), "line": look}
    complete = member.status in ("complete", "unknown")
    kind = "best" if is_best else "complete" if complete else member.status
    of_kind = [m for m in members if m.status == member.status and not (best and m.name == best.name)]
    color = LINES[0] if is_best else OTHERS if complete else NOT_COMPLETE
    name = f"best: {member.name}" if is_best else f"{len(of_kind)} {kind}"
    return {
        **base,
        "name": text(name, 48),
        "legendgroup": kind,
        "showlegend": is_best or member.name == of_kind[0].name,
        "line": {"color": color, "width": 3 if is_best else 1, "dash": "solid" if complete else "dash"},
        "opacity": 1 if is_best or not complete else 0.55,
        "hovertemplate": f"%{{y:.4g}} at %{{x:,}}<extra>{_hover(member)}</extra>",
    }


def _hover(member: Member) -> str:
    """Its name and value; plotly would fill in what a name has between %{ and }."""
    value = "" if member.objective is None else f"<br>{member.objective:.4g}"
    return text(member.name).replace("%{", "% {") + value
