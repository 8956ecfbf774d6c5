"""The judgement as text: a table of readers, then faults and notes."""

from __future__ import annotations

from collections.abc import Iterator

from .finding import FAULT, Finding
from .judge import Judgement, Row

HEAD = ("reader", "rope type", "theta", "factor", "original", "attention", "longest", "difference", "note")


def lines(judgement: Judgement) -> Iterator[str]:
    """Line by line, without colours."""
    table = [HEAD, *(cells for row in judgement.rows for cells in _cells(row))]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(HEAD) - 1)]
    for cells in table:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]]).rstrip()
    yield "difference: largest relative difference of a frequency to the first reader; lengths in tokens"
    for finding in judgement.findings:
        yield ""
        yield from _finding(finding)
    count = len(judgement.faults)
    yield ""
    yield "no fault found" if not count else f"{count} fault{'s' if count > 1 else ''} found"


def _cells(row: Row) -> Iterator[tuple[str, ...]]:
    found, gap = row.reading, row.difference
    if found.refuses:
        yield (found.reader, *("-" for _ in HEAD[1:-1]), f"refuses: {found.refuses}")
        return
    told = "-" if gap is None else "other size" if gap == float("inf") else f"{gap:.1e}" if gap else "0"
    for number, (name, layer) in enumerate(found.layers.items()):
        notes = "; ".join(found.notes) if number == 0 else ""
        kind = layer.kind if name == "all" else f"{layer.kind} ({name.removesuffix('_attention')})"
        original = "-" if layer.original_length is None else str(layer.original_length)
        longest = "-" if found.max_length is None else str(found.max_length)
        reader = found.reader if number == 0 else ""
        yield (
            reader,
            kind,
            f"{layer.theta:g}",
            f"{layer.factor:g}",
            original,
            f"{layer.attention_factor:.6g}",
            longest,
            told,
            notes,
        )


def _finding(finding: Finding) -> Iterator[str]:
    yield f"{'FAULT' if finding.level == FAULT else 'note'} {finding.name}: {finding.got}"
    yield f"  meant: {finding.meant}"
    yield f"  fix:   {finding.fix}"
