"""Log-probabilities of continuations: right-padded batches, the output head on scored positions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..perplexity.head import LOGITS_AT_ONCE, hidden_states, logits_of
from .requests import Answer, Question, padded


@torch.inference_mode()
def answers(model: Any, batch: Sequence[Question], logits_at_once: int = LOGITS_AT_ONCE) -> list[tuple[int, Answer]]:
    """(slot, answer) of every continuation of a batch; one pass of the decoder.

    Args:
        model: a causal LM in eval mode.
        logits_at_once: logits that exist at a time; the rest of ``[batch, positions, vocabulary]`` never does.
    """
    device = next(model.parameters()).device
    hidden = hidden_states(model, torch.from_numpy(padded(batch)).to(device), None)
    parts = [
        (row, slot, target) for row, q in enumerate(batch) for slot, target in zip(q.slots, q.targets, strict=True)
    ]
    rows = np.concatenate([np.full(len(target), row) for row, _, target in parts])
    places = np.concatenate([np.arange(-len(target), 0) + len(batch[row].tokens) for row, _, target in parts])
    targets = np.concatenate([target for _, _, target in parts]).astype(np.int64)
    wanted = hidden[torch.from_numpy(rows).to(device), torch.from_numpy(places).to(device)]
    logs, likeliest = _tokens(model, wanted, torch.from_numpy(targets).to(device), logits_at_once)
    ends = np.cumsum([len(target) for _, _, target in parts])[:-1]
    scored = zip(parts, np.split(logs, ends), np.split(likeliest, ends), strict=True)
    return [(slot, Answer(float(nats.sum()), bool(greedy.all()))) for (_, slot, _), nats, greedy in scored]


def _tokens(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, logits_at_once: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of every token: its log-probability (float64, computed in float32) and whether it is the most likely one."""
    at_once = max(1, logits_at_once // model.get_output_embeddings().weight.shape[0])
    logs, likeliest = [], []
    for states, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        logits = logits_of(model, states).float()
        likeliest.append(logits.argmax(-1) == wanted)
        logs.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(-1))
    return torch.cat(logs).double().cpu().numpy(), torch.cat(likeliest).cpu().numpy()
