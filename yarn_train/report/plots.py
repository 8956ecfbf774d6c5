"""The three pictures of a report: perplexity against context, training curves, and what was done to the frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from .collect import Frequencies, Run, Stage
from .figures.frequencies import alike
from .figures.looks import is_base
from .rows import Row
from .style import GREY, MARKERS, TRAINED, identity, mean, picture, spread
from .tables import main_mode, perplexity_caption

LABELLED_DIRECTLY = 12  # more end labels than this do not fit beside the axes
IN_LEGEND = 28


@picture
def perplexity(run: Run) -> Figure | None:
    """Perplexity (token mean) against context window, one line per label, with L and every stage's s * L marked."""
    rows = main_mode(run.perplexity)
    curves = {label: _curve(rows, label) for label in dict.fromkeys(row.label for row in rows)}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return None
    figure = Figure(figsize=(9.2, 5.2))
    axes = figure.add_subplot()
    stages = sorted({row.stage for row in rows if row.stage is not None})
    seen: dict[str, int] = {}  # lines per colour: those of one colour differ by their markers
    for label, curve in curves.items():
        color, trained = identity(curve[0], stages)
        marker = MARKERS[seen.setdefault(color, 0) % len(MARKERS)]
        seen[color] += 1
        style: dict[str, Any] = (
            {"lw": 2.6, "ls": "-", "ms": 6, "zorder": 3} if trained else {"lw": 1.1, "ls": "--", "ms": 4}
        )
        x, y = [row.window for row in curve], [row.perplexity for row in curve]
        axes.plot(x, y, color=color, marker=marker, mec="white", mew=0.6, label=label, **style)
        if trained or is_base(curve[0]):
            low, high = [row.low for row in curve], [row.high for row in curve]  # NaN where there is no interval
            axes.fill_between(x, low, high, color=color, alpha=0.16, lw=0, zorder=1)
    _context_axis(axes, sorted({row.window for curve in curves.values() for row in curve}))
    _perplexity_axis(axes)
    _mark_lengths(axes, run)
    axes.set_title("Perplexity by context window", pad=34)
    axes.text(0, 1.075, perplexity_caption(run.perplexity), transform=axes.transAxes, color=GREY, fontsize=8.5)
    if len(curves) <= LABELLED_DIRECTLY:
        _label_ends(axes, curves, stages)
    else:
        _legend_beside(axes)
    return figure


@picture
def training(run: Run) -> Figure | None:
    """Loss, learning rate and gradient norm over the steps of all stages, one after the other."""
    stages = [stage for stage in run.stages if stage.metrics]
    if not stages:
        return None
    figure = Figure(figsize=(9.2, 6.4))
    panels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1, 1], "hspace": 0.14})
    offset = 0.0
    for index, stage in enumerate(stages):
        color = TRAINED[index % len(TRAINED)]
        steps = [offset + step for step in stage.series("step")]
        for axes, key in zip(panels, ("loss", "lr", "grad_norm"), strict=True):
            _training_curve(axes, steps, stage.series(key), color, smooth=key != "lr")
        if index:
            for axes in panels:
                axes.axvline(offset + 0.5, color=GREY, lw=0.9, ls=":")
        middle = (steps[0] + steps[-1]) / 2
        panels[0].text(
            middle, 1.03, _stage_label(stage), color=color, ha="center", transform=panels[0].get_xaxis_transform()
        )
        offset = steps[-1]
    for axes, name in zip(panels, ("loss (nats per token)", "learning rate", "gradient norm"), strict=True):
        axes.set_ylabel(name)
        axes.yaxis.set_label_coords(-0.075, 0.5)
    panels[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panels[2].set_ylim(bottom=0)
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[2].set_xlabel("optimizer step, stages joined")
    panels[0].set_title("Training", pad=22)
    return figure


@picture
def frequencies(run: Run) -> Figure | None:
    """theta' / theta of every pair of dimensions, one panel per factor; tables that agree share one line."""
    data = run.frequencies
    factors = sorted({t.factor for t in data.tables if t.factor > 1}) if data else []
    if data is None or not factors:
        return None
    columns = min(len(factors), 2)
    lines = math.ceil(len(factors) / columns)
    figure = Figure(figsize=(5.2 * columns + 0.4, 4.3 * lines))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False, gridspec_kw={"hspace": 0.5, "wspace": 0.08})
    for axes, factor in zip(panels.flat, factors, strict=False):
        _frequency_panel(axes, data, factor, run)
    for axes in list(panels.flat)[len(factors) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel("frequency kept (scaled / original)")
    # In inches above the panels, whose number of lines varies.
    top = panels[0, 0].get_position()
    name = "What each method does to the frequencies"
    figure.text(top.x0, top.y1 + 0.55 / figure.get_figheight(), name, fontsize=12, fontweight="bold")
    return figure


def _curve(rows: Sequence[Row], label: str) -> list[Row]:
    """Finite points of one label by window; the later of two at the same window counts."""
    points = {row.window: row for row in rows if row.label == label}
    return [points[w] for w in sorted(points) if math.isfinite(points[w].perplexity)]


def _context_axis(axes: Axes, windows: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    every = max(1, math.ceil(len(windows) / 12))
    axes.xaxis.set_major_locator(FixedLocator(windows[::-1][::every]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 and x % 512 == 0 else f"{x:,.0f}")
    )
    axes.set_xlabel("context window (tokens)")


def _perplexity_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Decades alone would leave a plot from 5 to 60 with one tick; between 1, 2, 5 it always has several.
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("perplexity (log scale, lower is better)")


def _mark_lengths(axes: Axes, run: Run) -> None:
    """Vertical lines at L and at the context each stage was scaled to, named above the axes."""
    length = run.original_length()
    if length is None:
        return
    factors = {row.factor for row in run.perplexity if row.stage is not None}
    factors |= {f for stage in run.stages if isinstance(f := stage.option("rope.factor"), int | float)}
    low, high = axes.get_xlim()
    for factor in sorted({1.0, *factors}):
        if low <= factor * length <= high:
            name = f"L = {length:,}" if factor == 1 else f"s = {factor:g}"
            axes.axvline(factor * length, color="#999999", lw=1.0, ls=(0, (1, 1.5)), zorder=1)
            axes.text(
                factor * length,
                1.015,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                color=GREY,
                fontsize=8.5,
            )


def _label_ends(axes: Axes, curves: dict[str, list[Row]], stages: Sequence[str]) -> None:
    """Each line's name at its right end, in its colour, pushed apart where names would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {label: to_axes.transform((c[-1].window, c[-1].perplexity)) for label, c in curves.items()}
    order = sorted(curves, key=lambda label: ends[label][1])
    heights = spread([float(ends[label][1]) for label in order], gap=0.052)
    for label, height in zip(order, heights, strict=True):
        color, trained = identity(curves[label][0], stages)
        axes.annotate(
            label,
            xy=(curves[label][-1].window, curves[label][-1].perplexity),
            xytext=(1.045, height),
            textcoords="axes fraction",
            color=color,
            fontweight="bold" if trained else "normal",
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _legend_beside(axes: Axes) -> None:
    """Legend of a crowded plot: trained models first, and no more entries than the axes are high."""
    lines = sorted(
        (line for line in axes.get_lines() if not str(line.get_label()).startswith("_")),
        key=lambda line: line.get_linestyle() != "-",
    )
    shown = lines[:IN_LEGEND]
    title = f"{len(shown)} of {len(lines)}; all are in the table" if len(shown) < len(lines) else None
    size = 8 if len(shown) <= 18 else 6.5
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0, "alignment": "left"}
    axes.legend(handles=shown, title=title, fontsize=size, title_fontsize=8, **place)


def _training_curve(axes: Axes, steps: Sequence[float], values: Sequence[float], color: str, smooth: bool) -> None:
    width = len(values) // 20
    if not smooth or width < 2:
        axes.plot(steps, values, color=color, lw=1.8)
        return
    axes.plot(steps, values, color=color, lw=0.9, alpha=0.35)
    axes.plot(steps, [mean(values[max(0, i - width) : i + width + 1]) for i in range(len(values))], color=color, lw=2)


def _stage_label(stage: Stage) -> str:
    factor = stage.option("rope.factor")
    return stage.name if factor is None else f"{stage.name} (s = {factor:g})"


def _frequency_panel(axes: Axes, data: Frequencies, factor: float, run: Run) -> None:
    lines = alike(data, factor)
    axes.axhline(1.0, color="#999999", lw=1, ls=(0, (1, 1.5)))
    for kept, (name, tables) in list(lines.items())[:LABELLED_DIRECTLY]:
        color, _ = identity(tables[-1], ())
        axes.plot(range(len(kept)), kept, color=color, marker=".", ms=4, lw=1.8, label=name)
    for rotations, name in ((run.option("rope.beta"), "beta"), (run.option("rope.alpha"), "alpha")):
        pair = data.pair_of(rotations)
        if pair is not None:
            axes.axvline(pair, color="#999999", lw=0.9, ls=":", zorder=1)
            text = f"{name}: {rotations:g} turn{'s' if rotations != 1 else ''} in L"
            axes.annotate(text, (pair, 1.0), xytext=(3, 5), textcoords="offset points", color=GREY, fontsize=8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([2.0**-i for i in range(12)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "1" if y == 1 else f"1/{1 / y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("pair of head dimensions (fast to slow)")
    axes.set_title(f"s = {factor:g}", fontsize=10, pad=18)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=8)
