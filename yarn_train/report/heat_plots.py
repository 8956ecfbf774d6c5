"""The picture of a grid: the objective over two swept options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .figures import swept
from .figures.base import LINES, SCALE, said
from .groups import Group, Member
from .style import picture

COLORS = LinearSegmentedColormap.from_list("objective", SCALE)


@picture
def heat_map(group: Group) -> Figure | None:
    """One panel per set of the other options; the value in each cell, the best framed, the rest named in grey."""
    panels = swept.best_panels(group)
    axes = swept.plane(group)
    if not panels or axes is None:
        return None
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = 1.0 + 0.85 * len(panels[0].x), 1.2 + 0.55 * len(panels[0].y)
    figure = Figure(figsize=(max(4.0, columns * width), max(2.6, rows * height)), layout="constrained")
    shown = figure.subplots(rows, columns, squeeze=False)
    low, high = swept.color_range(group)
    for place, panel in zip(shown.flat, panels, strict=False):
        values = np.array([[_value(cell) for cell in row] for row in panel.cells])
        _grid(place, values, COLORS, (low, high))
        _frame_best(place, group, panel)
        for i, row in enumerate(panel.cells):
            for j, cell in enumerate(row):
                text = f"{values[i, j]:.4g}" if np.isfinite(values[i, j]) else swept.state(cell) or ""
                dark = np.isfinite(values[i, j]) and values[i, j] < low + swept.DARK * (high - low)
                size = 8 if np.isfinite(values[i, j]) else 7
                place.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if dark else "#222222")
        place.set_xticks(range(len(panel.x)), [said(v) for v in panel.x])
        place.set_yticks(range(len(panel.y)), [said(v) for v in panel.y])
        place.set_xlabel(axes[0])
        place.set_ylabel(axes[1])
        place.set_title(panel.rest, fontsize=9, fontweight="normal")
    for place in list(shown.flat)[len(panels) :]:
        place.remove()
    figure.suptitle(f"{group.metric}, lower is better; the best is framed", fontsize=11, fontweight="bold")
    return figure


def _grid(axes: Axes, values: Any, colors: LinearSegmentedColormap, ends: tuple[float, float]) -> None:
    axes.set_facecolor("#ececec")  # of cells without a value
    axes.imshow(np.ma.masked_invalid(values), cmap=colors, vmin=ends[0], vmax=ends[1], origin="lower", aspect="auto")
    axes.set_xticks(np.arange(-0.5, values.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, values.shape[0]), minor=True)
    axes.grid(False, which="major")
    axes.grid(True, which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)


def _frame_best(axes: Axes, group: Group, panel: swept.Panel) -> None:
    best = group.best()
    for i, row in enumerate(panel.cells):
        for j, cell in enumerate(row):
            if cell and best and cell.name == best.name:
                frame = Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=LINES[1], linewidth=3)
                axes.add_patch(frame)


def _value(cell: Member | None) -> float:
    value = swept.value(cell)
    return value if math.isfinite(value) else math.nan
