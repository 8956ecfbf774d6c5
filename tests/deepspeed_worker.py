"""One rank of the DeepSpeed tests: runs every case, writes what happened; the test compares it with one plain process.

Run under torchrun: deepspeed_worker.py OUT CASE...
"""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_state import hashes
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from yarn_train import config as schema
from yarn_train.checkpoint.manager import CheckpointManager
from yarn_train.checkpoint.state import TrainState
from yarn_train.config import CheckpointConfig, Config, RopeConfig
from yarn_train.dist import runtime as dist_runtime
from yarn_train.dist.mesh import Mesh
from yarn_train.engine.deepspeed import DeepSpeedEngine
from yarn_train.engine.fsdp2 import FSDP2Engine
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.weights import WeightFiles, parameters_on_meta
from yarn_train.parallel import activation, fsdp
from yarn_train.rope import hf as rope_hf

LINEAR = torch.nn.functional.linear
LAZY = "deepspeed" not in sys.modules  # everything of ours is imported by now
ROWS, TOKENS, STEPS, HALF, RANKS, LR = 4, 13, 4, 2, 2, 1e-3
OPTIM = {"lr": LR, "grad_clip": 0.5, "weight_decay": 0.1, "betas": [0.9, 0.95], "eps": 1e-8}
IGNORE = -100
ROPE = RopeConfig(factor=4.0)


@dataclass(frozen=True)
class Case:
    stage: int
    offload: str = "none"
    dtype: str = "float32"
    tied: bool = True
    loss: str = "chunked"
    recompute: str = "none"


EXACT = {
    "ZeRO-0": Case(0),
    "ZeRO-1": Case(1),
    "ZeRO-2": Case(2),
    "ZeRO-3": Case(3),
    "ZeRO-0 untied": Case(0, tied=False),
    "ZeRO-3 untied": Case(3, tied=False),
    "ZeRO-1 optimizer offloaded": Case(1, "optimizer"),
    "ZeRO-2 optimizer offloaded": Case(2, "optimizer"),
    "ZeRO-3 optimizer offloaded": Case(3, "optimizer"),
    "ZeRO-3 all offloaded": Case(3, "all"),
    "ZeRO-3 full logits, recomputed": Case(3, tied=False, loss="full", recompute="full"),
}
MIXED = {
    "bf16 ZeRO-1": Case(1, dtype="bfloat16"),
    "bf16 ZeRO-2": Case(2, dtype="bfloat16"),
    "bf16 ZeRO-3": Case(3, dtype="bfloat16"),
    "bf16 ZeRO-1 optimizer offloaded": Case(1, "optimizer", "bfloat16"),
    "bf16 ZeRO-2 optimizer offloaded": Case(2, "optimizer", "bfloat16"),
    "bf16 ZeRO-3 all offloaded": Case(3, "all", "bfloat16"),
}
SKELETONS = ("ZeRO-2", "ZeRO-3 untied", "bf16 ZeRO-3")
DROPPED = ("ZeRO-0", "ZeRO-1", "ZeRO-2 optimizer offloaded", "ZeRO-3 all offloaded", "bf16 ZeRO-1", "bf16 ZeRO-3")
RESUMED = ("ZeRO-0", "ZeRO-3", "bf16 ZeRO-1", "bf16 ZeRO-2", "bf16 ZeRO-3", "bf16 ZeRO-3 all offloaded")


def base_config(tied: bool) -> LlamaConfig:
    """Odd sizes: every cut over two ranks falls inside of a row, and the last rank's pieces are padded."""
    return LlamaConfig(
        hidden_size=27,
        intermediate_size=35,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=6,
        vocab_size=101,
        max_position_embeddings=8,
        tie_word_embeddings=tied,
    )


def transformer(tied: bool, seed: int = 0) -> LlamaForCausalLM:
    """fp32, plain transformers, extended by YaRN."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(rope_hf.scaled_config(base_config(tied), ROPE))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):  # ones are exact in bfloat16: make them tell masters from rounded weights
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def step_rows(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, shifted labels [ROWS, TOKENS] and the number of valid labels; rank 1 reads the odd rows.

    Ranks differ in valid labels; one micro-batch, and at step 1 all of rank 1's, have none.
    """
    ids = torch.randint(0, 101, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(step))
    labels = ids[:, 1:].clone()
    labels[1] = IGNORE
    labels[2, 4:] = IGNORE
    if step == 1:
        labels[3] = IGNORE
    return ids[:, :-1].contiguous(), labels, (labels != IGNORE).sum().float()


def config(case: Case) -> Config:
    engine = {"name": "deepspeed", "zero_stage": case.stage, "offload": case.offload}
    return schema.build({"model": {"dtype": case.dtype}, "engine": engine, "optim": OPTIM})


def build(case: Case, runtime: dist_runtime.Runtime, seed: int = 0) -> DeepSpeedEngine:
    cfg = config(case)
    module = CausalLM(transformer(case.tied, seed), case.loss)
    activation.apply(module.blocks, case.recompute)
    engine = DeepSpeedEngine(module, cfg, Mesh.create("cpu", runtime.world_size, cfg.parallel, 1))
    verify(engine, case)
    return engine


def verify(engine: Any, case: Case) -> None:
    """RoPE on this rank, bit for bit."""
    rope_hf.verify_tables(engine.module.model, rope_hf.table_for(base_config(case.tied), ROPE))


def train(engine: Any, steps: range, runtime: dist_runtime.Runtime, gradients_at: int = -1) -> dict[str, Any]:
    """Losses and norms of the steps, and the gradients of one of them."""
    found: dict[str, Any] = {"loss": [], "norm": []}
    positions = torch.arange(TOKENS).unsqueeze(0)
    for step in steps:
        ids, labels, tokens = step_rows(step)
        total = torch.zeros(())
        for row in range(runtime.rank, ROWS, runtime.world_size):
            loss = engine.module(ids[row : row + 1], positions, labels[row : row + 1])
            engine.backward(loss, tokens)
            total += loss.detach()
        dist.all_reduce(total)
        if step == gradients_at:
            found["gradients"] = engine.full_gradients()
        found["norm"].append(engine.step(LR).item())
        found["loss"].append((total / tokens).item())
    return found


def run(name: str, case: Case, runtime: dist_runtime.Runtime, out: Path) -> dict[str, Any]:
    """All steps; half-way a checkpoint, which RESUMED cases load into an engine of other weights to go on from."""
    manager = CheckpointManager(out / "checkpoints" / name, CheckpointConfig(keep=1), runtime, silent)
    engine = build(case, runtime)
    found: dict[str, Any] = {"masters": engine.full_weights()}
    first = train(engine, range(HALF), runtime, gradients_at=0)
    if name in RESUMED:
        manager.save(engine, TrainState(step=HALF, tokens=0, samples=0, seed=0, world_size=runtime.world_size))
    second = train(engine, range(HALF, STEPS), runtime)
    verify(engine, case)
    found |= {key: first[key] + second[key] for key in ("loss", "norm")}
    found |= {"gradients": first["gradients"], "weights": engine.full_weights()}
    manager.finish()
    found["compute_dtypes"] = sorted({str(p.dtype) for p in engine.module.parameters()})
    engine.module.eval()
    with torch.no_grad():
        found["logits"] = engine.module(step_rows(0)[0][:1], torch.arange(TOKENS).unsqueeze(0))
    if name in RESUMED:
        found["resumed"] = resumed(name, case, runtime, out)
    found["module"] = weakref.ref(engine.zero.module)
    return found


def silent(line: str) -> None:
    """Checkpoints say when they are written."""


def resumed(name: str, case: Case, runtime: dist_runtime.Runtime, out: Path) -> dict[str, Any]:
    """The second half, on any number of ranks and at any stage, from the checkpoint of case `name`."""
    manager = CheckpointManager(out / "checkpoints" / name, CheckpointConfig(keep=1), runtime, silent)
    engine = build(case, runtime, seed=1)
    newest = manager.newest()
    assert newest is not None
    manager.load(engine, newest)
    return {**train(engine, range(HALF, STEPS), runtime), "weights": engine.full_weights()}


def fsdp2(runtime: dist_runtime.Runtime) -> dict[str, Any]:
    """What bfloat16 ZeRO must be close to."""
    cfg = schema.build({"model": {"dtype": "bfloat16"}, "optim": OPTIM})
    mesh = Mesh.create("cpu", runtime.world_size, cfg.parallel, 1)
    module = CausalLM(transformer(True), "chunked")
    fsdp.shard(module, mesh.sharding, torch.bfloat16, cfg.engine)
    engine = FSDP2Engine(module, cfg, mesh)
    return {**train(engine, range(STEPS), runtime), "weights": engine.full_weights()}


def skeleton(case: Case, runtime: dist_runtime.Runtime, out: Path) -> dict[str, Any]:
    """Built on meta; every rank reads its elements of the weights from files."""
    cfg = config(case)
    folder = out / f"model_{case.tied}"
    if runtime.is_main:
        transformer(case.tied).save_pretrained(folder)
    dist.barrier()
    with parameters_on_meta():
        module = CausalLM(transformer(case.tied), case.loss)
    assert all(p.is_meta for p in module.parameters())
    engine = DeepSpeedEngine(module, cfg, Mesh.create("cpu", runtime.world_size, cfg.parallel, 1))
    verify(engine, case)
    with WeightFiles(str(folder)) as files:
        engine.read_weights(files)
    return {"masters": engine.full_weights(), **train(engine, range(STEPS), runtime), "weights": engine.full_weights()}


def not_finite(case: Case, runtime: dist_runtime.Runtime) -> dict[str, Any]:
    """A step with an infinite gradient, then a good one."""
    engine = build(case, runtime)
    before = engine.full_weights()
    ids, labels, tokens = step_rows(0)
    loss = engine.module(ids[:1], torch.arange(TOKENS).unsqueeze(0), labels[:1])
    engine.backward(loss * (float("inf") if runtime.rank else 1.0), tokens)
    norm = engine.step(LR).item()
    after = engine.full_weights()
    same = all(torch.equal(before[name], after[name]) for name in before)
    return {"bad norm": norm, "same": same, **train(engine, range(1), runtime)}


def dropped(case: Case, runtime: dist_runtime.Runtime) -> dict[str, Any]:
    """A step whose gradients are good but not wanted, then a step."""
    engine = build(case, runtime)
    before = hashes(engine)
    ids, labels, tokens = step_rows(1)
    for _ in range(2):
        loss = engine.module(ids[:1], torch.arange(TOKENS).unsqueeze(0), labels[:1])
        engine.backward(loss, tokens)
    engine.skip()
    return {"same": hashes(engine) == before, **train(engine, range(1), runtime), "moved": hashes(engine) != before}


def main(out: Path, which: str) -> None:
    runtime = dist_runtime.start()
    transformers_logging.disable_progress_bar()
    found: dict[str, Any] = {"lazy": LAZY}
    if which == "two":
        found["runs"] = {name: run(name, case, runtime, out) for name, case in {**EXACT, **MIXED}.items()}
        gc.collect()
        for case_found in found["runs"].values():
            case_found["freed"] = case_found.pop("module")() is None
        found["linear restored"] = torch.nn.functional.linear is LINEAR
        found["fsdp2"] = fsdp2(runtime)
        found["skeleton"] = {name: skeleton({**EXACT, **MIXED}[name], runtime, out) for name in SKELETONS}
        found["dropped"] = {name: dropped({**EXACT, **MIXED}[name], runtime) for name in DROPPED}
        found["not_finite"] = not_finite(MIXED["bf16 ZeRO-3"], runtime)
    else:
        found |= {name: resumed("ZeRO-3", EXACT[name], runtime, out) for name in ("ZeRO-0", "ZeRO-2", "ZeRO-3")}
    torch.save(found, out / f"{which}_{runtime.rank}.pt")
    dist.barrier()
    dist_runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
