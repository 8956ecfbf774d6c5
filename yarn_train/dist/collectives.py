"""Reductions of scalars over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import YarnTrainError
from .failure import explained

T = TypeVar("T")
PATIENCE = timedelta(hours=6)


def sum_scalar(value: torch.Tensor) -> torch.Tensor:
    """Sum of a scalar tensor over all ranks; returned on every rank (the argument is not changed)."""
    total = value.detach().clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def max_scalar(value: torch.Tensor) -> torch.Tensor:
    """Largest of a scalar tensor over all ranks; returned on every rank (the argument is not changed)."""
    largest = value.detach().clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def to_host(*scalars: torch.Tensor) -> list[float]:
    """Their values, exact for float32 and for integers below 2**53; the device is waited for once."""
    there = [scalar.detach().double() for scalar in scalars if scalar.device.type != "cpu"]
    read = iter(torch.stack(there).tolist() if there else ())
    return [float(scalar) if scalar.device.type == "cpu" else next(read) for scalar in scalars]


def max_int(value: int, device: torch.device) -> int:
    """Largest value of an integer over all ranks."""
    return max_ints([value], device)[0]


def max_ints(values: Sequence[int], device: torch.device) -> list[int]:
    """Largest value over all ranks of each of several integers, in one collective; on the CPU no GPU is waited for."""
    if dist.get_world_size() == 1:
        return [int(value) for value in values]
    tensor = torch.tensor([int(value) for value in values], dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.get_world_size() > 1:
        dist.barrier()


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0 (a small picklable object), on every rank; the others wait for hours if need be.

    Raises:
        YarnTrainError: what `work` raised, or what its error of the storage means; the same on every rank.
    """
    result, told = None, None
    if dist.get_rank() == 0:
        try:
            result = work()
        except Exception as error:
            told = explained(error)
            if not isinstance(told, YarnTrainError):
                raise  # a bug: the others lose this rank, and say so
    if dist.get_world_size() > 1:
        box: list[Any] = [result, told]
        dist.broadcast_object_list(box, src=0, group=_patient_group(dist.group.WORLD))
        result, told = box
    if told is not None:
        raise told
    return result  # type: ignore[return-value]


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
