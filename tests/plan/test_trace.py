"""The trace against the same model run for real: what autograd saves, what is kept, what lives in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train import config as schema
from yarn_train.config import Config
from yarn_train.data.batch import make_batch
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.registry import choose_kernel
from yarn_train.parallel import activation
from yarn_train.parallel.offload import Mover
from yarn_train.parallel.tiled_mlp import tile_mlps
from yarn_train.plan import layers
from yarn_train.plan import ledger as books
from yarn_train.plan.trace import Trace, off_device, trace, trace_whole

CPU = torch.device("cpu")
TOKENS = 1024


def small(layers: int = 4, **options: Any) -> LlamaConfig:
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 300,
        "max_position_embeddings": 512,
    }
    return LlamaConfig(**{**sizes, **options})


def config(**sections: dict[str, Any]) -> Config:
    """fp32, four times the model's length, one sequence per pass."""
    raw: dict[str, dict[str, Any]] = {
        "model": {"dtype": "float32"},
        "rope": {"factor": 4.0},
        "data": {"seq_len": TOKENS},
        "train": {"global_batch_size": 8},
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return schema.build(raw)


class Kept:
    """Bytes that a real forward leaves behind for its backward, counted where they are stored."""

    def __init__(self, module: nn.Module):
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.storages: dict[int, int] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights and tensor.dtype.is_floating_point:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(self.storages.values())

    @contextmanager
    def counting(self, module: CausalLM) -> Iterator[None]:
        """Autograd's saved tensors; attention results given to a store; the rotary tables that checkpoints hold."""
        put = activation.KeptAttention.put

        def counted(store: activation.KeptAttention, result: tuple[Tensor, Tensor]) -> None:
            for tensor in result:
                if store._layer is None or tensor.nbytes < store._layer.mover.min_bytes:  # too small to be moved
                    self.add(tensor)
            put(store, result)

        def tables(block: nn.Module, args: Any, kwargs: Any) -> None:
            for tensor in kwargs["position_embeddings"]:
                self.add(tensor)

        handles = [block.register_forward_pre_hook(tables, with_kwargs=True) for block in module.blocks]
        with mock.patch.object(activation.KeptAttention, "put", counted), saved_tensors_hooks(self.add, lambda t: t):
            yield
        for handle in handles:
            handle.remove()


def really_kept(cfg: Config, base: LlamaConfig) -> tuple[int, int]:
    """(bytes on the device, bytes in host memory) between a real forward and its backward, without any engine."""
    kernel = choose_kernel("sdpa", CPU, torch.float32)
    module = CausalLM(LlamaForCausalLM._from_config(base, attn_implementation=kernel.implementation), cfg.memory.loss)
    mover = Mover() if cfg.memory.offloads else None
    if cfg.memory.tiled_mlp:
        tile_mlps(module.blocks, base.hidden_size)
    activation.apply(module.blocks, cfg.memory.recompute, mover)
    batch = make_batch(torch.zeros(1, cfg.data.seq_len, dtype=torch.int64))
    kept = Kept(module)
    with kept.counting(module):
        loss = module(batch.input_ids, batch.position_ids, batch.labels)
    on_device = kept.nbytes + (mover.device.now if mover else 0)
    on_host = mover.pool_bytes if mover else 0
    loss.backward()
    return on_device, on_host


def saved(traced: Trace) -> int:
    return traced.saved.get(books.SAVED, 0) + traced.saved.get(books.LOSS, 0)


POLICIES: list[dict[str, Any]] = [
    {"activation": "none"},
    {"activation": "full"},
    {"activation": "attention"},
    {"activation": "offload"},
    {"activation": "attention", "offload": True},
    {"activation": "full", "tiled_mlp": True},
    {"activation": "none", "loss": "full"},
]


@pytest.mark.parametrize("memory", POLICIES, ids=lambda memory: "-".join(map(str, memory.values())))
def test_what_waits_for_backward_is_what_autograd_saves_in_a_real_step(memory: dict[str, Any]) -> None:
    cfg, base = config(memory=memory), small()
    traced = trace_whole(cfg, base, world_size=1)
    on_device, on_host = really_kept(cfg, base)
    assert saved(traced) == pytest.approx(on_device, rel=0.02)
    assert max(moment.live.get(books.HOST, 0) for moment in traced.moments) == on_host


# Each moves the fullest instant elsewhere: activations, sharded gradients, unsharded weights, deeper prefetching.
SHAPES: list[tuple[int, dict[str, dict[str, Any]]]] = [
    (8, {"memory": {"activation": "full"}}),
    (8, {"memory": {"activation": "attention", "offload": True}, "parallel": {"context": 4}}),
    (1, {"memory": {"activation": "none"}}),
    (1, {"memory": {"activation": "full"}, "data": {"seq_len": 64}, "train": {"global_batch_size": 1}}),
    (8, {"engine": {"prefetch": 2, "reshard_after_forward": False}, "memory": {"loss": "full"}}),
    (8, {"parallel": {"context": 4, "context_method": "ring", "replicate": 2}, "engine": {"offload": "all"}}),
]


@pytest.mark.parametrize(("world_size", "options"), SHAPES)
def test_four_and_five_blocks_tell_what_nine_need(world_size: int, options: dict[str, dict[str, Any]]) -> None:
    cfg, base = config(**options), small(layers=9)
    few, whole = trace(cfg, base, world_size), trace_whole(cfg, base, world_size)
    absent = off_device(cfg)
    assert peak(few, absent) == peak(whole, absent)
    assert (few.saved, few.moved, few.sent) == (whole.saved, whole.moved, whole.sent)


def peak(traced: Trace, absent: frozenset[str]) -> dict[str, int]:
    fullest = max(traced.moments, key=lambda moment: moment.total(absent))
    return {category: size for category, size in fullest.live.items() if size}


def test_context_parallelism_divides_what_a_token_costs_and_shards_over_all_ranks() -> None:
    memory = {"activation": "full"}
    base = small()
    alone, shared = (
        trace_whole(config(memory=memory, parallel={"context": n}, data={"seq_len": 8192}), base, 8) for n in (1, 4)
    )
    assert saved(shared) == pytest.approx(saved(alone) / 4, rel=0.05)
    for category in (books.WEIGHTS, books.OPTIMIZER):
        assert peak(shared, frozenset())[category] == peak(alone, frozenset())[category]
    assert shared.sent["all_to_all"] > 0 == alone.sent.get("all_to_all", 0)


def test_a_layer_of_another_kind_is_traced_as_it_is() -> None:
    base = small(layers=9, layer_types=["full_attention"] * 8 + ["sliding_attention"])
    assert not layers.alike(base)
    assert layers.alike(small(layers=9))
