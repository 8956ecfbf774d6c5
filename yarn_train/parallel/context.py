"""Context parallelism: ranks that share each sequence. Sharding of batches, gathering of outputs, and the kernel.

Ring outside, Ulysses inside: the ranks that exchange most are the closest. Everything else of a model works on single
tokens, so nothing but attention knows that a sequence is shared.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PretrainedConfig

from ..config import ParallelConfig
from ..data.batch import IGNORE_INDEX, Batch
from ..dist.mesh import Mesh, ulysses_size
from ..errors import problem
from ..model.attention import Attend, attention, register
from ..model.local import windowed
from ..model.primitives import primitive_for
from ..model.probe import other_mixers
from ..model.registry import Kernel
from .ring import ring_attention
from .shard import Layout
from .ulysses import to_heads, to_sequence


class ContextParallel:
    """This rank's part in the sequences it shares; every method is the identity for parallel.context=1."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    @cached_property
    def layout(self) -> Layout:
        """Who holds which positions."""
        return Layout(self.mesh.ring.size(), self.mesh.ulysses.size())

    def shard(self, batch: Batch) -> Batch:
        """This rank's tokens, in its order; `documents` stay those of the whole sequence.

        A length that does not divide is padded at the end: labels ignored, positions rising on, id 0. Real tokens never
        see the padding: it comes after all of them, and with documents it is a document of its own.
        """
        if self.mesh.context == 1:
            return batch
        length = batch.input_ids.shape[1]
        padded = self.layout.padded(length)
        runs = self.layout.runs(padded, self.mesh.context_rank)
        index = torch.cat([torch.arange(*run, device=batch.input_ids.device) for run in runs])
        labels = F.pad(batch.labels, (0, padded - length), value=IGNORE_INDEX)[:, index]
        documents = batch.documents
        if documents is not None and padded > length:
            documents = tuple((*starts, length) for starts in documents)
        return Batch(
            F.pad(batch.input_ids, (0, padded - length), value=0)[:, index],
            labels,
            _rising(batch.position_ids, padded - length)[:, index],
            int((labels != IGNORE_INDEX).sum()),
            documents,
        )

    @torch.no_grad()
    def gather(self, local: Tensor, length: int) -> Tensor:
        """The inverse for an output: [B, S_local, ...] -> [B, length, ...] in order, on every rank; collective."""
        if self.mesh.context == 1:
            return local
        shards = _all_gather(_all_gather(local.transpose(0, 1), self.mesh.ulysses), self.mesh.ring)
        order = self.layout.order(shards.shape[0])[:length]
        return shards[torch.tensor(order, device=local.device)].transpose(0, 1)

    def attention(self, kernel: Kernel) -> Kernel:
        """The kernel whose implementation computes attention over this rank's context group."""
        if self.mesh.context == 1:
            return kernel
        groups = [mesh.get_group().group_name for mesh in (self.mesh.ring, self.mesh.ulysses)]
        implementation = "_".join([kernel.implementation, "context", *groups])
        register(implementation, context_attend(kernel.name, self.layout, *groups))
        ways = f"{self.layout.ring} ring x {self.layout.ulysses} ulysses ranks share a sequence"
        return dataclasses.replace(kernel, implementation=implementation, reason=f"{kernel.reason}; {ways}")


def context_problems(parallel: ParallelConfig, config: PretrainedConfig) -> list[str]:
    """Problem lines of a model that these ranks cannot share; needs its Hugging Face config only."""
    if parallel.context == 1:
        return []
    found = []
    heads = config.num_attention_heads
    ulysses = ulysses_size(parallel, heads)
    if heads % ulysses:
        fix = "set parallel.ulysses to one of them, or parallel.context_method=auto or ring"
        allowed = f"ulysses ranks that divide the model's {heads} query heads: {_divisors(heads)}"
        found.append(problem("parallel", f"ulysses={ulysses}", allowed, fix))
    if kinds := other_mixers(config):
        allowed = "models whose layers mix tokens by attention only"
        found.append(problem("parallel.context", f"layers of {', '.join(kinds)}", allowed, "set parallel.context=1"))
    if ulysses < parallel.context and windowed(config):
        got = f"a ring of {parallel.context // ulysses} ranks, and layers with a sliding window"
        fix = "use parallel.context_method=ulysses, fewer parallel.context ranks, or rope.sliding_window=off"
        found.append(problem("parallel.context", got, "rings for models that see everything", fix))
    return found


def context_attend(kernel: str, layout: Layout, ring: str, ulysses: str) -> Attend:
    """Attention over a shared sequence; `kernel` is a name of our config, `ring` and `ulysses` are group names."""

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Tensor | None, window: int) -> Tensor:
        primitive = primitive_for(kernel, q.device.type, q.dtype)

        def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if layout.ring > 1:
                if window > 0:
                    raise ValueError("a ring does not apply sliding windows; see context_problems")
                return ring_attention(q, k, v, primitive, scale, documents, ring)[0]
            return attention(q, k, v, primitive, scale, documents, window)[0]

        if layout.ulysses == 1:
            return compute(q, k, v)
        return to_sequence(compute(*to_heads(q, k, v, ulysses, layout.ulysses)), ulysses, layout.ulysses)

    return attend


def _rising(positions: Tensor, extra: int) -> Tensor:
    """[B, S] -> [B, S + extra]: each row goes on from its last position."""
    more = torch.arange(1, extra + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + more], dim=1)


def _all_gather(local: Tensor, mesh: DeviceMesh) -> Tensor:
    """[S, ...] of every rank, end to end."""
    if mesh.size() == 1:
        return local
    gathered = local.new_empty(mesh.size() * local.shape[0], *local.shape[1:])
    dist.all_gather(list(gathered.chunk(mesh.size())), local.contiguous(), group=mesh.get_group())
    return gathered


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
