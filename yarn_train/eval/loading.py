"""A variant's model on this rank: whole, or its part of one that is sharded over all ranks (``eval.shard``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..config import Config
from ..data.batch import unlabelled
from ..dist.collectives import max_int
from ..dist.mesh import Mesh, ulysses_size
from ..dist.runtime import Runtime, free_memory
from ..errors import problem
from ..model.flops import head_dim
from ..model.load import DTYPES, build_streaming
from ..model.registry import choose_kernel
from ..model.weights import WeightFiles, fill, materialize, move_buffers
from ..parallel.context import ContextParallel
from ..parallel.fsdp import shard_decoder
from ..rope import hf as rope_hf
from .variants import Variant

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who works with whom: groups of ``mesh.context`` ranks share windows, the groups share documents.

    Attributes:
        lockstep: every rank must run as many forward passes as any other, because weights are gathered for each.
    """

    runtime: Runtime
    mesh: Mesh
    context: ContextParallel
    lockstep: bool = False

    def in_step(self, batches: Iterable[T]) -> Iterator[T | None]:
        """This rank's batches, then None for each pass that it must :meth:`join` for others; collective in lockstep."""
        mine = list(batches)
        most = max_int(len(mine), self.runtime.device) if self.lockstep else len(mine)
        yield from mine
        yield from [None] * (most - len(mine))

    @torch.inference_mode()
    def join(self, model: PreTrainedModel, passes: int = 1) -> None:
        """Passes of the decoder over a single token, for the sake of the others; what they answer is dropped."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.runtime.device)
        part = self.context.shard(unlabelled(token, token))
        for _ in range(passes):
            model.get_decoder()(input_ids=part.input_ids, position_ids=part.position_ids, use_cache=False)


def ranks_of(base: PretrainedConfig, cfg: Config, runtime: Runtime) -> Ranks:
    """The groups of an evaluation; collective. Made once, not per model."""
    parallel = dataclasses.replace(cfg.parallel, replicate=1, shard=None)
    ulysses = ulysses_size(parallel, base.num_attention_heads)
    mesh = Mesh.create(runtime.device.type, runtime.world_size, parallel, ulysses)
    return Ranks(runtime, mesh, ContextParallel(mesh), lockstep=cfg.eval.shard and runtime.world_size > 1)


def generation_problems(cfg: Config, task: str) -> list[str]:
    """Why an evaluation whose ranks each answer prompts of their own cannot run with sharded weights."""
    if not cfg.eval.shard:
        return []
    allowed = f"false for {task}, whose ranks generate on their own and would wait for each other's passes"
    return [problem("eval.shard", True, allowed, "evaluate perplexity with it, or take GPUs that hold the model")]


@contextmanager
def loaded(variant: Variant, base: PretrainedConfig, cfg: Config, ranks: Ranks) -> Iterator[PreTrainedModel]:
    """The variant's model in eval mode, its memory given back at the end; collective.

    Parameters have model.dtype, buffers (RoPE) stay float32. It takes whole sequences; generation with a cache needs
    the attention of ``model.cached``. With eval.shard each rank reads and holds its own rows of the blocks and the
    embedding, and the whole output head, which is applied outside of the model's own forward.

    Raises:
        RopeTableError: a rotary module does not hold the table of the variant.
    """
    device, dtype = ranks.runtime.device, DTYPES[cfg.model.dtype]
    kernel = ranks.context.attention(choose_kernel(cfg.model.attention, device, dtype, head_dim(base)))
    model, streams = build_streaming(variant.weights, base, variant.rope, kernel)
    built = _tables(model)
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if ranks.lockstep:
        shard_decoder(model, ranks.mesh.sharding)
    if streams:
        materialize(model, device)
    else:
        torch.nn.Module.to(model, device)
    move_buffers(model, device)
    if streams:
        with WeightFiles(variant.weights) as files:
            fill(model, files)
    _verify(model, variant, base, built)
    try:
        yield model
    finally:
        model._modules.clear()  # the caller's name for the model lives on, and with it would everything that it holds
        del model
        free_memory()


def _verify(
    model: PreTrainedModel, variant: Variant, base: PretrainedConfig, built: Mapping[str, torch.Tensor]
) -> None:
    """Compare the rotary modules with the variant's table, or with what they were `built` with by their own config."""
    if variant.rope is not None:
        rope_hf.verify_tables(model, rope_hf.table_for(base, variant.rope))
        return
    for name, table in _tables(model).items():
        if not torch.equal(table, built[name]):
            raise rope_hf.RopeTableError(f"{name} is not what the model's config made it any more")


def _tables(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of every rotary module's frequencies, on the CPU."""
    tables = [(f"{rotary.name}.{rotary.prefixed('inv_freq')}", rotary) for rotary in rope_hf.rotary_tables(model)]
    return {name: rotary.get("inv_freq").detach().cpu().clone() for name, rotary in tables}
