"""Attention kernels that give back and take the log-sum-exp, and attention over rectangles made of them.

A primitive computes one dense or causal rectangle. Its backward works with the output and log-sum-exp of a LONGER key
range than it is given, since p = exp(scale * q k - lse) and delta = sum(dout * out) only need the final values: that
is what lets ring attention compute gradients one shard of keys at a time.

Shapes, everywhere: q, out, dout [B, H, Sq, D]; k, v [B, Hkv, Sk, D] with H a multiple of Hkv; lse [B, H, Sq], natural
logarithm, float32 (float64 for float64 inputs). Tensors of the first kind lie in memory as [B, S, H, D]: what
projections make and what every kernel reads without a copy. A causal rectangle has Sq == Sk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .merge import Merger, Results, accumulator, new_lse, seq_major
from .spans import Rectangle, disjoint

aten = torch.ops.aten
Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Primitive:
    """forward(q, k, v, causal, scale) -> (out, lse); backward(dout, q, k, v, out, lse, causal, scale) -> gradients."""

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], Results]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool, float], Gradients]


def cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's flash attention for the CPU; knows grouped keys and values."""
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`cpu_forward`."""
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


LSE_ALIGNMENT = 32  # the memory-efficient kernel's rows of log-sum-exp are padded to a multiple of this, with inf


def efficient_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """torch's memory-efficient attention on CUDA (float32 too); heads of keys and values are repeated for it."""
    k, v = (repeat_heads(t, q.shape[1]) for t in (k, v))
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return out, lse[:, :, : q.shape[2]]


def efficient_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`efficient_forward`. Without dropout the random state is not read."""
    heads = k.shape[1]
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
        deterministic=False,
        rng_state=None,
    )
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


PRIMITIVES = {
    "cpu": Primitive(cpu_forward, cpu_backward),
    "flash": Primitive(flash_forward, flash_backward),
    "efficient": Primitive(efficient_forward, efficient_backward),
    "flash_attention_2": Primitive(flash_attn_forward, flash_attn_backward),
}


def primitive_for(kernel: str, device_type: str, dtype: torch.dtype) -> str:
    """Name of the primitive that runs a kernel of our config: sdpa is pinned, never left to torch's own choice."""
    if kernel == "flash_attention_2":
        return "flash_attention_2"
    if device_type == "cpu":
        return "cpu"
    return "flash" if dtype in (torch.bfloat16, torch.float16) else "efficient"


def repeat_heads(t: Tensor, heads: int) -> Tensor:
    """[B, Hkv, S, D] -> [B, heads, S, D], each head repeated for the query heads that share it."""
    return t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], dim=1)


def sum_heads(t: Tensor, heads: int) -> Tensor:
    """The gradient of :func:`repeat_heads`: [B, H, S, D] -> [B, heads, S, D], summed in float32."""
    if t.shape[1] == heads:
        return t
    return t.unflatten(1, (heads, -1)).sum(2, dtype=accumulator(t)).to(t.dtype)


def attend(primitive: str, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Sequence[Rectangle]) -> Results:
    """Attention over rectangles that cover every query row."""
    forward = PRIMITIVES[primitive].forward
    if _is_whole(spans, q, k):
        out, lse = forward(q, k, v, spans[0].causal, scale)
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()
    if disjoint((s.q0, s.q1) for s in spans):
        out, lse = seq_major(q), new_lse(q)
        for s in spans:
            rows, keys = slice(s.q0, s.q1), slice(s.k0, s.k1)
            out[:, :, rows], lse[:, :, rows] = forward(q[:, :, rows], k[:, :, keys], v[:, :, keys], s.causal, scale)
        return out, lse
    merger = Merger(q)
    attend_into(merger, primitive, q, k, v, scale, spans)
    return merger.result()


def attend_into(
    merger: Merger, primitive: str, q: Tensor, k: Tensor, v: Tensor, scale: float, spans: Sequence[Rectangle]
) -> None:
    """Add attention over `spans` to what `merger` has."""
    for s in spans:
        rows, keys = slice(s.q0, s.q1), slice(s.k0, s.k1)
        part = PRIMITIVES[primitive].forward(q[:, :, rows], k[:, :, keys], v[:, :, keys], s.causal, scale)
        merger.add(rows, *part)


def attend_backward(
    primitive: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    spans: Sequence[Rectangle],
) -> Gradients:
    """Gradients of :func:`attend`, in the dtype of q, k and v."""
    if _is_whole(spans, q, k):
        gradients = PRIMITIVES[primitive].backward(dout, q, k, v, out, lse, spans[0].causal, scale)
        dq, dk, dv = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in gradients)
        return dq, dk, dv
    # where no row meets two rectangles there is nothing to sum, so nothing to sum in float32
    once = disjoint((s.q0, s.q1) for s in spans) and disjoint((s.k0, s.k1) for s in spans)
    sums = [seq_major(t, None if once else accumulator(t), zero=True) for t in (q, k, v)]
    backward_into(sums[0], sums[1], sums[2], primitive, dout, q, k, v, out, lse, scale, spans)
    return sums[0].to(q.dtype), sums[1].to(k.dtype), sums[2].to(v.dtype)


def backward_into(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    primitive: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    spans: Sequence[Rectangle],
) -> None:
    """Add the gradients of attention over `spans`; `out` and `lse` are those over ALL keys, here or elsewhere."""
    for s in spans:
        rows, keys = slice(s.q0, s.q1), slice(s.k0, s.k1)
        mine = (dout[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], lse[:, :, rows])
        parts = PRIMITIVES[primitive].backward(*mine, s.causal, scale)
        for total, part in zip((dq[:, :, rows], dk[:, :, keys], dv[:, :, keys]), parts, strict=True):
            total.add_(part)


def _is_whole(spans: Sequence[Rectangle], q: Tensor, k: Tensor) -> bool:
    return len(spans) == 1 and spans[0][:4] == (0, q.shape[2], 0, k.shape[2])
