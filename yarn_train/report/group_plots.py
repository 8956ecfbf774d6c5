"""Pictures of several runs: the objective over what was swept, training losses, perplexity against context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import many, swept
from .figures.base import said, tokens
from .groups import Group
from .heat_plots import heat_map
from .style import GREY, picture

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def sweep(group: Group, path: Path) -> Path | None:
    """The heat map where the sweep is a grid of two options or more, else the objective by each option."""
    return heat_map(group, path) or by_option(group, path)


@picture
def by_option(group: Group) -> Figure | None:
    """The objective of every run against each swept option."""
    keys = [key for key in group.axes if len(swept.levels(group, key)) > 1][:4]
    drawn = [(key, made) for key in keys if (made := swept.over_one(group, key))]
    if not drawn:
        return None
    figure = Figure(figsize=(1.0 + 3.6 * len(drawn), 3.4), layout="constrained")
    shown = figure.subplots(1, len(drawn), squeeze=False, sharey=True)
    for axes, (key, made) in zip(shown.flat, drawn, strict=True):
        trace, axis = made["data"][0], made["layout"]["xaxis"]
        if axis.get("type") == "log":
            axes.set_xscale("log")
        if "lines" in trace["mode"]:
            axes.plot(trace["x"], trace["y"], color=GREY, lw=1.2, zorder=1)
        axes.scatter(trace["x"], trace["y"], c=trace["marker"]["color"], s=36, zorder=2)
        if "tickvals" in axis:
            axes.set_xticks(axis["tickvals"], axis["ticktext"])
            axes.minorticks_off()
        axes.set_xlabel(key)
    shown[0, 0].set_ylabel(f"{group.metric}, lower is better")
    return figure


@picture
def losses(group: Group) -> Figure | None:
    """Training loss of every run, smoothed; the best stands out."""
    made = many.losses(group)
    if made is None:
        return None
    figure, axes = _panel(f"Training loss of {len(group.members)} runs")
    _lines(axes, [t for t in made["data"] if t["when"]["lines"] == "smoothed"], lambda trace: trace["xs"]["steps"])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    _legend(axes)
    return figure


@picture
def perplexity(group: Group) -> Figure | None:
    """Perplexity against the context window, one line per run."""
    made = many.perplexities(group)
    if made is None:
        return None
    figure, axes = _panel("Perplexity by context window")
    _lines(axes, made["data"], lambda trace: trace["x"])
    ticks = made["layout"]["xaxis"]["tickvals"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [tokens(v) for v in ticks])
    y = made["layout"]["yaxis"]
    if y["type"] == "log":
        axes.set_yscale("log")
    if "tickvals" in y:
        axes.set_yticks(y["tickvals"], y["ticktext"])
    axes.minorticks_off()
    axes.set_xlabel("context window (tokens)")
    axes.set_ylabel("perplexity, lower is better")
    _legend(axes)
    return figure


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.2, 4.8))
    axes = figure.add_subplot()
    axes.set_title(said(title))
    return figure, axes


def _lines(axes: Axes, traces: Sequence[dict[str, Any]], x: Any) -> None:
    for trace in traces:
        line, values = trace["line"], [float("nan") if v is None else v for v in trace["y"]]
        label = trace["name"] if trace.get("showlegend", True) else "_"
        style = DASHES[line.get("dash", "solid")]
        axes.plot(
            x(trace), values, color=line["color"], lw=0.8 * line["width"], ls=style, alpha=trace.get("opacity", 1.0),
            marker="o" if "markers" in trace["mode"] else None, ms=4, label=label,
        )  # fmt: skip


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, reverse=True)
