"""Attention with a sliding window as causal squares, so that every kernel computes it and no mask tensor exists.

Query i sees the keys i - w + 1 to i of its document. Cut each document into blocks of w tokens. Inside of a block that
is plain causal attention. Of the block before, row r sees what is right of the diagonal, keys r + 1 to w - 1: a square
of w - 1 rows that is causal once its rows and keys are read backwards. Where the last block is short, the keys right of
its square are seen by all its rows: a rectangle. So the work is that of the window's band, w per token, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from . import kernels
from .merge import Gradients, Merger, Results, accumulator, seq_major
from .spans import Documents, Rectangle


@dataclass(frozen=True)
class Band:
    """The pairs of queries and keys that a window leaves, for sequences that lie end to end.

    Attributes:
        blocks: causal squares of the blocks with themselves; they fill the diagonal.
        before: rectangles of short blocks with the end of the block before.
        queries, keys: rows of the backward squares, read backwards, one square after the other.
        squares: those squares, in places of `queries` and `keys`.
    """

    blocks: tuple[Rectangle, ...]
    before: tuple[Rectangle, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    squares: tuple[Rectangle, ...]


@lru_cache(maxsize=8)
def band(documents: Documents, length: int, window: int) -> Band:
    """The band of `window` tokens for sequences of `length` tokens each.

    Args:
        documents: per sequence, where its documents start.
    """
    ends = [row * length + start for row, starts in enumerate(documents) for start in starts]
    ends.append(len(documents) * length)
    blocks: list[Rectangle] = []
    before: list[Rectangle] = []
    queries: list[int] = []
    keys: list[int] = []
    squares: list[Rectangle] = []
    for first, last in pairwise(ends):
        for start in range(first, last, window):
            stop = min(start + window, last)
            blocks.append(Rectangle(start, stop, start, stop, True))
            if start == first:
                continue
            rows = min(stop - start, window - 1)  # the last row of a whole block sees nothing of the block before
            seen = start - window + 1  # the first key that row 0 sees
            if rows:
                done = len(queries)
                squares.append(Rectangle(done, done + rows, done, done + rows, True))
                queries += reversed(range(start, start + rows))
                keys += reversed(range(seen, seen + rows))
            if seen + rows < start:
                before.append(Rectangle(start, stop, seen + rows, start, False))
    return Band(tuple(blocks), tuple(before), tuple(queries), tuple(keys), tuple(squares))


def attend(primitive: str, q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Band) -> Results:
    """Attention over a band; shapes as in :mod:`.kernels`, with one sequence (all of them end to end)."""
    merger = Merger(q)
    kernels.attend_into(merger, primitive, q, k, v, scale, seen.blocks)
    if seen.before:
        kernels.attend_into(merger, primitive, q, k, v, scale, seen.before)
    if seen.squares:
        rows, columns = _places(seen.queries, q.device), _places(seen.keys, q.device)
        parts = (_rows(q, rows), _rows(k, columns), _rows(v, columns))
        merger.add_rows(rows, *kernels.attend(primitive, *parts, scale, seen.squares))
    return merger.result()


def attend_backward(
    primitive: str,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    seen: Band,
) -> Gradients:
    """Gradients of :func:`attend`, in the dtype of q, k and v."""
    dq, dk, dv = (seq_major(t, accumulator(t), zero=True) for t in (q, k, v))
    for spans in (seen.blocks, seen.before):
        if spans:
            kernels.backward_into(dq, dk, dv, primitive, dout, q, k, v, out, lse, scale, spans)
    if seen.squares:
        rows, columns = _places(seen.queries, q.device), _places(seen.keys, q.device)
        mine = (_rows(dout, rows), _rows(q, rows), _rows(k, columns), _rows(v, columns), _rows(out, rows))
        part = kernels.attend_backward(primitive, *mine, lse[:, :, rows].contiguous(), scale, seen.squares)
        for total, at, some in zip((dq, dk, dv), (rows, columns, columns), part, strict=True):
            total.index_add_(2, at, some.to(total.dtype))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _rows(t: Tensor, at: Tensor) -> Tensor:
    """[1, H, S, D] -> its rows `at`, in memory [1, S', H, D]."""
    return t.transpose(1, 2).index_select(1, at).transpose(1, 2)


@lru_cache(maxsize=16)
def _places(rows: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device)
