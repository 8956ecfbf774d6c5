"""Whether several runs scored the same tokens. Where they did not, their perplexities are of different texts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .collect import Run
from .tables import alike, main_mode

NOT_COMPARED = "perplexities are not ranked: the runs scored different tokens (other documents, places or strides)"


def texts(run: Run) -> str:
    """The names of the documents that a run scored; empty where they are not known."""
    return "\n".join(sorted({row.document for row in run.evaluations.documents}))


def scored_alike(runs: Sequence[Run]) -> bool:
    """Whether these runs scored the same tokens at every window that several of them have."""
    known = {names for run in runs if (names := texts(run))}
    return len(known) <= 1 and alike(row for run in runs for row in main_mode(run.perplexity))
