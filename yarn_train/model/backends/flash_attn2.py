"""FlashAttention-2: the package ``flash-attn``, 2.8 or later.

Shapes of whole sequences are those of :mod:`..primitives`, of many documents those of :mod:`..varlen`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Gradients, Results, seq_major
from ..varlen import Cuts, Varlen, longest, on_device


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """It takes [B, S, H, D] and knows grouped keys and values."""
    from flash_attn.flash_attn_interface import _flash_attn_forward

    out, lse, *_ = _flash_attn_forward(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        dropout_p=0.0,
        softmax_scale=scale,
        causal=causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
    )
    return out.transpose(1, 2), lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`forward`; the package writes the gradients into the tensors it is given."""
    from flash_attn.flash_attn_interface import _flash_attn_backward

    dq, dk, dv = (seq_major(t).transpose(1, 2) for t in (q, k, v))
    _flash_attn_backward(
        dout.transpose(1, 2),
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        out.transpose(1, 2),
        lse.contiguous(),
        dq,
        dk,
        dv,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        rng_state=None,
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """:func:`forward` of many documents."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    ends, most = on_device(cuts, q.device), longest(cuts)
    out, lse, *_ = _flash_attn_varlen_forward(
        q,
        k,
        v,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=most,
        max_seqlen_k=most,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=True,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        return_softmax=False,
    )
    return out, lse


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`varlen_forward`."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    ends, most = on_device(cuts, q.device), longest(cuts)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    _flash_attn_varlen_backward(
        dout,
        q,
        k,
        v,
        out,
        lse,
        dq,
        dk,
        dv,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=most,
        max_seqlen_k=most,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=True,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        rng_state=None,
    )
    return dq, dk, dv


VARLEN = Varlen(varlen_forward, varlen_backward)
