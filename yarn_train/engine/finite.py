"""Whether numbers can be trained on: neither infinite nor NaN."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def is_finite(value: Tensor) -> bool:
    """Of a scalar; waits for the device."""
    return bool(value.isfinite().item())


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Of every element of this rank's `tensors`; each is read once, and the device is waited for once."""
    largest = [torch.linalg.vector_norm(t, torch.inf).double() for t in tensors if t.numel()]
    return not largest or is_finite(torch.stack(largest).sum())


def agreed(norm: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`norm`, or NaN if it is not finite on any rank of `group`; collective."""
    bad = norm.isfinite().logical_not().int()
    dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=group)
    return torch.where(bad.bool(), torch.nan, norm)
