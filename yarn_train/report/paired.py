"""Two models on the same documents: how much better one is, with an interval of the difference itself.

Perplexities of one set of documents go up and down together, so two intervals may overlap widely although every
document says the same. The documents are resampled in pairs here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..intervals import Interval, difference
from .rows import Document, Row

RESAMPLES = 1000


@dataclass(frozen=True)
class Change:
    """A perplexity as a multiple of another: 1.05 is 5 % higher; `low` to `high` is its 95 % interval, or NaN."""

    ratio: float
    low: float = math.nan
    high: float = math.nan

    @property
    def sure(self) -> bool:
        """Whether 1 (no change) lies outside the interval."""
        return self.low > 1 or self.high < 1


def change(before: Sequence[Document], after: Sequence[Document]) -> Change | None:
    """Perplexity of `after` over that of `before`, over the documents that both have, by name.

    None where they share none, or where other tokens of them were scored. The interval is the percentile one of whole
    documents drawn again, the same draws as those of an evaluation's own intervals.
    """
    first = {row.document: row for row in before}
    pairs = [(first[row.document], row) for row in after if row.document in first]
    pairs = [(a, b) for a, b in pairs if math.isfinite(a.nll) and math.isfinite(b.nll)]
    if not pairs or any(a.tokens != b.tokens for a, b in pairs) or not (total := sum(a.tokens for a, _ in pairs)):
        return None
    more = math.fsum(b.nll - a.nll for a, b in pairs)
    found = difference([(b.nll, b.tokens) for _, b in pairs], [(a.nll, a.tokens) for a, _ in pairs], RESAMPLES)
    ratio = Interval(more / total, math.nan, math.nan) if found is None else found
    return Change(*ratio.exp())


def change_at(
    rows: Sequence[Row], documents: Sequence[Document], before: str, after: str, window: int
) -> Change | None:
    """How the perplexity of one label differs from another's at a window.

    From the documents where they are there; else the plain ratio, without an interval. None where other tokens were
    scored.
    """
    at = {row.label: row for row in rows if row.window == window}
    if before in at and after in at and at[before].scored != at[after].scored:
        return None
    of = {label: [d for d in documents if d.label == label and d.window == window] for label in (before, after)}
    paired = change(of[before], of[after])
    if paired is not None:
        return paired
    if before not in at or after not in at:
        return None
    ratio = at[after].perplexity / at[before].perplexity
    return Change(ratio) if math.isfinite(ratio) else None
