"""One rank of the engine table: for every cell, the loss and every gradient of one global batch, written by rank 0.

Run under torchrun: engine_ranks.py MODEL OUT TOPOLOGY...
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from yarn_train import config as schema
from yarn_train.config import Config
from yarn_train.data.batch import IGNORE_INDEX, Batch, make_batch
from yarn_train.dist import runtime as dist_runtime
from yarn_train.dist.collectives import sum_scalar
from yarn_train.engine.fsdp2 import PREFIX
from yarn_train.model.load import load_config
from yarn_train.model.registry import choose_kernel
from yarn_train.parallel import plan
from yarn_train.parallel.context import ContextParallel
from yarn_train.parallel.offload import Mover
from yarn_train.rope import hf as rope_hf
from yarn_train.rope.frequencies import RopeTable
from yarn_train.rope.verify import RopeTableError, rotary_modules
from yarn_train.train.setup import build_engine, make_mesh

ROWS, TOKENS = 4, 44  # 44 tokens: not a multiple of any ring's chunks, so shards are padded
TOPOLOGIES: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "one process": (1, {}),
    "FSDP2 x2": (2, {}),
    "FSDP2 x2, all offloaded": (2, {"engine": {"offload": "all"}}),
    "FSDP2 x2, moments offloaded, prefetch 2": (
        2,
        {"engine": {"offload": "optimizer", "prefetch": 2, "reshard_after_forward": False}},
    ),
    "FSDP2 x4": (4, {}),
    "HSDP 2x2": (4, {"parallel": {"replicate": 2}}),
    "ZeRO-1 x2": (2, {"engine": {"name": "deepspeed", "zero_stage": 1}}),
    "ZeRO-2 x2": (2, {"engine": {"name": "deepspeed", "zero_stage": 2}}),
    "ZeRO-3 x2": (2, {"engine": {"name": "deepspeed", "zero_stage": 3}}),
    "Ulysses 2": (2, {"parallel": {"context": 2, "context_method": "ulysses"}}),
    "Ulysses 4, 2 KV heads": (4, {"parallel": {"context": 4, "context_method": "ulysses"}}),
    "ring 2": (2, {"parallel": {"context": 2, "context_method": "ring"}}),
    "ring 3, 4 heads": (3, {"parallel": {"context": 3}}),
    "Ulysses 2 x ring 2": (4, {"parallel": {"context": 4, "ulysses": 2}}),
    "Ulysses 2 x FSDP2 2": (4, {"parallel": {"context": 2}}),
    "ring 2, ZeRO-3": (2, {"engine": {"name": "deepspeed"}, "parallel": {"context": 2, "context_method": "ring"}}),
}
BLOCK = {"data": {"document_mask": "block"}}
TOPOLOGIES |= {  # documents that no token looks out of, one of them over each shard boundary
    "FSDP2 x2, documents": (2, BLOCK),
    "ring 2, ZeRO-3, documents": (2, {**TOPOLOGIES["ring 2, ZeRO-3"][1], **BLOCK}),
    "Ulysses 2, documents": (2, {**TOPOLOGIES["Ulysses 2"][1], **BLOCK}),
}
DOCUMENTS = ((0, 5, 30), (0,), (0, 21, 22), (0, 1, 43))
LOSSES = ("full", "chunked")
ACTIVATIONS = ("none", "full", "attention", "offload")


def global_batch(vocab_size: int, masked: bool) -> Batch:
    """Every awkward case at once: rows of unequal numbers of labels, one without any, labels at shard boundaries.

    Args:
        masked: whether attention stays inside of DOCUMENTS.
    """
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, vocab_size, (ROWS, TOKENS + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[1] = IGNORE_INDEX  # with 4 data ranks one has nothing to learn; with 2, one of its micro-batches
    labels[2, TOKENS // 2 :] = IGNORE_INDEX  # with Ulysses 2 the whole second shard
    labels[3, :7] = IGNORE_INDEX
    batch = make_batch(ids[:, :-1].contiguous(), DOCUMENTS if masked else None)
    if masked:
        labels[batch.labels == IGNORE_INDEX] = IGNORE_INDEX
    return dataclasses.replace(batch, labels=labels, num_valid=int((labels != IGNORE_INDEX).sum()))


def config(model: str, options: dict[str, dict[str, Any]], loss: str, activation: str) -> Config:
    base = {
        "model": {"path": model, "dtype": "float32"},
        "rope": {"factor": 4.0},
        "train": {"micro_batch_size": 1, "global_batch_size": ROWS},
        "memory": {"loss": loss, "activation": activation},
    }
    return schema.build({**base, **options})


def run_cell(cfg: Config, runtime: dist_runtime.Runtime) -> dict[str, Any]:
    """One accumulated backward pass over the global batch, then one optimizer step."""
    base = load_config(cfg.model.path)
    mesh = make_mesh(cfg, base, runtime)
    context = ContextParallel(mesh)
    kernel = context.attention(choose_kernel("auto", runtime.device, torch.float32))
    engine, _ = build_engine(cfg, base, cfg.model.path, kernel, mesh, runtime.device)
    module = engine.module
    rope_hf.verify_tables(module.model, rope_hf.table_for(base, cfg.rope))
    whole = global_batch(base.vocab_size, cfg.data.document_mask == "block")
    shards = []
    for row in range(mesh.data_rank, ROWS, mesh.data_size):
        labels = whole.labels[row : row + 1]
        row_batch = dataclasses.replace(
            whole,
            input_ids=whole.input_ids[row : row + 1],
            labels=labels,
            position_ids=whole.position_ids[row : row + 1],
            documents=whole.documents and whole.documents[row : row + 1],
            num_valid=int((labels != IGNORE_INDEX).sum()),
        )
        shards.append(context.shard(row_batch))
    tokens = sum_scalar(torch.tensor(float(sum(s.num_valid for s in shards))))
    total = torch.zeros(())
    for shard in shards:
        loss = engine.module(shard.input_ids, shard.position_ids, shard.labels, shard.documents)
        engine.backward(loss, tokens)
        total += loss.detach()
    gradients = full_gradients(engine)
    norm = engine.step(1e-3)
    tables = rotary_tables(module.model)
    return {
        "tables": tables,
        "corrupted": corrupted_table_is_noticed(module.model, rope_hf.table_for(base, cfg.rope)),
        "loss": (sum_scalar(total) / tokens).item(),
        "tokens": tokens.item(),
        "gradients": gradients,
        "norm": float(norm),
        "weights": engine.full_weights(),
    }


def rotary_tables(model: nn.Module) -> list[tuple[str, str]]:
    """(dtype, sha256) of every rotary table on every rank, after the engine wrapped the model and took a step."""
    mine = [
        (str(module.inv_freq.dtype), hashlib.sha256(module.inv_freq.cpu().numpy().tobytes()).hexdigest())
        for _, module in rotary_modules(model)
    ]
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return [table for tables in everybody for table in tables]


def corrupted_table_is_noticed(model: nn.Module, table: RopeTable) -> bool:
    """What a cast to bfloat16 and back does to the table must not pass the check that training starts with."""
    for _, module in rotary_modules(model):
        module.inv_freq.copy_(module.inv_freq.bfloat16().float())
    try:
        rope_hf.verify_tables(model, table)
    except RopeTableError:
        return True
    return False


def full_gradients(engine: Any) -> dict[str, torch.Tensor]:
    """Complete gradients by transformers' names; collective."""
    if hasattr(engine, "full_gradients"):
        found: dict[str, torch.Tensor] = engine.full_gradients()
        return found
    gradients = {}
    for name, parameter in engine.module.named_parameters():
        gradient = parameter.grad
        gradients[name.removeprefix(PREFIX)] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return gradients


def main(model: str, out: str, names: list[str]) -> None:
    plan.Mover = lambda: Mover(min_bytes=0)  # the tiny model's activations are below the size that is worth moving
    runtime = dist_runtime.start()
    for name in names:
        cells = {}
        for loss in LOSSES:
            for activation in ACTIVATIONS:
                cfg = config(model, TOPOLOGIES[name][1], loss, activation)
                schema.validate(cfg, runtime.world_size)
                cells[loss, activation] = run_cell(cfg, runtime)
        if runtime.is_main:
            torch.save(cells, Path(out) / f"{name}.pt")
    dist.barrier()
    dist_runtime.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
