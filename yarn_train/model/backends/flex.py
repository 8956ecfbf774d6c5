"""torch's flex_attention: a Triton kernel that torch.compile writes, on CUDA; the CPU has its forward alone, unfused.

Its backward belongs to its own forward, while ours must take the output and the log-sum-exp of MORE keys than it is
given. So the forward runs again, and autograd goes through both of its results: with w = exp(lse_own - lse), the
cotangents w * dout of the output and w * sum(dout * (out_own - out)) of the log-sum-exp give exactly the gradients by
p = exp(s - lse) and delta = sum(dout * out). Shapes are those of :mod:`..primitives`, of documents :mod:`..varlen`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask

from ..merge import Gradients, Results
from ..varlen import Cuts, Varlen, copied

OPTIONS: Any = {"BACKEND": "TRITON"}  # pinned: torch would take another kernel for few queries
BLOCK, MOST_BLOCKS = 128, 1024  # tokens of a block of the mask at least; blocks of a side at most


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """Grouped keys and values are taken as they are."""
    return _attend(q.detach(), k.detach(), v.detach(), (0, q.shape[2]) if causal else None, scale)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See the module's note; costs one more forward than other kernels' backward."""
    return _gradients(dout, q, k, v, out, lse, (0, q.shape[2]) if causal else None, scale)


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """:func:`forward` of many documents."""
    q, k, v = (_sequence(t.detach()) for t in (q, k, v))
    out, lse = _attend(q, k, v, cuts, scale)
    return _tokens(out), lse.squeeze(0)


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`varlen_forward`."""
    dout, q, k, v, out = (_sequence(t) for t in (dout, q, k, v, out))
    dq, dk, dv = _gradients(dout, q, k, v, out, lse.unsqueeze(0), cuts, scale)
    return _tokens(dq), _tokens(dk), _tokens(dv)


VARLEN = Varlen(varlen_forward, varlen_backward)


def _attend(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts | None, scale: float) -> Results:
    """Causal inside of documents, or (None) every query with every key."""
    mask = None if cuts is None else block_mask(cuts, q.device)
    wanted = torch_flex.AuxRequest(lse=True)
    out, found = _kernel(q.device.type)(
        q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1], kernel_options=OPTIONS,
        return_aux=wanted,
    )  # fmt: skip
    return out, found.lse


def _gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts | None, scale: float
) -> Gradients:
    with _autograd():
        q, k, v = leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        own_out, own_lse = _attend(q, k, v, cuts, scale)
        with torch.no_grad():
            weight = (own_lse - lse).exp()
            wide = dout.to(lse.dtype)
            by_lse = weight * (wide * (own_out.to(lse.dtype) - out.to(lse.dtype))).sum(-1)
            by_out = (weight.unsqueeze(-1) * wide).to(own_out.dtype)
        dq, dk, dv = torch.autograd.grad([own_out, own_lse], leaves, [by_out, by_lse])
    return dq, dk, dv


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd inside of an operator's own code, which torch runs below it."""
    key = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for one in (key.AutogradFunctionality, key.AutogradOther, key.AutogradNestedTensor, key.ADInplaceOrView):
        excluded = excluded.remove(one)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        yield


@cache
def _kernel(device_type: str) -> Callable[..., Any]:
    if device_type == "cpu":
        return torch_flex.flex_attention
    return torch.compile(torch_flex.flex_attention, fullgraph=True)


@lru_cache(maxsize=8)
def block_mask(cuts: Cuts, device: torch.device) -> BlockMask:
    """Causal attention inside of each document, as blocks of the square: made of its cuts, never of a [T, T] tensor."""
    tokens = cuts[-1]
    size = BLOCK
    while size * MOST_BLOCKS < tokens:
        size *= 2
    number = copied(_document(cuts, torch.arange(tokens)), device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (number[query] == number[key])

    partial, full = (_ordered(found, device) for found in blocks(cuts, size))
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=size, mask_mod=visible, seq_lengths=(tokens, tokens))


def blocks(cuts: Cuts, size: int) -> tuple[Tensor, Tensor]:
    """Which blocks of keys each block of queries sees in part, and which as a whole, bool [blocks, blocks].

    It sees keys from the start of its FIRST token's document to its diagonal. Whole are the blocks before the diagonal
    that begin no earlier than its LAST token's document.
    """
    starts = torch.tensor(cuts[:-1])
    row = torch.arange(-(-cuts[-1] // size))
    last = ((row + 1) * size).clamp(max=cuts[-1]) - 1
    begin = starts[_document(cuts, row * size)] // size
    whole = -(-starts[_document(cuts, last)] // size)
    full = (row >= whole[:, None]) & (row < row[:, None])
    return (row >= begin[:, None]) & (row <= row[:, None]) & ~full, full


def _document(cuts: Cuts, positions: Tensor) -> Tensor:
    return torch.searchsorted(torch.tensor(cuts[:-1]), positions, right=True) - 1


def _ordered(found: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per row of blocks, how many are found and which, those first: int32 [1, 1, n] and [1, 1, n, n]."""
    count, order = found.sum(-1), found.int().argsort(dim=-1, descending=True, stable=True)
    return copied(count.int()[None, None], device), copied(order.int()[None, None], device)


def _tokens(t: Tensor) -> Tensor:
    """[1, H, T, D] -> [T, H, D]."""
    return t.squeeze(0).transpose(0, 1)


def _sequence(t: Tensor) -> Tensor:
    """[T, H, D] -> [1, H, T, D]."""
    return t.transpose(0, 1).unsqueeze(0)
