"""Attention of few queries to many cached keys, so that a model made for training can generate.

The functions of :mod:`.attention` take whole sequences and refuse cached keys. Those here take both: new positions
attend to all cached ones (a dense rectangle) and among themselves causally (a square), by the same kernels, merged by
log-sum-exp. So a prompt can be fed in pieces, and no mask is ever built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from . import kernels, windows
from .attention import refuse_ignored
from .documents import apart, end_to_end
from .primitives import primitive_for
from .registry import IMPLEMENTATIONS, cached_kernel
from .spans import Rectangle

NAMES = {kernel: f"{name}_cached" for kernel, name in IMPLEMENTATIONS.items()}

Attend = Callable[[str, Tensor, Tensor, Tensor, float], Tensor]  # kernel, q, k, v, scale -> output, all [B, H, S, D]


def attend_cached(kernel: str, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int = 0) -> Tensor:
    """Causal attention of the LAST positions of a sequence.

    Args:
        kernel: a name of our config; see ``registry.cached_kernel`` for those that sdpa stands in for.
        query: [B, H, Sq, D], rotated, of positions Sk - Sq to Sk - 1.
        key, value: [B, Hkv, Sk, D], keys rotated; Sk >= Sq.
        window: tokens that a query sees, itself and those before; 0 is all.

    Returns:
        [B, H, Sq, D].
    """
    if 0 < window < key.shape[2]:
        key, value = (t[:, :, -(window - 1 + query.shape[2]) :] for t in (key, value))
    new, total = query.shape[2], key.shape[2]
    before = total - new
    primitive = primitive_for(cached_kernel(kernel), query.device.type, query.dtype)
    if 0 < window < total:
        return _in_window(primitive, query, key, value, scale, window)
    if new == 1:
        spans = [Rectangle(0, 1, 0, total, False)]
    else:
        spans = [Rectangle(0, new, before, total, True)]
        spans += [Rectangle(0, new, 0, before, False)] if before else []
    return kernels.attend(primitive, query, key, value, scale, spans)[0]


def _in_window(primitive: str, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
    """With no more keys than the first query's window and the new positions: as a sequence of its own.

    Its first positions have no query any more, and get one of zeros.
    """
    rows, new, total = query.shape[0], query.shape[2], key.shape[2]
    padded = end_to_end(F.pad(query, (0, 0, total - new, 0)))
    seen = windows.band(((0,),) * rows, total, window)
    out, _ = windows.attend(primitive, padded, end_to_end(key), end_to_end(value), scale, seen)
    return apart(out, rows)[:, :, -new:]


def attention_function(kernel: str, rotate: Callable[..., tuple[Tensor, Tensor]] | None = None) -> Callable[..., Any]:
    """:func:`attend_cached` in the form in which transformers calls an attention implementation.

    Args:
        rotate: (module, query, key) -> both rotated, where the cache holds keys before rotation.
    """

    def cached_attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        refuse_ignored(key, key, attention_mask, dropout, kwargs)  # cached keys are what this is for
        if rotate is not None:
            query, key = rotate(module, query, key)
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        out = attend_cached(kernel, query, key, value, float(scale), sliding_window or 0)
        return out.transpose(1, 2).contiguous(), None

    return cached_attention


@contextmanager
def implementation(model: PreTrainedModel, names: dict[str, str]) -> Iterator[None]:
    """Run the model with ``names[kernel]`` of its kernel; its own attention is put back."""
    own = model.config._attn_implementation
    model.set_attn_implementation(names[kernel_of(model)])
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def kernel_of(model: PreTrainedModel) -> str:
    """The kernel of our config that a model's attention runs; sdpa for one that transformers set up by itself."""
    name = str(model.config._attn_implementation)
    return next((kernel for kernel, own in IMPLEMENTATIONS.items() if name.startswith(own)), "sdpa")


@contextmanager
def cached(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model with attention that takes cached keys, and its own again afterwards.

    Every rank computes its own sequences, also where the model was loaded for ranks that share one.
    """
    with implementation(model, NAMES):
        yield model


for _kernel, _name in NAMES.items():
    AttentionInterface.register(_name, attention_function(_kernel))
