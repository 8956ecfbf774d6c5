"""The evaluations by name (``eval.tasks``): what each refuses before it starts, and how it runs."""

from __future__ import annotations

from typing import Protocol

from transformers import PretrainedConfig

from ..config import Config
from ..dist.heartbeat import heartbeat
from .dynamic import task as dynamic
from .harness import task as harness
from .job import Job
from .passkey import task as passkey
from .perplexity import task as perplexity
from .studies import ramp, temperature


class Task(Protocol):
    """What a module of an evaluation offers."""

    def problems(self, cfg: Config, base: PretrainedConfig) -> list[str]:
        """Every reason why it cannot run, found without weights or documents."""

    def run(self, job: Job) -> None:
        """Evaluate every variant and write ``<job.folder>/<name>.json``; every rank calls it. What is there stays."""


TASKS: dict[str, Task] = {
    "perplexity": perplexity,
    "passkey": passkey,
    "harness": harness,
    "dynamic": dynamic,
    "temperature": temperature,
    "ramp": ramp,
}


def task_problems(cfg: Config, base: PretrainedConfig) -> list[str]:
    """Every reason why the wanted evaluations cannot run."""
    return [line for name in cfg.eval.tasks for line in TASKS[name].problems(cfg, base)]


def run_tasks(job: Job) -> None:
    """All wanted evaluations, in their order; every rank calls it."""
    for name in job.cfg.eval.tasks:
        heartbeat.at(f"evaluate: {name}")
        TASKS[name].run(job)
