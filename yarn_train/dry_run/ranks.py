"""Every rank of a run as it would see itself: its place, what it reads, which rows of the model it holds.

The mesh, the loader, the sharding of sequences and FSDP2 are those of training. They run once per rank in a process
group that exists in name only, on a module without memory and on segments that hold their own addresses: the token at
position p of segment s is s * seq_len + p + 1, so what a rank read says where it came from. Of blocks that are alike
the first is sharded for all of them: 512 ranks of 7B take half a minute then, not two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from .. import remote_code
from ..config import Config, parts_of
from ..data.batch import IGNORE_INDEX
from ..data.stream import Source, Stream
from ..dist.runtime import Runtime
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES
from ..model.weights import chunk_start
from ..optim.adamw import parameter_groups
from ..parallel import fsdp
from ..parallel.context import ContextParallel
from ..plan import layers
from ..plan.trace import fake_ranks
from ..train.setup import make_loader, make_mesh
from .zero import Piece, zero_pieces

Read = tuple[int, int]  # addresses [start, end)
STEPS = 2  # first steps whose data is looked at
CPU = torch.device("cpu")


@dataclass(frozen=True)
class RankView:
    """One rank.

    Attributes:
        coordinates: in replicate x shard x ring x ulysses.
        groups: by what they do, the ranks that this one does it with, itself included.
        reads: per step, the addresses of its tokens.
        labels: per step, the number of tokens it learns to predict.
        pieces: by parameter, the elements whose weights and moments it keeps.
    """

    rank: int
    coordinates: tuple[int, ...]
    groups: Mapping[str, tuple[int, ...]]
    reads: Sequence[Sequence[Read]]
    labels: Sequence[int]
    pieces: Mapping[str, Piece]

    @property
    def elements(self) -> int:
        """Parameters whose state it keeps."""
        return sum(end - start for start, end in self.pieces.values())


class Addresses:
    """Segments of any number and length that take no memory; see the module."""

    def __init__(self, length: int, seq_len: int, first: int):
        self.length, self.seq_len, self.first = length, seq_len, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        """Segments [n, seq_len] int64; ``first`` is how many segments the sources before this one have."""
        starts = (torch.tensor(indices) + self.first) * self.seq_len + 1
        return starts[:, None] + torch.arange(self.seq_len)

    def documents(self, indices: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Each is one document."""
        return tuple((0,) for _ in indices)


def made_up(cfg: Config) -> Stream:
    """As many sources as the run's data has, each long enough for the stage to read nothing of it twice."""
    samples, first, sources = max(cfg.train.steps, STEPS) * cfg.train.global_batch_size, 0, []
    for part in parts_of(cfg.data):
        held = math.ceil(part.weight * samples) + 1
        sources.append(Source(part.name, part.weight, Addresses(held, cfg.data.seq_len, first)))  # type: ignore[arg-type]
        first += held
    return Stream(sources, cfg.run.seed)


def every_rank(cfg: Config, base: PretrainedConfig, world_size: int) -> list[RankView]:
    """All ranks of a stage. Must run in a process without a process group."""
    stream, likes = made_up(cfg), alike_names(base)
    return [_rank_view(cfg, base, world_size, rank, stream, likes) for rank in range(world_size)]


def _rank_view(
    cfg: Config, base: PretrainedConfig, world_size: int, rank: int, stream: Stream, likes: Mapping[str, str]
) -> RankView:
    with fake_ranks(world_size, rank):
        mesh = make_mesh(cfg, base, Runtime(rank, rank, world_size, CPU))
        context = ContextParallel(mesh)
        loader = make_loader(cfg, stream, mesh)
        steps = list(loader.steps(0, min(STEPS, cfg.train.steps), context.shard))
        groups = {"sharding": _copy(mesh.sharding), "ring": mesh.ring, "ulysses": mesh.ulysses}
        return RankView(
            rank=rank,
            coordinates=tuple(mesh.device_mesh.get_coordinate() or ()),
            groups={name: tuple(group.mesh.flatten().tolist()) for name, group in groups.items()},
            reads=[[run for batch in step.batches for run in _runs(batch.input_ids)] for step in steps],
            labels=[sum(int((b.labels != IGNORE_INDEX).sum()) for b in step.batches) for step in steps],
            pieces=_pieces(cfg, base, mesh.sharding, world_size, rank, likes),
        )


def _copy(sharding: DeviceMesh) -> DeviceMesh:
    """The ranks of this rank's copy of the model."""
    return sharding if sharding.ndim == 1 else sharding["fsdp"]


def meta_model(base: PretrainedConfig) -> CausalLM:
    """The model, all of it on the meta device."""
    with torch.device("meta"):
        return CausalLM(AutoModelForCausalLM.from_config(deepcopy(base), trust_remote_code=remote_code.flag(base)))


def alike_names(base: PretrainedConfig) -> dict[str, str]:
    """By parameter, the one that is cut in its place: where all blocks are alike, that of the first one."""
    module = meta_model(base)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {name: name for name in names.values()}
    if layers.alike(base):
        first = [names[id(parameter)] for parameter in module.blocks[0].parameters()]
        for block in module.blocks:
            found |= {names[id(p)]: name for p, name in zip(block.parameters(), first, strict=True)}
    return found


def _pieces(
    cfg: Config, base: PretrainedConfig, mesh: DeviceMesh, world_size: int, rank: int, likes: Mapping[str, str]
) -> dict[str, Piece]:
    """By parameter, the elements [start, end) whose weights and moments this rank keeps."""
    if cfg.engine.name == "deepspeed":
        module = meta_model(base)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups = [
            {names[id(parameter)]: parameter.numel() for parameter in group["params"]}
            for group in parameter_groups(module, cfg.optim)
        ]
        return zero_pieces(groups, cfg.engine.stage, world_size, rank)
    repeated = any(name != like for name, like in likes.items())
    module = meta_model(layers.shortened(base, 1) if repeated else base)
    fsdp.shard(module, mesh, DTYPES[cfg.model.dtype], cfg.engine)
    held = {name: _rows(parameter, _copy(mesh)) for name, parameter in module.named_parameters()}
    return {name: held[like] for name, like in likes.items()}


def _rows(parameter: Tensor, copy: DeviceMesh) -> Piece:
    """This rank's rows of a parameter, as elements; the first by the rule that weights are read by.

    The parameter's own mesh is not asked: DTensor caches what operators return by meshes that are equal, and the meshes
    of all ranks are.
    """
    if not isinstance(parameter, DTensor):
        return 0, parameter.numel()
    held = parameter.to_local().numel()
    width = parameter.numel() // max(1, parameter.shape[0])
    start = chunk_start(parameter.shape[0], copy.size(), copy.get_local_rank()) * width if held else 0
    return start, start + held


def _runs(ids: Tensor) -> list[Read]:
    """The addresses of tokens [B, S], padding left out, as runs in their order."""
    found: list[Read] = []
    for row in ids:
        row = row[row > 0] - 1
        if not row.numel():
            continue
        breaks = torch.nonzero(row[1:] != row[:-1] + 1).flatten() + 1
        for part in torch.tensor_split(row, breaks):
            found.append((int(part[0]), int(part[-1]) + 1))
    return found
