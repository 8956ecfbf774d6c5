"""The training loop: ``fit`` is the sentence, ``train_step`` the one visible optimizer step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.manager import CheckpointManager
from ..checkpoint.state import TrainState
from ..config import Config
from ..data.batch import Batch
from ..data.loader import Loader, Step, pinned
from ..data.prefetch import Ahead
from ..dist.collectives import max_int, sum_scalar
from ..dist.mesh import Mesh
from ..dist.runtime import Runtime
from ..engine.base import Engine
from ..metrics.meter import mfu, peak_memory_bytes
from ..metrics.sinks import FanOut
from ..model.flops import squared_lengths
from ..optim.schedule import lr_at
from ..parallel.context import ContextParallel


@dataclass
class Trainer:
    """Everything one stage trains with; built by ``train.setup``."""

    cfg: Config
    runtime: Runtime
    engine: Engine
    mesh: Mesh
    context: ContextParallel
    loader: Loader
    checkpoints: CheckpointManager
    sinks: FanOut
    state: TrainState
    flops_per_token: Callable[[float], float]  # of the length that tokens attend over, see model.flops
    peak_flops: float | None


def fit(trainer: Trainer) -> bool:
    """Train until the stage's last step; returns False when ``train.stop_after`` stopped it earlier."""
    cfg = trainer.cfg
    last = cfg.train.steps
    stop = min(last, cfg.train.stop_after or last)
    with read_ahead(trainer, stop) as data:
        while trainer.state.step < stop:
            row = train_step(trainer, data)
            trainer.sinks.write(row)
            step = trainer.state.step
            if step % cfg.checkpoint.every == 0 or step == stop:
                trainer.checkpoints.save(trainer.engine, trainer.state)
    return trainer.state.step == last


def read_ahead(trainer: Trainer, stop: int) -> Ahead[Step]:
    """This rank's data from where the state stands up to step ``stop``, ``data.prefetch`` steps ahead of training."""

    def finish(batch: Batch) -> Batch:
        return pinned(trainer.context.shard(batch), trainer.runtime.device)

    state = trainer.state
    steps = trainer.loader.steps(state.samples, stop - state.step, finish)
    return Ahead(steps, trainer.cfg.data.prefetch)


def train_step(trainer: Trainer, data: Iterator[Step]) -> dict[str, Any]:
    """One optimizer step over the next global batch; advances ``trainer.state`` and returns the step's metrics."""
    cfg, runtime, state = trainer.cfg, trainer.runtime, trainer.state
    started = time.perf_counter()
    read = next(data)
    batches = [batch.to(runtime.device, non_blocking=True) for batch in read.batches]
    data_wait = time.perf_counter() - started

    # The divisor is global and known before the first backward: any split of the batch gives the same gradients.
    local_tokens = torch.tensor(sum(b.num_valid for b in batches), dtype=torch.float32, device=runtime.device)
    global_tokens = sum_scalar(local_tokens)
    loss_sum = torch.zeros((), device=runtime.device)
    for batch in batches:
        loss = trainer.engine.module(batch.input_ids, batch.position_ids, batch.labels, batch.documents)
        trainer.engine.backward(loss, global_tokens)
        loss_sum += loss.detach()
    lr = lr_at(
        state.step,
        name=cfg.schedule.name,
        peak=cfg.optim.lr,
        warmup_steps=cfg.schedule.warmup_steps,
        total_steps=cfg.train.steps,
    )
    grad_norm = trainer.engine.step(lr)
    mean_loss = (sum_scalar(loss_sum) / global_tokens).item()  # waits for the device: the clock below is honest

    step_tokens = len(read.ids) * cfg.data.seq_len
    seconds = time.perf_counter() - started
    rate = step_tokens / seconds
    squares = squared_lengths(read.documents, len(read.ids), cfg.data.seq_len)
    per_token = trainer.flops_per_token(squares / step_tokens)
    samples = state.samples + len(read.ids)
    trainer.state = dataclasses.replace(
        state,
        step=state.step + 1,
        tokens=state.tokens + step_tokens,
        samples=samples,
        data=trainer.loader.stream.state(samples),
    )
    return {
        "step": trainer.state.step,
        "tokens": trainer.state.tokens,
        "loss": mean_loss,
        "lr": lr,
        "grad_norm": grad_norm.item(),
        "tokens_per_second": rate,
        "mfu": mfu(rate, per_token, trainer.peak_flops, runtime.world_size),
        "peak_memory_bytes": max_int(peak_memory_bytes(runtime.device), runtime.device),
        "data_wait_seconds": data_wait,
        "seconds": seconds,
        "step_tokens": step_tokens,
        "segments": read.ids,
        "epoch": trainer.loader.stream.epochs(samples),
    }
