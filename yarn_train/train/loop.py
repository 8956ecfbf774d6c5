"""The training loop: ``fit`` is the sentence, ``train_step`` the one visible optimizer step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checkpoint.manager import CheckpointManager
from ..checkpoint.state import TrainState
from ..config import Config
from ..console.banner import Row
from ..data.batch import Batch
from ..data.loader import Loader, Step, pinned
from ..data.prefetch import Ahead
from ..dist.collectives import max_int, max_ints, max_scalar, on_main, sum_scalar, to_host
from ..dist.failure import explained
from ..dist.heartbeat import heartbeat
from ..dist.mesh import Mesh
from ..dist.runtime import Runtime
from ..dist.stop import requests
from ..engine.base import Engine
from ..errors import RanksLost, StorageError, TrainingDiverged
from ..metrics.meter import finite_or_none, mfu, peak_memory_bytes
from ..metrics.sinks import FanOut
from ..model.flops import squared_lengths
from ..optim.schedule import lr_at
from ..parallel.context import ContextParallel
from . import run_lock
from .profile import Profile
from .skipped import GRADIENT, broken_weights, diverged, reason_to_skip, remember, too_many
from .untimed import Watch

HOST = torch.device("cpu")
OTHERS_WAIT = 30.0  # seconds that a rank which failed by itself lets its save go on, while the others wait for it


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
    profile: Profile
    watch: Watch = field(default_factory=Watch)
    save_seconds: float = 0.0  # that training stood still for checkpoints since the last row
    facts: list[Row] = field(default_factory=list)  # about the stage, for a person


def fit(trainer: Trainer) -> bool:
    """Train until the stage's last step; returns False when ``train.stop_after`` stopped it earlier.

    Raises:
        StopRequested: a signal asked for it; a checkpoint was saved after the step that was under way.
        TrainingDiverged: more than train.max_skipped steps in a row updated nothing.
    """
    cfg = trainer.cfg
    last = cfg.train.steps
    stop = min(last, cfg.train.stop_after or last)
    with requests.deferred(), read_ahead(trainer, stop) as data, settled(trainer), trainer.profile:
        while trainer.state.step < stop:
            trainer.profile.before(trainer.state.step + 1)
            row = train_step(trainer, data)
            trainer.profile.after(row["step"])
            trainer.sinks.write(row)
            if too_many(trainer.state, cfg):
                trainer.checkpoints.finish()
                raise diverged(trainer.state, cfg, row["lr"], trainer.checkpoints.folder)
            due = trainer.state.step % cfg.checkpoint.every == 0 or trainer.state.step == stop
            if due:
                save(trainer)
            leave_if_asked(trainer, saved=due)
        finish(trainer)  # a request from here on waits for it
    return trainer.state.step == last


@contextmanager
def settled(trainer: Trainer) -> Iterator[None]:
    """Inside, an error does not take along a save under way: what all ranks can still finish is worth waiting for."""
    try:
        yield
    except Exception as error:
        if not isinstance(explained(error), RanksLost):
            everywhere = trainer.runtime.world_size == 1 or isinstance(error, (TrainingDiverged, StorageError))
            trainer.checkpoints.settle(None if everywhere else OTHERS_WAIT)
        raise


def finish(trainer: Trainer) -> None:
    """Wait for the stage's last checkpoint, and say how long: no row comes after it."""
    heartbeat.at("save", trainer.state.step)
    started = time.perf_counter()
    trainer.checkpoints.finish()
    seconds = trainer.save_seconds + time.perf_counter() - started
    trainer.checkpoints.say(
        f"after step {trainer.state.step}, {seconds:.1f} s passed until its checkpoint was complete"
    )


def save(trainer: Trainer) -> None:
    """Begin a checkpoint of the state as it stands; how long training stood still for it goes into the next row.

    Raises:
        TrainingDiverged: a weight is not finite, as a broken base's are before the first step.
    """
    began = time.perf_counter()
    heartbeat.at("save", trainer.state.step)
    on_main(run_lock.refuse_gone)
    if max_int(not trainer.engine.weights_finite(), trainer.runtime.device):
        trainer.checkpoints.finish()
        raise broken_weights(trainer.state, trainer.checkpoints.folder)
    trainer.save_seconds += trainer.checkpoints.save(trainer.engine, trainer.state, began)


def leave_if_asked(trainer: Trainer, saved: bool) -> None:
    """Agree over all ranks on what any of them has met since the last step; collective.

    Args:
        saved: whether a checkpoint of this step was begun. Signals are looked at after it: one that comes during the
            last, long save must not get lost.

    Raises:
        StopRequested: a signal, or run.max_hours; a checkpoint of this step is complete.
        StorageError: a rank could not write, or the run folder is gone; the same on all of them.
    """
    unsaved = trainer.checkpoints.failed or trainer.sinks.error is not None or run_lock.gone()
    # Agreed on by the hosts alone: the device is still busy with the update, and need not be waited for.
    asked, failed = max_ints([requests.after_step(trainer.checkpoints.longest), unsaved], HOST)
    if failed:
        on_main(run_lock.refuse_gone)
        trainer.checkpoints.finish()
        on_main(trainer.sinks.check)
    if asked:
        if not saved:
            save(trainer)
        trainer.checkpoints.finish()
        raise requests.answer(asked, trainer.state.step)


def read_ahead(trainer: Trainer, stop: int) -> Ahead[Step]:
    """This rank's data from where the state stands up to step ``stop``, ``data.prefetch`` steps ahead of training."""

    def finish(batch: Batch) -> Batch:
        return pinned(trainer.context.shard(batch), trainer.runtime.device)

    state = trainer.state
    steps = trainer.loader.steps(state.samples, stop - state.step, finish)
    return Ahead(steps, trainer.cfg.data.prefetch)


def train_step(trainer: Trainer, data: Iterator[Step]) -> dict[str, Any]:
    """One optimizer step over the next global batch; advances ``trainer.state`` and returns the step's metrics.

    A step whose loss or gradient is not finite, or whose loss is a spike, updates nothing; see ``train.skipped``.

    The host reads from the device once, before the update, what decides about it; micro-batches and the update are only
    queued. So a GPU's update counts in the time of the step after it, whose reading waits for it.
    """
    cfg, runtime, before = trainer.cfg, trainer.runtime, trainer.state
    started = time.perf_counter()
    heartbeat.at("data", before.step)
    read = next(data)
    batches = [batch.to(runtime.device, non_blocking=True) for batch in read.batches]
    data_wait = time.perf_counter() - started

    heartbeat.at("forward and backward", before.step)
    mean_loss = forward_and_backward(trainer, batches)
    heartbeat.at("optimizer", before.step)
    lr = learning_rate(cfg, before.step)
    loss, grad_norm, memory, reason = update(trainer, mean_loss, lr)
    step_tokens = len(read.ids) * cfg.data.seq_len
    seconds = time.perf_counter() - started
    rate = step_tokens / seconds
    squares = squared_lengths(read.documents, len(read.ids), cfg.data.seq_len)
    per_token = trainer.flops_per_token(squares / step_tokens)
    samples = before.samples + len(read.ids)
    save_seconds, trainer.save_seconds = trainer.save_seconds, 0.0
    state = dataclasses.replace(
        before,
        step=before.step + 1,
        tokens=before.tokens + step_tokens,
        samples=samples,
        data=trainer.loader.stream.state(samples),
    )
    trainer.state = state = remember(state, loss, reason, read.ids)
    return {
        "step": state.step,
        "tokens": state.tokens,
        "loss": finite_or_none(loss),
        "lr": lr,
        "grad_norm": finite_or_none(grad_norm),
        "skipped": reason,
        "skipped_total": state.skipped,
        "tokens_per_second": rate,
        "mfu": mfu(rate, per_token, trainer.peak_flops, runtime.world_size),
        "peak_memory_bytes": memory,
        "untimed": trainer.watch.reason(save_seconds, trainer.profile.touches(state.step)),
        "data_wait_seconds": data_wait,
        "seconds": seconds,
        "save_seconds": save_seconds,
        "step_tokens": step_tokens,
        "segments": read.ids,
        "epoch": trainer.loader.stream.epochs(samples),
    }


def update(trainer: Trainer, mean_loss: torch.Tensor, lr: float) -> tuple[float, float | None, int, str | None]:
    """Update the weights, or drop the gradients; returns (loss, gradient norm, peak memory in bytes, why dropped).

    The norm is None where the loss alone decided. Memory is the peak before the update, the largest of all ranks.
    """
    engine, device = trainer.engine, trainer.runtime.device
    norm = engine.gradient_norm()
    memory = max_scalar(torch.full((), peak_memory_bytes(device), dtype=torch.float64, device=device))
    loss, peak, *norms = to_host(mean_loss, memory, *(() if norm is None else (norm,)))
    reason = reason_to_skip(loss, trainer.state.losses, trainer.cfg.train.spike_factor)
    if reason is not None:
        engine.skip()
        return loss, None, int(peak), reason
    if norm is None:  # the engine looks at its gradients itself
        norms = [engine.step(lr).item()]
    elif math.isfinite(norms[0]):
        engine.step(lr, norm)
    else:
        engine.skip()
    return loss, norms[0], int(peak), None if math.isfinite(norms[0]) else GRADIENT


def forward_and_backward(trainer: Trainer, batches: list[Batch]) -> torch.Tensor:
    """Leave the gradients of a step's batches with the engine; returns the mean loss over all ranks' tokens, fp32.

    The divisor is global and known before the first backward: any split of the batch gives the same gradients. Nothing
    here waits for the device, so that all micro-batches are queued one behind the other.
    """
    device = trainer.runtime.device
    # a fill, not a copy from the host, which would be waited for
    local_tokens = torch.full((), float(sum(b.num_valid for b in batches)), dtype=torch.float32, device=device)
    global_tokens = sum_scalar(local_tokens)
    loss_sum = torch.zeros((), device=device)
    for batch in batches:
        loss = trainer.engine.module(batch.input_ids, batch.position_ids, batch.labels, batch.documents)
        trainer.engine.backward(loss, global_tokens)
        loss_sum += loss.detach()
    return sum_scalar(loss_sum) / global_tokens


def learning_rate(cfg: Config, step: int) -> float:
    """Of 0-based optimizer step `step`."""
    return lr_at(
        step,
        name=cfg.schedule.name,
        peak=cfg.optim.lr,
        warmup_steps=cfg.schedule.warmup_steps,
        total_steps=cfg.train.steps,
    )
