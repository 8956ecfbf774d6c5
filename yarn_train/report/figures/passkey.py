"""How often a model finds a key in a long text, by the text's length and the key's place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..rows import Passkey
from .base import Figure, context_ticks, figure, short, text, tokens
from .looks import Panels, above, looks, vertical

SCALE = [(0.0, "#f1eef6"), (0.5, "#74a9cf"), (1.0, "#034e7b")]
MOST_DEPTHS = 10


def variants(rows: Sequence[Passkey]) -> list[str]:
    """Kinds of prompts, in the order in which they were run."""
    return list(dict.fromkeys(row.variant for row in rows))


def maps(rows: Sequence[Passkey]) -> Panels:
    """One heat map per label and variant: share of right answers, depth downwards; all have one colour scale."""
    several = len(variants(rows)) > 1
    found = []
    for label in dict.fromkeys(row.label for row in rows):
        for variant in variants(rows):
            here = [row for row in rows if row.label == label and row.variant == variant]
            if here:
                found.append((f"{label}: {variant}" if several else label, _map(here)))
    return found


def mean_accuracy(rows: Sequence[Passkey]) -> dict[int, float]:
    """Length -> right answers of all tries, over all depths."""
    found = {}
    for length in sorted({row.length for row in rows}):
        here = [row for row in rows if row.length == length and row.total]
        found[length] = sum(r.correct for r in here) / sum(r.total for r in here) if here else math.nan
    return found


def accuracy(rows: Sequence[Passkey], marks: Sequence[tuple[float, str]]) -> Panels:
    """One panel per variant: mean accuracy over all depths against the length, one line per label."""
    several = len(variants(rows)) > 1
    return [
        (variant if several else "", _accuracy([row for row in rows if row.variant == variant], marks))
        for variant in variants(rows)
    ]


def _accuracy(rows: Sequence[Passkey], marks: Sequence[tuple[float, str]]) -> Figure:
    traces = []
    for label, look in looks(rows).items():
        curve = mean_accuracy([row for row in rows if row.label == label])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(curve),
                "y": short(100 * share for share in curve.values()),
                "name": text(label, 48),
                "hovertemplate": "%{y:.1f} % at %{x:,} tokens<extra>%{fullData.name}</extra>",
                **look.lines(),
            }
        )
    lengths = {row.length for row in rows}
    inside = [(x, name) for x, name in marks if min(lengths) <= x <= max(lengths)]
    return figure(
        traces,
        340,
        xaxis={**context_ticks(lengths), "title": {"text": "length of the text (tokens)"}},
        yaxis={"title": {"text": "keys found (%)"}, "range": [-4, 104]},
        legend={"traceorder": "reversed"},
        hovermode="closest",
        shapes=[vertical(x) for x, _ in inside],
        annotations=[above(math.log10(x), name) for x, name in inside],
    )


def cells(rows: Sequence[Passkey]) -> tuple[list[int], list[float], list[list[Passkey | None]]]:
    """Lengths, depths, and the answers of each [depth][length].

    Keys that stand at random places, or at the nearest possible ones, are counted at the nearest of as many even depths
    as one length has, at most 10.
    """
    lengths = sorted({row.length for row in rows})
    of_one = max(len({row.depth for row in rows if row.length == length}) for length in lengths)
    even = len({row.depth for row in rows}) <= of_one
    steps = max(1, min(of_one, MOST_DEPTHS) - 1)
    found: dict[tuple[float, int], Passkey] = {}
    for row in rows:
        place = (row.depth if even else round(row.depth * steps) / steps, row.length)
        before = found.get(place)
        added = (before.correct, before.total) if before and not even else (0, 0)
        found[place] = replace(row, depth=place[0], correct=row.correct + added[0], total=row.total + added[1])
    depths = sorted({depth for depth, _ in found})
    return lengths, depths, [[found.get((depth, length)) for length in lengths] for depth in depths]


def _map(rows: Sequence[Passkey]) -> Figure:
    lengths, depths, found = cells(rows)
    trace = {
        "type": "heatmap",
        "x": [tokens(length) for length in lengths],
        "y": [f"{depth:.0%}" for depth in depths],
        "z": [[cell.correct / cell.total if cell and cell.total else None for cell in row] for row in found],
        "text": [[f"{cell.correct}/{cell.total}" if cell else "" for cell in row] for row in found],
        "texttemplate": "%{text}",
        "hovertemplate": "%{x} tokens, key at %{y}: %{text}<extra></extra>",
        "colorscale": SCALE,
        "zmin": 0,
        "zmax": 1,
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
    }
    made = figure(
        [trace],
        max(220, 110 + 40 * len(depths)),
        xaxis={"type": "category", "title": {"text": "length of the text (tokens)"}, "showgrid": False},
        yaxis={"type": "category", "title": {"text": "depth of the key"}, "autorange": "reversed", "showgrid": False},
    )
    return {**made, "widest": 160 + 110 * len(lengths)}
