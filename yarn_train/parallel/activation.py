"""Which activations are kept for backward and which are computed again."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Keep only each block's inputs and run its forward a second time in backward.

    Replaces ``forward``, not the module: parameter names stay, and hooks of a sharding engine stay outside of the
    recomputation. Without gradients (evaluation) the block runs as it is.
    """
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward, *args, **kwargs):  # type: ignore[no-untyped-def]
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
