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

from .merge import Gradients, Results

Cuts = tuple[int, ...]

MAX_DOCUMENTS = 65_535  # of one call: each is a row of a CUDA grid in the dimension that has no more


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
    return copied(torch.tensor(cuts, dtype=torch.int32), device)


def longest(cuts: Cuts) -> int:
    """Tokens of the longest document."""
    return max(end - start for start, end in pairwise(cuts))


def copied(made: Tensor, device: torch.device) -> Tensor:
    """`made` on a device; the host does not wait."""
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)
