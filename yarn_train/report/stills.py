"""PNG of interactive figures: the same data and axes drawn by matplotlib, for Markdown and where scripts are off.

It knows what the figures of evaluations consist of: lines, marks, error bars, areas, heat maps, marked places.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .figures.looks import Panels
from .style import GREY

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P"}
SYMBOLS |= {"x": "X", "star": "*"}
MOST = 24  # panels of a picture; the page has all
WIDTH = {1: 8.0, 2: 4.9, 3: 4.3, 4: 3.8}  # inches of a panel, by the number of columns
WIDEST_NAME = 34


def still(panels: Panels, columns: int | None = None) -> Figure | None:
    """All panels of a picture in one figure, in `columns` of them; None where there are none."""
    panels = panels[:MOST]
    if not panels:
        return None
    columns = min(columns or (1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3), 4, len(panels))
    rows = math.ceil(len(panels) / columns)
    heights = [max(_height(f) for _, f in panels[i * columns : (i + 1) * columns]) for i in range(rows)]
    figure = Figure(figsize=(columns * WIDTH[columns], sum(heights)), layout="constrained")
    shown = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (title, made) in zip(shown.flat, panels, strict=False):
        _panel(axes, made, columns)
        axes.set_title(title, fontsize=10, pad=20 if made["layout"].get("annotations") else 6)
    for axes in list(shown.flat)[len(panels) :]:
        axes.remove()
    return figure


def _height(made: dict[str, Any]) -> float:
    return min(12.0, max(2.4, made["layout"]["height"] / 105))


def _panel(axes: Axes, made: dict[str, Any], columns: int) -> None:
    traces = [t for t in made["data"] if t.get("visible") != "legendonly" and _first_choice(t, made)]
    layout = made["layout"]
    for number, trace in enumerate(traces):
        aside = 0.6 * ((number + 0.5) / len(traces) - 0.5) if layout.get("scattermode") == "group" else 0.0
        _heat_map(axes, trace) if trace["type"] == "heatmap" else _trace(axes, trace, layout, aside)
    if traces and traces[0]["type"] == "heatmap":
        _cells(axes, traces, layout)
    else:
        _axis(axes, "x", layout.get("xaxis", {}))
        _axis(axes, "y", layout.get("yaxis", {}))
    _marks(axes, layout)
    _legend(axes, traces, layout, columns)


def _first_choice(trace: dict[str, Any], made: dict[str, Any]) -> bool:
    first = {control["name"]: control["options"][0] for control in made.get("controls", ())}
    return all(first.get(name) == option for name, option in trace.get("when", {}).items())


def _trace(axes: Axes, trace: dict[str, Any], layout: dict[str, Any], aside: float) -> None:
    x, y = _numbers(trace["x"]), trace["y"]
    names = layout.get("yaxis", {}).get("categoryarray")
    y = np.array([names.index(v) for v in y]) + aside if names else _numbers(y)
    if trace.get("fill"):
        axes.fill(x, y, color=trace["line"]["color"], alpha=0.16, lw=0, zorder=1)
        return
    line, marker = trace.get("line", {}), trace.get("marker", {})
    color = line.get("color") or marker.get("color")
    drawn = "lines" in trace["mode"]
    style = DASHES[line.get("dash", "solid")] if drawn else ""
    symbol = SYMBOLS[marker.get("symbol", "circle")] if "markers" in trace["mode"] else ""
    look: dict[str, Any] = {"color": color, "lw": 0.75 * line.get("width", 2), "ls": style, "marker": symbol}
    look |= {"ms": 0.6 * marker.get("size", 6), "mec": "white", "mew": 0.4}
    if "error_x" in trace or "error_y" in trace:
        bars = {f"{side[-1]}err": _error(trace[side]) for side in ("error_x", "error_y") if side in trace}
        axes.errorbar(x, y, **bars, **look, elinewidth=1.2, capsize=2.5, label=_named(trace))
        return
    axes.plot(x, y, **look, label=_named(trace))


def _error(bars: dict[str, Any]) -> Any:
    up = np.nan_to_num(_numbers(bars["array"]))
    return [np.nan_to_num(_numbers(bars["arrayminus"])), up] if "arrayminus" in bars else up


def _named(trace: dict[str, Any]) -> str:
    name = html.unescape(trace.get("name", "")) if trace.get("showlegend", True) else ""
    return name or "_"


def _numbers(values: Sequence[float | None]) -> Any:
    return np.array([math.nan if v is None else v for v in values], float)


def _axis(axes: Axes, which: str, wanted: dict[str, Any]) -> None:
    if wanted.get("type") == "log":
        getattr(axes, f"set_{which}scale")("log")
    if "tickvals" in wanted:
        low, high = getattr(axes, f"get_{which}lim")()
        ticks = [pair for pair in zip(wanted["tickvals"], wanted["ticktext"], strict=True) if low <= pair[0] <= high]
        getattr(axes, f"set_{which}ticks")([v for v, _ in ticks], [html.unescape(t) for _, t in ticks])
    elif "categoryarray" in wanted:
        names = wanted["categoryarray"]
        getattr(axes, f"set_{which}ticks")(range(len(names)), [_end(html.unescape(n)) for n in names])
        getattr(axes, f"set_{which}lim")(-0.6, len(names) - 0.4)
    axes.minorticks_off()
    if "range" in wanted:
        getattr(axes, f"set_{which}lim")(*wanted["range"])
    getattr(axes, f"set_{which}label")(wanted.get("title", {}).get("text", ""))


def _heat_map(axes: Axes, trace: dict[str, Any]) -> None:
    values = np.array([_numbers(row) for row in trace["z"]])
    colors = LinearSegmentedColormap.from_list("cells", trace["colorscale"])
    ends = trace["zmin"], trace["zmax"]
    axes.imshow(np.ma.masked_invalid(values), cmap=colors, vmin=ends[0], vmax=ends[1], origin="lower", aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if math.isfinite(value):
                red, green, blue, _ = colors((value - ends[0]) / max(1e-12, ends[1] - ends[0]))
                ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "#1d2a33"
                axes.text(j, i, trace["text"][i][j], ha="center", va="center", fontsize=7.5, color=ink)


def _cells(axes: Axes, traces: Sequence[dict[str, Any]], layout: dict[str, Any]) -> None:
    axes.set_facecolor("#ececec")  # of cells without a value
    for which in ("x", "y"):
        names = [html.unescape(name) for name in traces[0][which]]
        getattr(axes, f"set_{which}ticks")(range(len(names)), names)
        getattr(axes, f"set_{which}ticks")(np.arange(-0.5, len(names)), minor=True)
        getattr(axes, f"set_{which}label")(layout[f"{which}axis"]["title"]["text"])
    if layout["yaxis"].get("autorange") == "reversed":
        axes.invert_yaxis()
    axes.grid(False, which="major")
    axes.grid(True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)


def _marks(axes: Axes, layout: dict[str, Any]) -> None:
    for shape in layout.get("shapes", ()):
        line = shape.get("line", {})
        look: dict[str, Any] = {"color": line.get("color"), "lw": 0.7 * line.get("width", 1), "zorder": 1}
        if shape["type"] == "rect" and shape.get("yref") == "paper":
            axes.axvspan(shape["x0"], shape["x1"], color=shape["fillcolor"], alpha=shape["opacity"], lw=0, zorder=0)
        elif shape["type"] == "rect":
            size = shape["x1"] - shape["x0"], shape["y1"] - shape["y0"]
            frame = {"fill": False, "edgecolor": line["color"], "linewidth": 2.5}
            axes.add_patch(Rectangle((shape["x0"], shape["y0"]), *size, **frame))
        elif shape.get("yref") == "paper":
            axes.axvline(shape["x0"], ls=DASHES[line.get("dash", "solid")], **look)
        else:
            axes.axhline(shape["y0"], ls=DASHES[line.get("dash", "solid")], **look)
    logarithmic = layout.get("xaxis", {}).get("type") == "log"
    for note in layout.get("annotations", ()):
        place = 10 ** note["x"] if logarithmic else note["x"], 1.015 + note.get("yshift", 0) / 260
        color = note.get("font", {}).get("color", GREY)
        where = axes.get_xaxis_transform()
        axes.text(*place, html.unescape(note["text"]), transform=where, ha="center", color=color, fontsize=8)


def _legend(axes: Axes, traces: Sequence[dict[str, Any]], layout: dict[str, Any], columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(names) < 2 or layout.get("showlegend") is False:
        return
    shown: list[Any] = [h if isinstance(h, Line2D) else cast(Any, h)[0] for h in handles]
    if layout.get("legend", {}).get("traceorder") == "reversed":
        shown, names = shown[::-1], names[::-1]
    names = [_end(name) for name in names]
    if columns == 1:
        axes.legend(shown, names, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    else:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "borderaxespad": 0}
        axes.legend(shown, names, fontsize=7.5, ncols=2 if max(map(len, names)) < 24 else 1, **place)


def _end(name: str) -> str:
    return name if len(name) <= WIDEST_NAME else f"{name[: WIDEST_NAME - 1]}…"
