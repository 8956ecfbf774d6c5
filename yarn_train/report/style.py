"""How the pictures look: colours, fonts, and the arithmetic of placing labels.

Figures are made without pyplot, so that drawing needs no display and leaves no global state behind. Colours are from
the palettes of Okabe and Ito and of Paul Tol, which stay distinct for colour-blind readers and in print.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .collect import Table
from .rows import Row

GREY = "#666666"
TRAINED = ("#0072B2", "#882255", "#117733", "#CC6677", "#332288", "#999933")
METHODS = {"none": "#555555", "pi": "#D55E00", "ntk": "#E69F00", "ntk_by_parts": "#009E73", "yarn": "#56B4E9"}
BY_ROTATIONS = "#CC79A7"
MARKERS = "osD^vPX<>*"
STYLE: Any = {
    "figure.dpi": 160,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "path.simplify": True,
}


def picture(draw: Callable[[Any], Figure | None]) -> Callable[[Any, Path], Path | None]:
    """Make of a drawing function one that saves its figure, or does nothing where there is nothing to draw."""

    @functools.wraps(draw)
    def save(subject: Any, path: Path) -> Path | None:
        with matplotlib.rc_context(STYLE):
            figure = draw(subject)
            if figure is None:
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15, facecolor="white")
        return path

    return save


def identity(row: Row | Table, stages: Sequence[str]) -> tuple[str, bool]:
    """Colour of a label, the same in every picture, and whether a stage trained it."""
    stage = getattr(row, "stage", None)
    if stage is not None:
        return TRAINED[stages.index(stage) % len(TRAINED)], True
    if row.ramp == "by_rotations":
        return BY_ROTATIONS, False
    return METHODS.get(row.method, GREY), False


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending heights at least `gap` apart, as near to the `wanted` (ascending) ones as that allows.

    Neighbours that are too close form a group, which is centred on what its members wanted (least squares).
    """
    groups: list[list[float]] = []  # wanted heights, each less the gaps of all labels below it
    for below, height in enumerate(wanted):
        groups.append([height - below * gap])
        while len(groups) > 1 and mean(groups[-1]) < mean(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    flat = [mean(group) for group in groups for _ in group]
    return [height + i * gap for i, height in enumerate(flat)]


def mean(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan
