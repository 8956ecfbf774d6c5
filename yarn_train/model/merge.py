"""Tensors in the layout of attention kernels, and the merging of results over several ranges of keys."""

from __future__ import annotations

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor]  # output [B, H, S, D] and its log-sum-exp [B, H, S]
Gradients = tuple[Tensor, Tensor, Tensor]  # by q, k and v


def accumulator(t: Tensor) -> torch.dtype:
    """What sums over rectangles are kept in."""
    return torch.promote_types(t.dtype, torch.float32)


def seq_major(like: Tensor, dtype: torch.dtype | None = None, zero: bool = False) -> Tensor:
    """A new [B, H, S, D] tensor that lies in memory as [B, S, H, D]."""
    batch, heads, tokens, dim = like.shape
    make = torch.zeros if zero else torch.empty
    return make(batch, tokens, heads, dim, dtype=dtype or like.dtype, device=like.device).transpose(1, 2)


def new_lse(q: Tensor) -> Tensor:
    """An empty log-sum-exp for `q`."""
    return torch.empty(q.shape[:3], dtype=accumulator(q), device=q.device)


def repeat_heads(t: Tensor, heads: int) -> Tensor:
    """[B, Hkv, ...] -> [B, heads, ...], each head repeated for the query heads that share it."""
    return t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], dim=1)


def sum_heads(t: Tensor, heads: int) -> Tensor:
    """The gradient of :func:`repeat_heads`: [B, H, ...] -> [B, heads, ...], summed in float32."""
    if t.shape[1] == heads:
        return t
    return t.unflatten(1, (heads, -1)).sum(2, dtype=accumulator(t)).to(t.dtype)


class Merger:
    """Attention of the same queries over several ranges of keys, merged by log-sum-exp."""

    def __init__(self, q: Tensor):
        self.dtype = q.dtype
        self.out = seq_major(q, accumulator(q), zero=True)
        self.lse = new_lse(q).fill_(-torch.inf)

    def add(self, rows: slice, out: Tensor, lse: Tensor) -> None:
        """Take in the result of `rows` over one more range of keys."""
        before = self.lse[:, :, rows]
        after = torch.logaddexp(before, lse)
        total = self.out[:, :, rows]
        total.mul_((before - after).exp_().unsqueeze(-1))
        total.addcmul_(out.to(total.dtype), (lse - after).exp_().unsqueeze(-1))
        self.lse[:, :, rows] = after

    def add_rows(self, rows: Tensor, out: Tensor, lse: Tensor) -> None:
        """:meth:`add` for rows that lie apart: `rows` are their places, each once."""
        part = Merger.__new__(Merger)
        part.out = self.out.transpose(1, 2).index_select(1, rows).transpose(1, 2)
        part.lse = self.lse.index_select(2, rows)
        part.add(slice(None), out, lse)
        self.out.index_copy_(2, rows, part.out)
        self.lse.index_copy_(2, rows, part.lse)

    def result(self) -> Results:
        """The output in the queries' dtype, and its log-sum-exp."""
        return self.out.to(self.dtype), self.lse
