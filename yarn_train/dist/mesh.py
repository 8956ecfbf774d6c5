"""Which ranks work together: the one place that turns rank numbers into process groups.

Ranks are laid out as replicate x shard x ring x ulysses, the last varying fastest: the ranks that exchange most sit
next to each other, on one machine's fast links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..config import ParallelConfig

DIMENSIONS = ("replicate", "shard", "ring", "ulysses")


def ulysses_size(parallel: ParallelConfig, heads: int) -> int:
    """How many of the `parallel.context` ranks exchange heads; the others (context / this) form the ring.

    Args:
        heads: query heads of the model; each of the ranks needs the same whole number of them.
    """
    if parallel.context_method == "ring":
        return 1
    if parallel.context_method == "ulysses":
        return parallel.context
    return parallel.ulysses or math.gcd(parallel.context, heads)


@dataclass(frozen=True)
class Mesh:
    """The device mesh of a run and this rank's place in it.

    Attributes:
        device_mesh: replicate x shard x ring x ulysses.
        sharding: what parameters are sharded over: all ranks of a copy, those that share a sequence included;
            one-dimensional, or replicate x fsdp where there are several copies.
    """

    device_mesh: DeviceMesh
    sharding: DeviceMesh

    @classmethod
    def create(cls, device_type: str, world_size: int, parallel: ParallelConfig, ulysses: int) -> Mesh:
        """Make the process groups; collective. `ulysses` is :func:`ulysses_size`."""
        shard = parallel.shard or world_size // (parallel.replicate * parallel.context)
        sizes = (parallel.replicate, shard, parallel.context // ulysses, ulysses)
        mesh = init_device_mesh(device_type, sizes, mesh_dim_names=DIMENSIONS)
        if parallel.replicate > 1:
            copies = (parallel.replicate, world_size // parallel.replicate)
            return cls(mesh, init_device_mesh(device_type, copies, mesh_dim_names=("replicate", "fsdp")))
        return cls(mesh, init_device_mesh(device_type, (world_size,), mesh_dim_names=("fsdp",)))

    @property
    def device_type(self) -> str:
        """cpu or cuda."""
        return self.device_mesh.device_type

    @property
    def replicate(self) -> int:
        """Copies of the sharded model."""
        return self.device_mesh["replicate"].size()

    @property
    def context(self) -> int:
        """Ranks that share each sequence."""
        return self.ring.size() * self.ulysses.size()

    @property
    def ring(self) -> DeviceMesh:
        """The ranks that pass keys and values around."""
        return self.device_mesh["ring"]

    @property
    def ulysses(self) -> DeviceMesh:
        """The ranks that exchange sequence for heads."""
        return self.device_mesh["ulysses"]

    @property
    def context_rank(self) -> int:
        """This rank's number among those that share its sequences, ring major."""
        return self.ring.get_local_rank() * self.ulysses.size() + self.ulysses.get_local_rank()

    @property
    def data_size(self) -> int:
        """Groups of ranks that read different sequences."""
        return self.device_mesh.size() // self.context

    @property
    def data_rank(self) -> int:
        """The number of this rank's group among them."""
        return self.device_mesh.get_rank() // self.context
