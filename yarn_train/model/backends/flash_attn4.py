"""FlashAttention-4: the package ``flash-attn-4``, written in CuTe DSL and compiled when a shape is first met.

Its two functions are those that torch calls for it (``torch.nn.attention``, implementation "FA4"). No window is asked
for: the package means "unbounded" by None, and -1 gave outputs of zeros (TransformerEngine issue 3528).
Shapes of whole sequences are those of :mod:`..primitives`, of many documents those of :mod:`..varlen`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Gradients, Results
from ..varlen import Cuts, Varlen, longest, on_device


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """It takes [B, S, H, D] and knows grouped keys and values."""
    from flash_attn.cute.interface import _flash_attn_fwd

    mine = (t.transpose(1, 2) for t in (q, k, v))
    out, lse, *_ = _flash_attn_fwd(*mine, softmax_scale=scale, causal=causal, return_lse=True)
    return out.transpose(1, 2), lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`forward`; the gradient of the output comes after the output."""
    from flash_attn.cute.interface import _flash_attn_bwd

    mine = (t.transpose(1, 2) for t in (q, k, v, out, dout))
    dq, dk, dv, *_ = _flash_attn_bwd(
        *mine, lse.contiguous(), softmax_scale=scale, causal=causal, deterministic=_deterministic()
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """:func:`forward` of many documents."""
    from flash_attn.cute.interface import _flash_attn_fwd

    ends, most = on_device(cuts, q.device), longest(cuts)
    out, lse, *_ = _flash_attn_fwd(
        q,
        k,
        v,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=most,
        max_seqlen_k=most,
        softmax_scale=scale,
        causal=True,
        return_lse=True,
    )
    return out, lse


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`varlen_forward`. Not told the longest document: the first releases have no such argument."""
    from flash_attn.cute.interface import _flash_attn_bwd

    ends = on_device(cuts, q.device)
    dq, dk, dv, *_ = _flash_attn_bwd(
        q,
        k,
        v,
        out,
        dout,
        lse.contiguous(),
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        softmax_scale=scale,
        causal=True,
        deterministic=_deterministic(),
    )
    return dq, dk, dv


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


VARLEN = Varlen(varlen_forward, varlen_backward)
