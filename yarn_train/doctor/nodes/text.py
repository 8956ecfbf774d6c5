"""The comparison of machines as text: a table, and one line. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence

from ..finding import FAIL, WARN, Finding
from .compared import Meet, Node, rate_text
from .rounds import Pair


def summary(nodes: Sequence[Node], found: Sequence[Finding], expected: int) -> str:
    """The verdict line."""
    failed = [f"{f.what}: {re.split('[:;]', f.figure)[0]}" for f in found if f.status == FAIL]
    if failed:
        return f"NOT READY: {'; '.join(failed)}"
    ranks = sum(len(node.ranks) for node in nodes)
    devices = sorted({str(node.identity.get("device", "?")) for node in nodes})
    warned = sum(finding.status == WARN for finding in found)
    note = f" ({warned} warning{'s' if warned != 1 else ''} above)" if warned else ""
    return f"ready: {len(nodes)} of {expected} machines, {ranks} x {' + '.join(devices)}{note}"


def table(nodes: Sequence[Node], pairs: Mapping[Pair, Meet]) -> list[str]:
    """The machines, aligned: what each does alone, within, and with its partners (best, median, latency)."""
    head = (
        "machine",
        "device",
        "ranks",
        "matmul TFLOP/s",
        "memory GB/s",
        "within",
        "best pair",
        "median pair",
        "latency us",
    )
    rows = [head]
    for node in nodes:
        mine = [meet for pair, meet in pairs.items() if node.number in pair]
        rates, late = [m.bus for m in mine if m.bus], [m.latency for m in mine if m.latency]
        rows.append(
            (
                node.label,
                str(node.identity.get("device", "?")),
                str(len(node.ranks)),
                _least([r.matmul for r in node.ranks], 1e12),
                _least([r.memory for r in node.ranks], 1e9),
                rate_text(node.intra) if node.intra else "-",
                rate_text(max(rates)) if rates else "-",
                rate_text(statistics.median(rates)) if rates else "-",
                f"{min(late) * 1e6:,.0f}" if late else "-",
            )
        )
    wide = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]


def _least(values: Sequence[float | None], unit: float) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known) / unit:,.2f}" if known else "-"
