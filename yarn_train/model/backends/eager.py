"""Attention by plain matrices, in float32 (float64 for float64): for debugging, on any device and of any dtype.

Shapes are those of :mod:`..primitives`. The matrices are quadratic in the length: :func:`matrix_bytes` is what one call
takes, and the checks before a run refuse lengths that are not to be had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..merge import Gradients, Results, accumulator, repeat_heads, sum_heads

MATRICES = 2  # [B, H, Sq, Sk] that live at once: probabilities and their gradient, or scores and their exponentials


def matrix_bytes(batch: int, heads: int, queries: int, keys: int) -> int:
    """Memory of the matrices of one call in float32."""
    return MATRICES * 4 * batch * heads * queries * keys


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """Heads of keys and values are repeated."""
    scores = _scores(q, k, causal, scale)
    lse = scores.logsumexp(-1)
    probabilities = scores.sub_(lse.unsqueeze(-1)).exp_()
    return (probabilities @ _wide(v, q)).to(q.dtype), lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """By p = exp(scale * q k - lse) and delta = sum(dout * out), both of ALL keys, here or elsewhere."""
    heads, high = k.shape[1], accumulator(q)
    wide_q, wide_out, wide_dout = (t.to(high) for t in (q, out, dout))
    probabilities = _scores(q, k, causal, scale).sub_(lse.unsqueeze(-1)).exp_()
    dv = probabilities.transpose(2, 3) @ wide_dout
    delta = (wide_dout * wide_out).sum(-1, keepdim=True)
    dscores = (wide_dout @ _wide(v, q).transpose(2, 3)).sub_(delta).mul_(probabilities).mul_(scale)
    dq, dk = dscores @ _wide(k, q), dscores.transpose(2, 3) @ wide_q
    return dq.to(q.dtype), sum_heads(dk, heads).to(k.dtype), sum_heads(dv, heads).to(v.dtype)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """[B, H, Sq, Sk], -inf above the diagonal of a causal square."""
    scores = (q.to(accumulator(q)) @ _wide(k, q).transpose(2, 3)).mul_(scale)
    if causal:
        above = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(above, -torch.inf)
    return scores


def _wide(t: Tensor, q: Tensor) -> Tensor:
    """Keys or values for every query head, in the dtype of sums."""
    return repeat_heads(t, q.shape[1]).to(accumulator(q))
