"""Benchmarks of extended models against their base: differences and their errors."""

from __future__ import annotations

from collections.abc import Sequence

from ..regressions import BEYOND, Regression
from .base import Figure, figure
from .looks import Look, dots, looks, vertical


def differences(found: Sequence[Regression]) -> Figure | None:
    """One line per task, a mark per model at value less the base's, with 2 combined standard errors to both sides."""
    if not found:
        return None
    names = list(dict.fromkeys(name(r) for r in found))[::-1]
    shown = looks([r.score for r in found])
    traces = [dots(*_points(found, label, look)) for label, look in shown.items()]
    for trace, look in zip(traces, shown.values(), strict=True):
        if not look.main and any(other.main for other in shown.values()):
            trace["visible"] = "legendonly"
    return figure(
        traces,
        150 + (20 + 14 * min(4, len(traces))) * len(names),
        scattermode="group",
        scattergap=0.4,
        xaxis={"title": {"text": "points more than the base"}},
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": names},
        legend={"traceorder": "reversed"},
        hovermode="closest",
        shapes=[vertical(0, dash="solid")],
    )


def name(found: Regression) -> str:
    """Task and metric, as both are needed to tell results apart."""
    return f"{found.score.task} {found.score.metric}"


def _points(
    found: Sequence[Regression], label: str, look: Look
) -> tuple[list[tuple[str, float, float]], Look, str, list[str]]:
    here = [r for r in found if r.score.label == label]
    points = [(name(r), 100 * r.difference, 100 * BEYOND * r.stderr) for r in here]
    hover = [
        f"{name(r)}: {100 * r.score.value:.2f}, base {100 * r.base.value:.2f}, "
        f"difference {100 * r.difference:+.2f}" + (f", {r.verdict} than chance" if r.verdict else "")
        for r in here
    ]
    return points, look, label, hover
