"""Each held-out document's loss, of every model: which are hard, and whether one of them decides a mean."""

from __future__ import annotations

from collections.abc import Sequence

from ..rows import Document
from .base import Figure, figure
from .looks import dots, is_base, looks

MOST = 60  # documents in a figure: the hardest and the easiest


def documents(rows: Sequence[Document]) -> Figure | None:
    """One line per document, the hardest above, a mark per label; a choice of windows, the largest first."""
    rows = [row for row in rows if row.loss == row.loss and row.tokens]
    windows = sorted({row.window for row in rows}, reverse=True)
    shown = looks(rows)
    if not rows:
        return None
    last = list(shown)[-1]
    order = _order(rows, last, max(row.window for row in rows if row.label == last))
    traces = []
    for window in windows:
        for label, look in shown.items():
            here = {row.document: row for row in rows if row.window == window and row.label == label}
            known = [here[name] for name in order if name in here]
            if not known:
                continue
            points = [(tail(row.document), row.loss, 0.0) for row in known]
            hover = [f"{row.loss:.4g} nats per token, {row.tokens:,} tokens of {row.document}" for row in known]
            trace = dots(points, look, label, hover)
            if not look.main and not is_base(known[0]):
                trace["visible"] = "legendonly"
            traces.append({**trace, "when": {"window": f"{window}"}})
    made = figure(
        traces,
        130 + 20 * len(order),
        xaxis={"title": {"text": "loss (nats per token)"}},
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": [tail(name) for name in order]},
        legend={"traceorder": "reversed"},
        hovermode="closest",
    )
    controls = [{"name": "window", "label": "window", "options": [f"{w}" for w in windows]}]
    return {**made, "controls": controls} if len(windows) > 1 else {**made, "data": [_always(t) for t in traces]}


def tail(name: str, longest: int = 40) -> str:
    """The end of a document's name, which tells files of one folder apart."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _order(rows: Sequence[Document], label: str, window: int) -> list[str]:
    """Documents by their loss, the easiest first; of very many those at both ends."""
    losses = {row.document: row.loss for row in rows if row.label == label and row.window == window}
    order = sorted(losses, key=losses.__getitem__)
    return order if len(order) <= MOST else [*order[: MOST // 2], *order[-MOST // 2 :]]


def _always(trace: Figure) -> Figure:
    return {key: value for key, value in trace.items() if key != "when"}
