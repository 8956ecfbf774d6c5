"""Run one optimizer step of the real configuration on tensors without memory, and book every byte of it.

The model, its transforms, the engine and the losses are those of training; only their tensors are fake (shapes without
data) and their process group answers at once. Any number of ranks, of any GPU, is traced by one CPU core in seconds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PretrainedConfig

from ..config import Config, accumulation_steps
from ..data.batch import Batch, make_batch
from ..dist.mesh import Mesh, ulysses_size
from ..engine import fsdp2
from ..engine.fsdp2 import FSDP2Engine
from ..model import loss as losses
from ..model.causal_lm import CausalLM
from ..model.load import DTYPES, build_skeleton
from ..model.registry import choose_kernel
from ..model.weights import materialize
from ..parallel.context import ContextParallel
from ..parallel.offload import Pool
from ..parallel.plan import parallelize
from . import layers
from .hidden import hidden_bytes
from .ledger import (
    BATCH,
    COMMUNICATION,
    GRADIENTS,
    HOST,
    LOSS,
    OPTIMIZER,
    SAVED,
    TEMPORARY,
    WEIGHTS,
    Ledger,
    Moment,
)

CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one rank of a step holds and moves; FSDP2 in float32 with everything on the device unless said otherwise.

    Attributes:
        moments: the fullest instant of each part of the step, by what is not in :func:`off_device`; bytes by category.
        saved: bytes by category that were made in a micro-batch's forward and wait for its backward.
        moved: bytes that pointwise kernels read and write per micro-batch.
        sent: bytes of collectives per micro-batch, by operator.
    """

    moments: tuple[Moment, ...]
    saved: Mapping[str, int]
    moved: int
    sent: Mapping[str, int]


def off_device(cfg: Config) -> frozenset[str]:
    """Categories of a trace that are not on the device, or that are booked by arithmetic instead (DeepSpeed's)."""
    if cfg.engine.name == "deepspeed":
        return frozenset({HOST, WEIGHTS, GRADIENTS, OPTIMIZER, COMMUNICATION})
    moved = {"none": (), "optimizer": (OPTIMIZER,), "all": (WEIGHTS, GRADIENTS, OPTIMIZER)}
    return frozenset({HOST, *moved[cfg.engine.offload]})


def traced_form(cfg: Config) -> Config:
    """The configuration that is run in place of `cfg`: what fake tensors cannot show is booked by arithmetic later.

    DeepSpeed becomes FSDP2 (the same activations), offloaded state stays on the device, 8-bit moments are float32, the
    fused loss is the chunked one (as large), and nothing is compiled (compilation only removes temporaries).
    """
    engine = dataclasses.replace(cfg.engine, name="fsdp2", zero_stage=None, offload="none")
    state = "float32" if cfg.optim.state == "8bit" else cfg.optim.state
    loss = "chunked" if cfg.memory.loss == "fused" else cfg.memory.loss
    return dataclasses.replace(
        cfg,
        engine=engine,
        optim=dataclasses.replace(cfg.optim, state=state),
        memory=dataclasses.replace(cfg.memory, loss=loss),
        compile=dataclasses.replace(cfg.compile, enabled=False),
    )


def trace(cfg: Config, base: PretrainedConfig, world_size: int) -> Trace:
    """Trace rank 0's step of :func:`traced_form` over `world_size` ranks.

    Where all blocks are alike, models of four and five blocks are traced and the rest is arithmetic, see
    :mod:`plan.layers`. Must run in a process without a process group; see :mod:`plan.jobs`.
    """
    edge = max(2, cfg.engine.prefetch + 1)
    few, whole = 2 * edge, base.num_hidden_layers
    if whole <= few + 1 or not layers.alike(base):
        return trace_whole(cfg, base, world_size)
    shorter, longer = (trace_whole(cfg, layers.shortened(base, count), world_size) for count in (few, few + 1))
    return extrapolated(shorter, longer, whole - few)


def extrapolated(few: Trace, more: Trace, blocks: int) -> Trace:
    """The trace of a model with so many more blocks than `few` has; `more` has one more."""

    def further(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
        return {key: a.get(key, 0) + blocks * (b.get(key, 0) - a.get(key, 0)) for key in {*a, *b}}

    later = {moment.part: moment.live for moment in more.moments}
    return Trace(
        moments=tuple(Moment(moment.part, further(moment.live, later[moment.part])) for moment in few.moments),
        saved=further(few.saved, more.saved),
        moved=few.moved + blocks * (more.moved - few.moved),
        sent=further(few.sent, more.sent),
    )


def trace_whole(cfg: Config, base: PretrainedConfig, world_size: int) -> Trace:
    """:func:`trace` with every block."""
    absent, cfg = off_device(cfg), traced_form(cfg)
    with fake_ranks(world_size), gpu_sizes():
        mesh = Mesh.create("cpu", world_size, cfg.parallel, ulysses_size(cfg.parallel, base.num_attention_heads))
        context = ContextParallel(mesh)
        module = _skeleton(cfg, base, context)
        parallelize(module, cfg, mesh)
        segments = torch.zeros(cfg.train.micro_batch_size, cfg.data.seq_len, dtype=torch.int64)
        batch = context.shard(make_batch(segments))
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, Ledger(hidden_bytes) as ledger, host_buffers(ledger):
            materialize(module, CPU)
            _fake_buffers(module, fake)
            ledger.label([*module.parameters(), *module.buffers()], WEIGHTS)
            engine = FSDP2Engine(module, cfg, mesh)
            _first_step(engine, ledger)
            layers.name_parts(module.blocks, max(2, cfg.engine.prefetch + 1), ledger)
            micro_batches = min(2, accumulation_steps(cfg, world_size))
            return step(engine, _fake_batch(batch, fake), micro_batches, ledger, absent)


@contextmanager
def fake_ranks(world_size: int, rank: int = 0) -> Iterator[None]:
    """A process group of `world_size` ranks that exist in name only; this process is number `rank` of them."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def gpu_sizes() -> Iterator[None]:
    """Sizes that are chosen by device are those of a GPU; a build of torch without CUDA cannot fake its tensors."""
    chunk = mock.patch.multiple(losses, CPU_CHUNK_LOGITS=losses.GPU_CHUNK_LOGITS, CPU_CHUNKS_AT_ONCE=1)
    whole = mock.patch.object(losses, "MAX_LOGITS", sys.maxsize)  # more than that are refused, with their size at hand
    with chunk, whole:
        yield


@contextmanager
def host_buffers(ledger: Ledger) -> Iterator[None]:
    """Book what activation offloading keeps in host memory: on the CPU nothing else tells it from the device's."""
    make = Pool._one

    def booked(pool: Pool, size: int) -> Tensor:
        buffer = make(pool, size)
        ledger.label([buffer], HOST)
        return buffer

    with mock.patch.object(Pool, "_one", booked):
        yield


def _skeleton(cfg: Config, base: PretrainedConfig, context: ContextParallel) -> CausalLM:
    kernel = context.attention(choose_kernel("sdpa", CPU, DTYPES[cfg.model.dtype]))
    module = CausalLM(build_skeleton(base, cfg.rope, kernel), cfg.memory.loss)
    if cfg.optim.state == "bfloat16":
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return module


def _fake_buffers(module: nn.Module, fake: FakeTensorMode) -> None:
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake.from_tensor(buffer)


def _fake_batch(batch: Batch, fake: FakeTensorMode) -> Batch:
    ids, labels, positions = (fake.from_tensor(t) for t in (batch.input_ids, batch.labels, batch.position_ids))
    return dataclasses.replace(batch, input_ids=ids, labels=labels, position_ids=positions)


def _first_step(engine: FSDP2Engine, ledger: Ledger) -> None:
    """A plan is about all the others: fake tensors decompose an operator when they first meet it, which takes more."""
    states: list[Any] = [value for state in engine.optimizer.state.values() for value in state.values()]
    ledger.label(states, OPTIMIZER)
    for parameter in engine.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    _update(engine)


def _update(engine: FSDP2Engine) -> None:
    with mock.patch.object(fsdp2, "is_finite", _finite):  # no Mock: it would keep the norm
        engine.step(0.0)


def _finite(norm: Tensor) -> bool:
    """In place of a look at a value that a fake tensor has not."""
    return True


def step(engine: FSDP2Engine, batch: Batch, micro_batches: int, ledger: Ledger, absent: frozenset[str]) -> Trace:
    """One optimizer step; with accumulation, the second micro-batch meets the gradients of the first."""
    module = engine.module
    tokens = torch.ones(())
    ledger.label([batch.input_ids, batch.position_ids, batch.labels], BATCH)
    module.loss = _in_part(module.loss, ledger)
    for _ in range(micro_batches):
        before = ledger.live()
        ledger.moved = 0
        ledger.sent.clear()
        with ledger.part("forward"):
            loss = module(batch.input_ids, batch.position_ids, batch.labels)
        ledger.label_live(TEMPORARY, SAVED)
        saved = ledger.live() - before
        with ledger.part("backward"):
            engine.backward(loss, tokens)
        del loss
        ledger.label([p.grad for p in module.parameters()], GRADIENTS)
    moved, sent = ledger.moved, dict(ledger.sent)
    with ledger.part("optimizer"):
        _update(engine)
    return Trace(tuple(ledger.moments(absent)), saved, moved, sent)


def _in_part(loss: Any, ledger: Ledger) -> Any:
    def booked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        with ledger.part("loss", LOSS):
            result: Tensor = loss(hidden, weight, labels)
            if hidden.requires_grad:
                hidden.register_hook(lambda _: ledger.enter("backward"))
            result.register_hook(lambda _: ledger.enter("loss backward", LOSS))
            return result

    return booked
