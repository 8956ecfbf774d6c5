"""Reductions of scalars over ranks."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=6)


def sum_scalar(value: torch.Tensor) -> torch.Tensor:
    """Sum of a scalar tensor over all ranks; returned on every rank (the argument is not changed)."""
    total = value.detach().clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def max_int(value: int, device: torch.device) -> int:
    """Largest value of an integer over all ranks."""
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.get_world_size() > 1:
        dist.barrier()


def wait_for_main() -> None:
    """Wait until every rank is here, for hours if need be: rank 0 writes, reads back and compares a large model."""
    if dist.get_world_size() > 1:
        dist.barrier(group=_patient_group(dist.group.WORLD))


@lru_cache(maxsize=1)
def _patient_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """On gloo, where nothing but this wait uses it; other groups keep their short timeouts."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def from_all(value: Any) -> list[Any]:
    """Every rank's value (a small picklable object), by rank, on every rank."""
    if dist.get_world_size() == 1:
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def from_main(value: Any) -> Any:
    """Rank 0's value on every rank (a small picklable object): one rank looks at the disk, all act alike."""
    if dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
