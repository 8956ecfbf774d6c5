"""Perplexity by its definition and by the reference's algorithm, from its description: slow, and without our code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


@torch.no_grad()
def nll_of(model: Any, context: torch.Tensor, target: torch.Tensor) -> float:
    """-log p(target | context): all logits, float64 softmax."""
    return -model(context[None]).logits[0, -1].double().log_softmax(-1)[target].item()


def one_at_a_time(
    model: Any, documents: Sequence[torch.Tensor], window: int, stride: int, bos: int | None = None
) -> list[list[float]]:
    """Losses by window: every token scored once, with the context the protocol gives it, in a pass of its own."""
    first = torch.tensor([] if bos is None else [bos], dtype=torch.long)
    losses = []
    for tokens in documents:
        scored = 1 if bos is None else 0
        for begin in range(0, len(tokens), stride):
            end = min(begin + window - len(first), len(tokens))
            reached = range(max(scored, begin + 1 - len(first)), end)
            losses.append([nll_of(model, torch.cat([first, tokens[begin:i]]), tokens[i]) for i in reached])
            scored = end
            if end == len(tokens):
                break
    return losses


@torch.no_grad()
def reference(
    model: Any,
    documents: Sequence[torch.Tensor],
    length: int,
    stride: int,
    bos: int | None = None,
    truncate: bool = False,
) -> float:
    """Perplexity as jquesnelle/yarn computes it.

    Each window is the start token, where there is one, and up to `length` positions in all; what the window before
    reached is masked in the labels; the model's own mean loss of each window counts once, and the mean of all windows
    of all documents is exponentiated. A window of a single token without BOS, which may be a document's last, is left
    out: the reference's mean over no tokens is NaN, and so would be its whole result. With `truncate` documents are cut
    to one window first, which then slides by its own text.
    """
    text = length - (bos is not None)
    if truncate:
        documents, stride = [tokens[:text] for tokens in documents], text
    means = []
    for tokens in documents:
        reached = 0
        for begin in range(0, len(tokens), stride):
            end = min(begin + text, len(tokens))
            ids = tokens[begin:end]
            if bos is not None:
                ids = torch.cat([torch.tensor([bos]), ids])
            labels = ids.clone()
            labels[: len(ids) - (end - reached)] = -100
            if len(ids) > 1:  # else it has no target
                means.append(model(ids[None], labels=labels[None]).loss.double().item())
            reached = end
            if end == len(tokens):
                break
    return math.exp(sum(means) / len(means))
