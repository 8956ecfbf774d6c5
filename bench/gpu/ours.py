"""Optimizer steps by this project's own trainer: its engine, loss, kernels and policies, on one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.gpu import host, sizes
from bench.gpu.kernel import available
from bench.gpu.outcome import Missing
from bench.gpu.timing import Steps, rows
from bench.gpu.worker import Save
from yarn_train import config as schema
from yarn_train.config import Config
from yarn_train.data.batch import make_batch
from yarn_train.dist import runtime as dist_runtime
from yarn_train.engine.base import Engine
from yarn_train.metrics.meter import mfu
from yarn_train.model import flops
from yarn_train.model.load import DTYPES, load_config
from yarn_train.model.loss import loss_missing
from yarn_train.optim.adamw import missing
from yarn_train.parallel.context import ContextParallel
from yarn_train.train.setup import build_engine, make_mesh


def measure(task: dict[str, Any], save: Save) -> dict[str, Any]:
    """Tokens per second, MFU, peak memory and losses of a few steps on one sequence each."""
    runtime = dist_runtime.start()
    folder = sizes.ensure_model(Path(task["models"]), task["size"], runtime.device)
    base = load_config(str(folder))
    cfg = options(task, runtime.device, base.vocab_size)
    if problems := missing(cfg.optim):
        raise Missing("; ".join(problems))
    host.check(cfg, base)
    mesh = make_mesh(cfg, base, runtime)
    chosen = available(cfg.model.attention, runtime.device, DTYPES[cfg.model.dtype], flops.head_dim(base))
    kernel = ContextParallel(mesh).attention(chosen)
    engine, built = build_engine(cfg, base, str(folder), kernel, mesh, runtime.device)
    width = base.num_attention_heads * flops.head_dim(base)
    per_token = flops.flops_per_token(built.matmul, base.num_hidden_layers, width, task["tokens"])
    linear = flops.flops_per_token(built.matmul, base.num_hidden_layers, width, 0)
    about = {
        "kernel": f"{kernel.name} ({kernel.reason})",
        "loss": cfg.memory.loss,
        "parameters": built.parameters,
        "attention_share": 1.0 - linear / per_token,
        "flops_per_token": per_token,
    }
    steps = Steps(rows(base.vocab_size, task), runtime.device, task["deadline"])
    while steps.more():
        _step(engine, steps, runtime.device, task["lr"])
        save({**about, **steps.result()})
    found = {**about, **steps.result()}
    found["mfu"] = mfu(found["tokens_per_second"], per_token, flops.peak_flops(runtime.device), 1)
    return found


def options(task: dict[str, Any], device: torch.device, vocab: int) -> Config:
    """The options of a run with this cell's policy: YaRN from the base's length, the fused loss where it can run."""
    tokens, policy = task["tokens"], task["policy"]
    fused = loss_missing("fused", device, tokens * vocab) is None
    made: dict[str, dict[str, Any]] = {
        "model": {"dtype": "bfloat16" if device.type == "cuda" else "float32"},
        "rope": {"method": "yarn", "factor": max(1.0, tokens / sizes.ORIGINAL)},
        "data": {"seq_len": tokens},
        "optim": {"weight_decay": 0.0, "grad_clip": 1.0},
        "memory": {"loss": "fused" if fused else "chunked"},
    }
    for part in (task.get("options", {}), policy):
        for name, values in part.items():
            made[name] = {**made.get(name, {}), **values}
    return schema.build(made)


def _step(engine: Engine, steps: Steps, device: torch.device, lr: float) -> None:
    batch = make_batch(steps.rows[steps.taken].unsqueeze(0)).to(device)
    count = torch.tensor(float(batch.num_valid), device=device)
    steps.start()
    loss = engine.module(batch.input_ids, batch.position_ids, batch.labels)
    engine.backward(loss, count)
    engine.step(lr)
    steps.stop((loss.detach() / count).item)
