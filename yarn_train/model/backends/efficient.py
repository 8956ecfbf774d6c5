"""torch's memory-efficient attention on CUDA: the kernel that also takes float32.

Shapes of whole sequences are those of :mod:`..primitives`, of many documents those of :mod:`..varlen`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..merge import Gradients, Results, repeat_heads, sum_heads
from ..varlen import Cuts, Varlen, copied, longest, on_device

aten = torch.ops.aten

LSE_ALIGNMENT = 32  # rows of log-sum-exp are padded to a multiple of this, with inf
FROM_TOP_LEFT = 1  # the kernel's name for the causal mask
MAX_PADDING = 16  # rows of it for every token; one long and many short documents would make it large


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Results:
    """Heads of keys and values are repeated for the kernel."""
    k, v = (repeat_heads(t, q.shape[1]) for t in (k, v))
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return out, lse[:, :, : q.shape[2]]


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Gradients:
    """See :func:`forward`. Without dropout the random state is not read.

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


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """:func:`forward` of many documents."""
    ends, most = on_device(cuts, q.device), longest(cuts)
    q, k, v = (repeat_heads(t, q.shape[1]).unsqueeze(0) for t in (q, k, v))
    out, lse, *_ = aten._efficient_attention_forward(
        q, k, v, None, ends, ends, most, most, 0.0, FROM_TOP_LEFT, True, scale=scale
    )
    return out[0], unpadded(lse, cuts)


def varlen_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`varlen_forward` and :func:`backward`."""
    ends, most, heads = on_device(cuts, q.device), longest(cuts), k.shape[1]
    dout, out = dout.contiguous(), out.contiguous()
    q, k, v = (repeat_heads(t, q.shape[1]).unsqueeze(0) for t in (q, k, v))
    seed = torch.empty((), dtype=torch.int64, device=q.device)
    mine = (dout.unsqueeze(0), q, k, v, None, out.unsqueeze(0), ends, ends, most, most, padded(lse, cuts))
    dq, dk, dv, _ = aten._efficient_attention_backward(*mine, 0.0, seed, seed, FROM_TOP_LEFT, False, scale=scale)
    return dq[0], sum_heads(dk[0], heads), sum_heads(dv[0], heads)


def little_padding(cuts: Cuts) -> bool:
    """Whether the padded log-sum-exp stays small."""
    return (len(cuts) - 1) * _width(cuts) <= MAX_PADDING * max(cuts[-1], LSE_ALIGNMENT)


def unpadded(lse: Tensor, cuts: Cuts) -> Tensor:
    """[documents, H, longest or more] -> [H, T]."""
    return lse.transpose(0, 1).flatten(1).index_select(1, _places(cuts, lse.shape[2], lse.device))


def padded(lse: Tensor, cuts: Cuts) -> Tensor:
    """The inverse of :func:`unpadded`, filled up with inf, which makes the probabilities of rows that are none 0."""
    heads, width, documents = lse.shape[0], _width(cuts), len(cuts) - 1
    rows = lse.new_full((heads, documents * width), torch.inf)
    rows.index_copy_(1, _places(cuts, width, lse.device), lse)
    return rows.unflatten(1, (documents, width)).transpose(0, 1).contiguous()


def _width(cuts: Cuts) -> int:
    return -(-longest(cuts) // LSE_ALIGNMENT) * LSE_ALIGNMENT


@lru_cache(maxsize=8)
def _places(cuts: Cuts, width: int, device: torch.device) -> Tensor:
    """Where each token's row stands among the padded ones, int64 [T]."""
    starts, tokens = torch.tensor(cuts[:-1]), torch.arange(cuts[-1])
    document = torch.searchsorted(starts, tokens, right=True) - 1
    return copied(document * width + tokens - starts[document], device)


VARLEN = Varlen(varlen_forward, varlen_backward, little_padding)
