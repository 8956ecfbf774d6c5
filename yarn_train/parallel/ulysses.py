"""Ulysses: each rank trades its part of the sequence for all of the sequence and a part of the heads.

Queries, keys and values travel in ONE all-to-all, the output in another. Inside, any kernel and any document mask run
as on one device. Grouped keys and values are repeated only as far as an even split of the heads needs it.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, library
from torch.distributed.distributed_c10d import _resolve_process_group


def process_group(name: str) -> dist.ProcessGroup:
    """The process group of a name: operators take names, which compiled graphs can hold."""
    return _resolve_process_group(cast(Any, name))


@library.custom_op("yarn_train::all_to_all", mutates_args=())
def all_to_all(parts: Tensor, group: str) -> Tensor:
    """parts [U, ...], part i for rank i of the group called `group` -> [U, ...], part i from rank i; contiguous."""
    received = torch.empty_like(parts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, parts.contiguous(), group=process_group(group))
    return received


@all_to_all.register_fake
def _(parts: Tensor, group: str) -> Tensor:
    return torch.empty_like(parts, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.group = inputs[1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return all_to_all(gradient, ctx.group), None


all_to_all.register_autograd(_backward, setup_context=_save)


def kv_repeats(heads: int, kv_heads: int, ranks: int) -> int:
    """How often each key/value head is repeated so that every rank gets an even grouping of its query heads.

    A rank holds heads / ranks query heads; runs of gcd(that, heads per group) of them share a key/value head. 1 where
    the key/value heads divide by the ranks; ranks / kv_heads where there are fewer of them and they divide the ranks.
    """
    group = heads // kv_heads
    return group // math.gcd(heads // ranks, group)


def to_heads(q: Tensor, k: Tensor, v: Tensor, group: str, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """All of the sequence for a part of the heads.

    Args:
        q: [B, H, S, D]; k, v: [B, Hkv, S, D]: this rank's part of the sequence, rotated. H is a multiple of `ranks`.

    Returns:
        q [B, H / ranks, ranks * S, D] and k, v with their share of the (repeated) key/value heads.
    """
    repeats = kv_repeats(q.shape[1], k.shape[1], ranks)
    if repeats > 1:
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
    # [U, B, S, heads per rank, D]: with one sequence, what arrives already lies in memory as the kernels want it
    parts = [t.unflatten(1, (ranks, -1)).permute(1, 0, 3, 2, 4) for t in (q, k, v)]
    shares = [part.shape[3] for part in parts]
    received = all_to_all(torch.cat(parts, dim=3), group)
    whole = received.transpose(0, 1).flatten(1, 2).transpose(1, 2)
    q, k, v = whole.split(shares, dim=1)
    return q, k, v


def to_sequence(out: Tensor, group: str, ranks: int) -> Tensor:
    """The inverse, for the output: [B, H / ranks, ranks * S, D] -> [B, H, S, D], in memory [B, S, H, D]."""
    parts = out.unflatten(2, (ranks, -1)).permute(2, 0, 3, 1, 4)  # [U, B, S, H / U, D]
    received = all_to_all(parts, group)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3).transpose(1, 2)
