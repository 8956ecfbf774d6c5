"""Scores of all documents of a plan, whichever ranks score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...dist.collectives import from_all
from ..loading import Ranks
from .plan import Plan
from .score import score
from .scores import Scores


def scores(
    model: Any,
    window: int,
    scoring: Plan,
    ranks: Ranks,
    *,
    curves: bool = False,
    on_batch: Callable[[], None] | None = None,
) -> Scores:
    """Scores at one window, in the order of the plan's documents, equal on every rank; collective.

    Each group of ranks that shares windows takes every so manieth document.

    Args:
        window: any number of tokens; one of the plan's for its protocol to make sense.
        curves: as of :func:`score`.
        on_batch: called after every forward pass.
    """
    mesh = ranks.mesh
    documents, stride = cut(scoring, window)
    mine = documents[mesh.data_rank :: mesh.data_size]
    part = None
    if mine or ranks.lockstep:
        part = score(
            model,
            mine,
            window,
            stride,
            scoring.score_from,
            batch_tokens=scoring.batch_tokens,
            device=ranks.runtime.device,
            bos_id=scoring.bos_id,
            ranks=ranks,
            curves=curves,
            on_batch=on_batch,
        )
    found = from_all((mesh.data_rank, part) if mesh.context_rank == 0 else None)
    parts = {rank: of_rank for rank, of_rank in (pair for pair in found if pair) if of_rank is not None}
    nll: list[list[float]] = [[] for _ in documents]
    counts: list[list[int]] = [[] for _ in documents]
    lines = [np.zeros(0, dtype=np.float32)] * (len(documents) if curves else 0)
    for rank, of_rank in parts.items():
        nll[rank :: mesh.data_size], counts[rank :: mesh.data_size] = of_rank.nll, of_rank.counts
        if curves:
            lines[rank :: mesh.data_size] = of_rank.curves
    return Scores(window, stride, nll, counts, scoring.score_from, lines)


def cut(scoring: Plan, window: int) -> tuple[Sequence[torch.Tensor], int]:
    """Documents and stride at a window: with `truncate` one window's text of each, and no second step.

    As the reference does it, BOS takes one of the window's positions.
    """
    if not scoring.truncate:
        return scoring.documents, scoring.stride
    text = window - (scoring.bos_id is not None)
    return [document[:text] for document in scoring.documents], text


def positions_of(scoring: Plan, window: int) -> int:
    """Positions that all documents' windows have together: what a pass over them costs, attention aside."""
    if scoring.truncate:
        return sum(min(window, len(document)) for document in scoring.documents)
    begin = scoring.score_from or 0
    return window * sum(max(1, (len(document) - begin) // scoring.stride) for document in scoring.documents)
