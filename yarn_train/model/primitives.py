"""Attention kernels that give back and take the log-sum-exp of one dense or causal rectangle.

A primitive's backward works with the output and log-sum-exp of a LONGER key range than it is given, since
p = exp(scale * q k - lse) and delta = sum(dout * out) only need the final values: that is what lets ring attention
compute gradients one shard of keys at a time.

Shapes, everywhere: q, out, dout [B, H, Sq, D]; k, v [B, Hkv, Sk, D] with H a multiple of Hkv; lse [B, H, Sq], natural
logarithm, float32 (float64 for float64 inputs). Tensors of the first kind lie in memory as [B, S, H, D]: what
projections make and what every kernel reads without a copy. A causal rectangle has Sq == Sk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import cpu_backward as native
from . import varlen
from .merge import Gradients, Results, repeat_heads, seq_major, sum_heads
from .varlen import LSE_ALIGNMENT, Varlen

aten = torch.ops.aten


@dataclass(frozen=True)
class Primitive:
    """forward(q, k, v, causal, scale) -> (out, lse); backward(dout, q, k, v, out, lse, causal, scale) -> gradients.

    Attributes:
        varlen: the same kernel for many causal squares in one call, if it has that form.
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], Results]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], Gradients]
    varlen: Varlen | None = None


def cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's flash attention for the CPU; knows grouped keys and values."""
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`cpu_forward`; where it was compiled and takes these tensors, our own kernel."""
    if native.suits(q, k, v):
        return native.backward(dout, q, k, v, out, lse, causal, scale)
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal, scale=scale)


def flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's own flash attention on CUDA (bfloat16, float16); knows grouped keys and values."""
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return out, lse


def flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`flash_forward`. Without dropout the random state is not read."""
    seed = torch.empty(2, dtype=torch.uint64, device=q.device)
    sizes = (q.shape[2], k.shape[2])
    return aten._scaled_dot_product_flash_attention_backward(
        dout, q, k, v, out, lse.contiguous(), None, None, *sizes, 0.0, causal, seed, seed[0], scale=scale
    )


def efficient_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's memory-efficient attention on CUDA (float32 too); heads of keys and values are repeated for it."""
    k, v = (repeat_heads(t, q.shape[1]) for t in (k, v))
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return out, lse[:, :, : q.shape[2]]


def efficient_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`efficient_forward`. Without dropout the random state is not read.

    The kernel is told no distance between rows of `out`: it takes them to lie end to end.
    """
    heads = k.shape[1]
    dout, out = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (dout, out))
    k, v = (repeat_heads(t, q.shape[1]) for t in (k, v))
    lse = torch.nn.functional.pad(lse, (0, -lse.shape[2] % LSE_ALIGNMENT), value=torch.inf).contiguous()
    seed = torch.empty((), dtype=torch.int64, device=q.device)
    wanted = [True, True, True, False]
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        dout, q, k, v, None, out, lse, seed, seed, 0.0, wanted, causal, scale=scale
    )
    return dq, sum_heads(dk, heads), sum_heads(dv, heads)


def flash_attn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """The flash_attn package (2.8 or later); it takes [B, S, H, D] and knows grouped keys and values."""
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


def flash_attn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`flash_attn_forward`; the package writes the gradients into the tensors it is given."""
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


PRIMITIVES = {
    "cpu": Primitive(cpu_forward, cpu_backward),
    "flash": Primitive(flash_forward, flash_backward, varlen.FLASH),
    "efficient": Primitive(efficient_forward, efficient_backward, varlen.EFFICIENT),
    "flash_attention_2": Primitive(flash_attn_forward, flash_attn_backward, varlen.FLASH_ATTN),
}


def primitive_for(kernel: str, device_type: str, dtype: torch.dtype) -> str:
    """Name of the primitive that runs a kernel of our config: sdpa is pinned, never left to torch's own choice."""
    if kernel == "flash_attention_2":
        return "flash_attention_2"
    if device_type == "cpu":
        return "cpu"
    return "flash" if dtype in (torch.bfloat16, torch.float16) else "efficient"
