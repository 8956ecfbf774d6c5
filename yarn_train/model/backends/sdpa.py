"""torch's own build of FlashAttention-2 for CUDA, called by its operators.

Shapes of whole sequences are those of :mod:`..primitives`, of many documents those of :mod:`..varlen`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Gradients, Results
from ..varlen import Cuts, Varlen, longest, on_device

aten = torch.ops.aten


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's flash attention on CUDA (bfloat16, float16); knows grouped keys and values."""
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`forward`. Without dropout the random state is not read."""
    seed = torch.empty(2, dtype=torch.uint64, device=q.device)
    sizes = (q.shape[2], k.shape[2])
    return aten._scaled_dot_product_flash_attention_backward(
        dout, q, k, v, out, lse.contiguous(), None, None, *sizes, 0.0, causal, seed, seed[0], scale=scale
    )


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """:func:`forward` of many documents."""
    ends, most = on_device(cuts, q.device), longest(cuts)
    out, lse, *_ = aten._flash_attention_forward(q, k, v, ends, ends, most, most, 0.0, True, False, scale=scale)
    return out, lse


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`varlen_forward`."""
    ends, most = on_device(cuts, q.device), longest(cuts)
    seed = torch.empty(2, dtype=torch.uint64, device=q.device)
    return aten._flash_attention_backward(
        dout, q, k, v, out, lse, ends, ends, most, most, 0.0, True, seed, seed[0], scale=scale
    )


VARLEN = Varlen(varlen_forward, varlen_backward)
