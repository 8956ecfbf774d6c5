"""Curves over the steps of one run: loss, learning rate and gradient norm; throughput, MFU and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..collect import Run, Stage
from ..style import TRAINED
from ..thin import limit, smooth, thin
from .base import GREY, Figure, figure, short, text

X = {"name": "x", "label": "over", "options": ["steps", "tokens"]}
LOOK = {"name": "lines", "label": "lines", "options": ["smoothed", "as measured"]}
TITLES = {"steps": "optimizer step", "tokens": "tokens"}


def loss(run: Run) -> Figure | None:
    """Training loss, one colour per stage, stages joined; steps that updated nothing are marked."""
    stages = _joined(run)
    if not stages:
        return None
    traces: list[dict[str, Any]] = []
    for index, (stage, x) in enumerate(stages):
        color, values = TRAINED[index % len(TRAINED)], stage.series("loss")
        name = {"name": text(stage_label(stage), 40), "legendgroup": str(index)}
        even = smooth(values, len(values) // 40)
        faint = {**name, "line": {"color": color, "width": 1}, "opacity": 0.35, "showlegend": False}
        traces.append({**line(x, values), **faint, "when": {"lines": "smoothed"}, "hoverinfo": "skip"})
        traces.append({**line(x, even), **name, "line": {"color": color, "width": 2.5}, "when": {"lines": "smoothed"}})
        plain = {**name, "line": {"color": color, "width": 1.5}, "when": {"lines": "as measured"}}
        traces.append({**line(x, values), **plain})
        traces += _skipped(stage, x, values)
    made = figure(traces, 400, yaxis={"title": {"text": "loss (nats per token)"}}, hovermode="closest")
    return {**made, "controls": [LOOK, X], "titles": TITLES}


def rate_and_norm(run: Run) -> Figure | None:
    """Learning rate above gradient norm (logarithmic)."""
    panels = [
        ("lr", "learning rate", {"rangemode": "tozero", "exponentformat": "e"}),
        ("grad_norm", "gradient norm", {"type": "log"}),
    ]
    return _panels(run, panels)


def resources(run: Run) -> Figure | None:
    """Tokens/s, MFU where the device's peak is known, and peak memory."""
    panels: list[tuple[str, str, dict[str, Any]]] = [("tokens_per_second", "tokens/s", {"rangemode": "tozero"})]
    if any(math.isfinite(v) for stage in run.stages for v in stage.series("mfu")):
        panels.append(("mfu", "MFU (%)", {"rangemode": "tozero"}))
    panels.append(("peak_memory_bytes", "memory (GiB)", {"rangemode": "tozero"}))
    return _panels(run, panels)


UNITS = {"mfu": 100.0, "peak_memory_bytes": 2.0**-30}
RATES = ("tokens_per_second", "mfu")  # drawn of the steps that are not marked as untimed


def _panels(run: Run, panels: Sequence[tuple[str, str, dict[str, Any]]]) -> Figure | None:
    stages = _joined(run)
    traces = []
    for row, (key, _, _) in enumerate(panels):
        axis = "" if row == 0 else str(row + 1)
        for index, (stage, x) in enumerate(stages):
            values = [v * UNITS.get(key, 1.0) for v in stage.series(key)]
            if not any(map(math.isfinite, values)):
                continue
            if key in RATES:
                x, values = _timed(stage, x, values)
            look = {"color": TRAINED[index % len(TRAINED)], "width": 1.8}
            name = {"name": text(stage_label(stage), 40), "legendgroup": str(index), "showlegend": False}
            traces.append({**line(x, values), **name, "line": look, "yaxis": f"y{axis}"})
    if not traces:
        return None
    shown: dict[str, Any] = {}
    gap, height = 0.06, 1.0 / len(panels)
    for row, (_, title, axis_options) in enumerate(panels):
        low, high = 1 - (row + 1) * height + gap / 2, 1 - row * height - gap / 2
        shown[f"yaxis{row + 1 if row else ''}"] = {
            "title": {"text": title},
            "domain": [max(0.0, low), min(1.0, high)],
            **axis_options,
        }
    anchor = f"y{len(panels) if len(panels) > 1 else ''}"
    made = figure(traces, 110 + 150 * len(panels), xaxis={"anchor": anchor}, hovermode="closest", **shown)
    return {**made, "controls": [X], "titles": TITLES}


def line(x: dict[str, list[float]], values: Sequence[float], lines: int = 1) -> dict[str, Any]:
    """A thinned line whose x can be steps or tokens."""
    kept = thin(values, limit(lines))
    xs = {key: short((given[i] for i in kept), 8) for key, given in x.items()}
    return {"type": "scatter", "mode": "lines", "xs": xs, "y": short(values[i] for i in kept)}


def stage_label(stage: Stage) -> str:
    """``01_s16 (s = 16)``."""
    factor = stage.option("rope.factor")
    return stage.name if not isinstance(factor, int | float) else f"{stage.name} (s = {factor:g})"


def _joined(run: Run) -> list[tuple[Stage, dict[str, list[float]]]]:
    """Stages that have steps, with steps and tokens counted from the beginning of the first one."""
    found, before = [], {"steps": 0.0, "tokens": 0.0}
    for stage in run.stages:
        if stage.metrics:
            x = progress(stage)
            found.append((stage, {key: [before[key] + v for v in values] for key, values in x.items()}))
            before = {key: before[key] + (values[-1] if values else 0.0) for key, values in x.items()}
    return found


def progress(stage: Stage) -> dict[str, list[float]]:
    """Steps and tokens of every record; tokens that are not recorded take the last that are."""
    counted, last = [], 0.0
    for value in stage.series("tokens"):
        last = value if math.isfinite(value) else last
        counted.append(last)
    return {"steps": stage.series("step"), "tokens": counted}


def _timed(stage: Stage, x: dict[str, list[float]], values: list[float]) -> tuple[dict[str, list[float]], list[float]]:
    """The places and values of the steps that say how fast training is."""
    timed = {id(record) for record in stage.timed()}
    kept = [i for i, record in enumerate(stage.metrics) if id(record) in timed]
    return {key: [given[i] for i in kept] for key, given in x.items()}, [values[i] for i in kept]


def _skipped(stage: Stage, x: dict[str, list[float]], values: Sequence[float]) -> list[dict[str, Any]]:
    where = [i for i, row in enumerate(stage.metrics) if row.get("skipped")]
    if not where:
        return []
    last, heights = math.nan, []
    for value in values:
        last = value if math.isfinite(value) else last
        heights.append(last)
    marks = {"color": GREY, "symbol": "x", "size": 8}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "skipped steps",
            "marker": marks,
            "xs": {key: short((given[i] for i in where), 8) for key, given in x.items()},
            "y": short(heights[i] for i in where),
            "text": [text(stage.metrics[i]["skipped"], 80) for i in where],
        }
    ]
