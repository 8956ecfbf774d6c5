"""Dynamic against fixed scaling, both without training: the form of the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rows import Row
from ..style import METHODS
from ..tables import main_mode
from . import context
from .base import DASHES, SYMBOLS, Figure, text
from .looks import Panels, band

DYNAMIC = "dynamic "
NAMES = {"pi": "PI", "ntk": "NTK-aware", "ntk_by_parts": "NTK-by-parts", "yarn": "YaRN", "none": "no scaling"}
OTHER = "#555555"


def dynamic(rows: Sequence[Row], marks: Sequence[tuple[float, str]]) -> Panels:
    """A panel of all dynamic methods, then one per method: dynamic scaling beside every fixed factor."""
    rows = main_mode(rows)
    plain = [row for row in rows if row.method == "none"]
    moving = [row for row in rows if row.method.startswith(DYNAMIC)]
    panels = []
    if moving:
        panels.append(("Dynamic scaling", _panel([*plain, *moving], marks, both=False)))
    for method in dict.fromkeys(row.method.removeprefix(DYNAMIC) for row in rows if row.method != "none"):
        here = [row for row in rows if row.method.removeprefix(DYNAMIC) == method]
        panels.append((NAMES.get(method, method), _panel([*plain, *here], marks, both=True)))
    return [(title, panel) for title, panel in panels if panel]


def _panel(rows: Sequence[Row], marks: Sequence[tuple[float, str]], both: bool) -> Figure | None:
    """With `both`, dynamic is the strong line among fixed factors; without, methods stand beside each other."""
    traces: list[dict[str, Any]] = []
    fixed = 0
    labels = dict.fromkeys(row.label for row in sorted(rows, key=lambda r: r.method.startswith(DYNAMIC)))
    for label in labels:
        curve = context.finite_curve(rows, label)
        if not curve:
            continue
        method, moves = curve[0].method.removeprefix(DYNAMIC), curve[0].method.startswith(DYNAMIC)
        color = METHODS.get(method, OTHER)
        look = {"color": color, "width": 3 if moves else 1.4, "dash": "solid" if moves else DASHES[1 + fixed % 3]}
        marker = {"color": color, "size": 7 if moves else 6, "symbol": SYMBOLS[0 if moves else 1 + fixed % 6]}
        fixed += not moves
        known = [row for row in curve if row.low == row.low and row.high == row.high]
        if moves and both and len(known) > 1:
            spans = [row.low for row in known], [row.high for row in known]
            traces.insert(0, band([row.window for row in known], *spans, color, label))
        name = text(label, 40)
        traces.append({**context.trace(curve), "name": name, "legendgroup": name, "line": look, "marker": marker})
    if not any(not trace.get("fill") for trace in traces):
        return None
    made = context.axes(traces, {row.window for row in rows}, marks)
    made["layout"] |= {"height": 400, "legend": {"orientation": "h", "traceorder": "normal"}}
    return made
