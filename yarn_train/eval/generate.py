"""Greedy continuation of prompts, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..model.cached import cached
from ..model.unrotated import Rotation, rotation_of


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    prompts: Tensor,
    new_tokens: int,
    *,
    stop: Collection[int] = (),
    chunk: int | None = None,
    refill: bool = False,
) -> Tensor:
    """The most likely next token, again and again.

    Prompts have one length and no padding, so no mask is needed; positions run from 0. A model that is ``unrotated``
    reads the whole prompt at the scale of its length, and each new token at the scale of the length that it makes.

    Args:
        model: a causal language model in eval mode; its attention is exchanged for one that takes cached keys.
        prompts: [B, T] int64, T >= 1, on any device.
        new_tokens: most tokens generated, >= 1.
        stop: ids after which a row is done; what follows in that row is its stop token again.
        chunk: positions of the prompts per forward pass, for less memory and the same numbers; None is all at once.
        refill: read everything again whenever the scale changed. Equal to generation without a cache at the scale of
            the current length, at its price; without it, upper layers keep what they answered at earlier scales.

    Returns:
        [B, n] int64 on the prompts' device; n < new_tokens only where every row stopped.

    Ranks that hold parts of one model must take part in every forward pass: give all of them as many prompts and no
    `stop`.

    Raises:
        ValueError: an empty prompt, or no token to generate.
    """
    if not prompts.numel() or new_tokens < 1:
        raise ValueError(f"nothing to continue or to generate: prompts {list(prompts.shape)}, new_tokens {new_tokens}")
    place = next(model.parameters()).device
    ids, start = prompts.to(place), prompts.shape[1]
    stops = torch.tensor(sorted(stop), dtype=torch.int64, device=place)
    done = torch.zeros(len(ids), dtype=torch.bool, device=place)
    rotation = rotation_of(model)
    with cached(model) if rotation is None else nullcontext():
        cache = DynamicCache()
        logits = _read(model, ids, cache, chunk, rotation)
        while True:
            following = torch.where(done, ids[:, -1], logits.argmax(-1))
            ids = torch.cat([ids, following[:, None]], dim=1)
            done |= torch.isin(following, stops)
            if ids.shape[1] == start + new_tokens or (len(stops) and bool(done.all())):
                return ids[:, start:].to(prompts.device)
            if refill and rotation and rotation.changes(ids.shape[1]):
                cache = DynamicCache()
                logits = _read(model, ids, cache, chunk, rotation)
            else:
                logits = _step(model, ids[:, -1:], cache, ids.shape[1] - 1)


def _read(model: Any, ids: Tensor, cache: DynamicCache, chunk: int | None, rotation: Rotation | None) -> Tensor:
    """Logits [B, vocabulary] of what follows `ids` [B, T]; every piece of them is read at the scale of T tokens."""
    logits, begin = torch.empty(0), 0
    if rotation:
        rotation.least = ids.shape[1]
    try:
        for piece in ids.split(chunk or ids.shape[1], dim=1):
            logits = _step(model, piece, cache, begin)
            begin += piece.shape[1]
    finally:
        if rotation:
            rotation.least = 0
    return logits


def _step(model: Any, ids: Tensor, cache: DynamicCache, begin: int) -> Tensor:
    """Logits [B, vocabulary] after `ids` [B, n], which stand at positions `begin` and on."""
    positions = torch.arange(begin, begin + ids.shape[1], device=ids.device).expand(ids.shape)
    out = model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1]
