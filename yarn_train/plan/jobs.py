"""Traces in processes of their own: a trace needs a process group of its own, and two of them run side by side."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from transformers import PretrainedConfig

from ..config import Config
from ..dist.environment import usable_cores
from .trace import Trace, trace

Job = tuple[Config, int]  # a stage's configuration and the number of ranks


class Tracer:
    """Traces of one base model. Use as a context manager; equal questions are asked once."""

    def __init__(self, base: PretrainedConfig):
        self.base = base
        self._known: dict[str, Trace] = {}

    def __enter__(self) -> Tracer:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(max(1, min(usable_cores(), 8)), context, initializer=_one_thread)
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, jobs: Sequence[Job]) -> list[Trace]:
        """The traces, in the order of the jobs."""
        keys = [repr((shape_of(cfg), world_size)) for cfg, world_size in jobs]
        new = {key: job for key, job in zip(keys, jobs, strict=True) if key not in self._known}
        futures = {key: self._pool.submit(trace, cfg, self.base, size) for key, (cfg, size) in new.items()}
        self._known |= {key: future.result() for key, future in futures.items()}
        return [self._known[key] for key in keys]


def shape_of(cfg: Config) -> Config:
    """`cfg` with all that a trace does not depend on at its default, so that stages that differ in it share one."""
    plain = Config()
    return dataclasses.replace(
        plain,
        model=cfg.model,
        data=dataclasses.replace(plain.data, seq_len=cfg.data.seq_len),
        train=dataclasses.replace(
            plain.train,
            global_batch_size=cfg.train.global_batch_size,
            micro_batch_size=cfg.train.micro_batch_size,
        ),
        optim=dataclasses.replace(plain.optim, state=cfg.optim.state),
        engine=cfg.engine,
        parallel=cfg.parallel,
        memory=cfg.memory,
    )


def _one_thread() -> None:
    torch.set_num_threads(1)
