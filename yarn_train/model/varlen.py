"""Attention kernels for many documents in one call: tokens of all of them end to end, and where each one ends.

What a loop over documents is to a CPU, one of these calls is to a GPU: hundreds of short documents cost one launch.

Shapes, everywhere: q, out, dout [T, H, D]; k, v [T, Hkv, D]; lse [H, T], natural logarithm, float32. `cuts` are the
rows at which documents begin, 0 first, and T at the end. Every document attends causally to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from .merge import Gradients, Results, repeat_heads, sum_heads

aten = torch.ops.aten
Cuts = tuple[int, ...]

LSE_ALIGNMENT = 32  # the memory-efficient kernel's rows of log-sum-exp are padded to a multiple of this, with inf
FROM_TOP_LEFT = 1  # its name for the causal mask
MAX_DOCUMENTS = 65_535  # of one call: each is a row of a CUDA grid in the dimension that has no more
MAX_PADDING = 16  # rows of it for every token; one long and many short documents would make it large


def always(cuts: Cuts) -> bool:
    """For kernels that take any documents."""
    return True


@dataclass(frozen=True)
class Varlen:
    """forward(q, k, v, cuts, scale) -> (out, lse); backward(dout, q, k, v, out, lse, cuts, scale) -> gradients.

    Attributes:
        suits: whether documents like these are better computed together than one by one.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Cuts, float], Results]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Cuts, float], Gradients]
    suits: Callable[[Cuts], bool] = always

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
        """`forward` of any number of documents."""
        parts = [self.forward(q[at], k[at], v[at], mine, scale) for at, mine in calls(cuts)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts], dim=1)

    def attend_backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
    ) -> Gradients:
        """`backward` of any number of documents."""
        parts = [
            self.backward(dout[at], q[at], k[at], v[at], out[at], lse[:, at].contiguous(), mine, scale)
            for at, mine in calls(cuts)
        ]
        if len(parts) == 1:
            return parts[0]
        dq, dk, dv = (torch.cat(part) for part in zip(*parts, strict=True))
        return dq, dk, dv


def calls(cuts: Cuts) -> Iterator[tuple[slice, Cuts]]:
    """The rows of each kernel call, and its documents' cuts among them."""
    for first in range(0, len(cuts) - 1, MAX_DOCUMENTS):
        mine = cuts[first : first + MAX_DOCUMENTS + 1]
        yield slice(mine[0], mine[-1]), mine if first == 0 else tuple(cut - mine[0] for cut in mine)


@lru_cache(maxsize=8)
def on_device(cuts: Cuts, device: torch.device) -> Tensor:
    """int32 [documents + 1]; copied once for all layers of a step, without making the host wait."""
    return _copied(torch.tensor(cuts, dtype=torch.int32), device)


def longest(cuts: Cuts) -> int:
    """Tokens of the longest document."""
    return max(end - start for start, end in pairwise(cuts))


def flash_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """torch's own flash attention on CUDA (bfloat16, float16)."""
    ends, most = on_device(cuts, q.device), longest(cuts)
    out, lse, *_ = aten._flash_attention_forward(q, k, v, ends, ends, most, most, 0.0, True, False, scale=scale)
    return out, lse


def flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`flash_forward`. Without dropout the random state is not read."""
    ends, most = on_device(cuts, q.device), longest(cuts)
    seed = torch.empty(2, dtype=torch.uint64, device=q.device)
    return aten._flash_attention_backward(
        dout, q, k, v, out, lse, ends, ends, most, most, 0.0, True, seed, seed[0], scale=scale
    )


def efficient_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """torch's memory-efficient attention on CUDA (float32 too); heads of keys and values are repeated for it."""
    ends, most = on_device(cuts, q.device), longest(cuts)
    q, k, v = (repeat_heads(t, q.shape[1]).unsqueeze(0) for t in (q, k, v))
    out, lse, *_ = aten._efficient_attention_forward(
        q, k, v, None, ends, ends, most, most, 0.0, FROM_TOP_LEFT, True, scale=scale
    )
    return out[0], unpadded(lse, cuts)


def efficient_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`efficient_forward`. Without dropout the random state is not read.

    The kernel is told no distance between rows of `out`: it takes them to lie end to end.
    """
    ends, most, heads = on_device(cuts, q.device), longest(cuts), k.shape[1]
    dout, out = dout.contiguous(), out.contiguous()
    q, k, v = (repeat_heads(t, q.shape[1]).unsqueeze(0) for t in (q, k, v))
    seed = torch.empty((), dtype=torch.int64, device=q.device)
    mine = (dout.unsqueeze(0), q, k, v, None, out.unsqueeze(0), ends, ends, most, most, padded(lse, cuts))
    dq, dk, dv, _ = aten._efficient_attention_backward(*mine, 0.0, seed, seed, FROM_TOP_LEFT, False, scale=scale)
    return dq[0], sum_heads(dk[0], heads), sum_heads(dv[0], heads)


def little_padding(cuts: Cuts) -> bool:
    """Whether the memory-efficient kernel's padded log-sum-exp stays small."""
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
    return _copied(document * width + tokens - starts[document], device)


def _copied(made: Tensor, device: torch.device) -> Tensor:
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def flash_attn_forward(q: Tensor, k: Tensor, v: Tensor, cuts: Cuts, scale: float) -> Results:
    """The flash_attn package (2.8 or later)."""
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


def flash_attn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: Cuts, scale: float
) -> Gradients:
    """See :func:`flash_attn_forward`; the package writes the gradients into the tensors it is given."""
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


FLASH = Varlen(flash_forward, flash_backward)
EFFICIENT = Varlen(efficient_forward, efficient_backward, little_padding)
FLASH_ATTN = Varlen(flash_attn_forward, flash_attn_backward)
