"""Where ZeRO keeps each parameter's fp32 master weights and Adam moments on this rank.

Every stage cuts flattened parameters anywhere: stages 1 and 2 cut one flat buffer per parameter group into a piece per
rank, stage 3 cuts each parameter. A :class:`Shard` hides which. Nothing here imports DeepSpeed: it reads attributes of
the objects it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..optim.state import MOMENTS


@dataclass(frozen=True)
class Shard:
    """Elements [start, start + length) of a flattened parameter: they lie at `offset` of the fp32 tensor `flat`.

    Attributes:
        name: name in the wrapped module; a tied parameter has one shard, under its first name.
        shape: of the whole parameter.
        flat: what the base optimizer updates; this rank's elements of several parameters, or one whole parameter.
    """

    name: str
    shape: torch.Size
    flat: Tensor
    offset: int
    start: int
    length: int

    @property
    def numel(self) -> int:
        """Elements of the whole parameter."""
        return self.shape.numel()

    def of(self, flat: Tensor) -> Tensor:
        """This shard's view, [length], of a tensor laid out like `flat`."""
        return flat.detach().view(-1).narrow(0, self.offset, self.length)

    @property
    def master(self) -> Tensor:
        """The fp32 weights, [length]."""
        return self.of(self.flat)


def shards(named: dict[str, nn.Parameter], optimizer: Any, rank: int) -> Iterator[Shard]:
    """The shard of every parameter, empty ones included.

    Args:
        named: parameters by name, each once.
        optimizer: what ``deepspeed.initialize`` returned: a ZeRO optimizer, or the base optimizer for stage 0.
        rank: this rank in the group that shards.
    """
    for name, parameter in named.items():
        if hasattr(parameter, "ds_id"):
            yield _stage_3(name, parameter, optimizer, rank)
        elif hasattr(parameter, "_hp_mapping"):
            yield _stage_1_2(name, parameter, optimizer)
        else:
            yield Shard(name, parameter.shape, parameter, 0, 0, parameter.numel())


def _stage_3(name: str, parameter: Any, optimizer: Any, rank: int) -> Shard:
    """Equal pieces of each parameter, rounded up: the last ranks' are padded, or nothing but padding."""
    group, offset, piece = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = min(rank * piece, parameter.ds_numel)
    length = min(piece, parameter.ds_numel - start)
    return Shard(name, parameter.ds_shape, optimizer.fp32_partitioned_groups_flat[group], offset, start, length)


def _stage_1_2(name: str, parameter: Any, optimizer: Any) -> Shard:
    flats = _flat_partitions(optimizer)
    mapping = parameter._hp_mapping
    if mapping is None:  # nothing of it here
        return Shard(name, parameter.shape, flats[0], 0, 0, 0)
    own, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Shard(name, parameter.shape, flats[mapping.param_group_index], own.start, whole.start, own.numel)


def _flat_partitions(optimizer: Any) -> list[Tensor]:
    """One fp32 tensor per parameter group; bfloat16 at stage 1 has an optimizer class, and names, of its own."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        found: list[Tensor] = optimizer.single_partition_of_fp32_groups
    else:
        found = optimizer.fp32_groups_flat_partition
    return found


def materialize_moments(base: Optimizer, flats: list[Tensor]) -> None:
    """Make Adam's lazy state now, as its first step would: a checkpoint is loaded into tensors that must exist."""
    for flat in flats:
        state = base.state[flat]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            state.update({key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS})


@torch.no_grad()
def refresh_compute_weights(optimizer: Any) -> None:
    """Write the masters into the weights that the model computes with, as the optimizer does after a step; collective.

    Stage 0 computes with its masters.
    """
    if hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
