"""The reproduction's interactive figures, in plotly's JSON; pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..intervals import wilson
from ..report.figures.base import GREY, LINES, SYMBOLS, Figure, context_ticks, figure, short
from ..report.figures.context import perplexity_ticks
from ..report.figures.looks import band
from .experiments import METHODS

Json = dict[str, Any]


def curves(models: Mapping[str, Sequence[Json]], name: Callable[[str], str]) -> Figure:
    """Perplexity against the window, one line per model, error bars of one standard deviation over seeds."""
    traces = []
    for number, (model, cells) in enumerate(models.items()):
        plain = model == "base" or model.endswith("untrained")
        traces.append(
            {
                **_line([c["window"] for c in cells], [c["mean"] for c in cells], name(model), number, plain),
                "error_y": {"type": "data", "array": short(c["spread"] or 0.0 for c in cells), "visible": not plain},
            }
        )
    return _by_window(traces, {cell["window"] for cells in models.values() for cell in cells})


def dynamic(rows: Sequence[Json]) -> Figure:
    """Perplexity against the window, fixed factors thin, dynamic ones thick with 95 % intervals."""
    traces = []
    for number, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        chosen = sorted((row for row in rows if row["label"] == label), key=lambda row: row["window"])
        fixed = not str(chosen[0]["method"]).startswith("dynamic")
        line = _line([row["window"] for row in chosen], [row["perplexity"] for row in chosen], label, number, fixed)
        traces.append(line if fixed else {**line, "error_y": _ends(chosen)})
    return _by_window(traces, {row["window"] for row in rows})


def passkey(counts: Mapping[str, Mapping[int, tuple[int, int]]], name: Callable[[str], str]) -> Figure:
    """Share of keys found against the length, with 95 % intervals of the trained models."""
    traces = []
    for number, (model, of) in enumerate(counts.items()):
        plain = model == "base" or model.endswith("untrained")
        lengths = sorted(of)
        values = [of[length][0] / of[length][1] for length in lengths]
        line = _line(lengths, values, name(model), number, plain)
        if not plain:
            ends = [wilson(*of[length]) for length in lengths]
            up = short(max(0.0, high - v) for (_, high), v in zip(ends, values, strict=True))
            down = short(max(0.0, v - low) for (low, _), v in zip(ends, values, strict=True))
            line["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
        traces.append(line)
    windows = {length for of in counts.values() for length in of}
    axis = {**context_ticks(windows), "title": {"text": "prompt (tokens)"}}
    return figure(traces, 400, xaxis=axis, yaxis={"title": {"text": "keys found"}, "tickformat": ".0%"})


def _ends(rows: Sequence[Json]) -> Json:
    up = short(None if r["high"] is None else r["high"] - r["perplexity"] for r in rows)
    down = short(None if r["low"] is None else r["perplexity"] - r["low"] for r in rows)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}


def losses(rows: Sequence[Json], name: Callable[[str], str]) -> Figure:
    """Loss of every step by method, the mean over seeds; the band is from the lowest seed to the highest."""
    bands, lines = [], []
    for number, method in enumerate(METHODS):
        steps = list(zip(*(row["curve"] for row in rows if row["method"] == method), strict=True))
        x = list(range(1, len(steps) + 1))
        if steps and len(steps[0]) > 1:
            bands.append(band(x, list(map(min, steps)), list(map(max, steps)), LINES[number], name(method)))
        lines.append(_line(x, list(map(statistics.fmean, steps)), name(method), number, False, marked=False))
    axes = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "training loss (nats per token)"}}}
    return figure([*bands, *lines], 400, **axes)


def temperature(rows: Sequence[Json]) -> Figure | None:
    """Perplexity against t, one line per s."""
    factors = sorted({row["factor"] for row in rows})
    traces = []
    for number, factor in enumerate(factors):
        chosen = [row for row in rows if row["factor"] == factor]
        window = max(row["window"] for row in chosen)
        points = sorted((r["temperature"], r["perplexity"]) for r in chosen if r["window"] == window)
        traces.append(_line([t for t, _ in points], [p for _, p in points], f"s={factor:g}", number, False))
    if not traces:
        return None
    axis = {"title": {"text": "temperature t"}}
    return figure(traces, 400, xaxis=axis, yaxis=_perplexity(traces))


def _line(
    x: Sequence[float], y: Sequence[float | None], name: str, number: int, thin: bool, marked: bool = True
) -> Json:
    colour = GREY if thin else LINES[number % len(LINES)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "x": list(x),
        "y": short(y),
        "name": name,
        "legendgroup": name,
        "line": {"color": colour, "width": 1.2 if thin else 2.4, "dash": "dot" if thin else "solid"},
        "marker": {"symbol": SYMBOLS[number % len(SYMBOLS)], "color": colour},
    }


def _by_window(traces: Sequence[Json], windows: set[int]) -> Figure:
    return figure(
        traces,
        460,
        xaxis={**context_ticks(windows), "title": {"text": "context window (tokens)"}},
        yaxis=_perplexity(traces),
        hovermode="closest",
    )


def _perplexity(traces: Sequence[Json]) -> Json:
    values = [value for trace in traces for value in trace["y"] if value is not None]
    return {"type": "log", "title": {"text": "perplexity"}, **perplexity_ticks(values)}
