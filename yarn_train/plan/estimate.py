"""The plan of one stage: does it fit, how long does it take; and of a run: all of its stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import Config
from ..model.loss import loss_missing
from ..stages import Stage
from .jobs import Tracer
from .machines import GIB, MACHINES, Machine
from .memory import Memory, checkpoint_bytes, memory_of
from .sizes import Sizes
from .time import StepTime, step_time

GPU = torch.device("cuda")
EXPORT = {"float32": 4.0, "bfloat16": 2.0}
DOES_NOT_FIT = 3  # exit code of a plan, and of a dry run


@dataclass(frozen=True)
class Target:
    """The machines that a plan is for."""

    machine: Machine
    gpus: int
    gpus_per_node: int
    memory: float

    @classmethod
    def of(cls, cfg: Config) -> Target:
        """As ``plan.*`` says."""
        machine = MACHINES[cfg.plan.gpu]
        memory = machine.memory if cfg.plan.memory_gib is None else cfg.plan.memory_gib * GIB
        return cls(machine, cfg.plan.gpus, cfg.plan.gpus_per_node, memory)


@dataclass(frozen=True)
class Estimate:
    """Memory and time of a configuration on a number of GPUs; `refused` is why no memory would be enough."""

    cfg: Config
    gpus: int
    memory: Memory
    time: StepTime
    refused: str | None

    @property
    def runs(self) -> bool:
        """Whether training would start and stay within memory."""
        return self.memory.fits and self.refused is None


@dataclass(frozen=True)
class StagePlan:
    """A stage's estimate and what it writes.

    Attributes:
        checkpoint: bytes of one checkpoint; `export` of the model at the stage's end.
    """

    name: str
    estimate: Estimate
    checkpoint: float
    export: float

    @property
    def seconds(self) -> float:
        """All steps."""
        return self.estimate.time.seconds * self.estimate.cfg.train.steps


def estimates(configs: list[tuple[Config, int]], tracer: Tracer, sizes: Sizes, target: Target) -> list[Estimate]:
    """Estimates of (configuration, GPUs), traced side by side."""
    found = []
    for (cfg, gpus), traced in zip(configs, tracer(configs), strict=True):
        memory = memory_of(cfg, traced, sizes, gpus, target.memory)
        time = step_time(cfg, traced, sizes, target.machine, gpus, target.gpus_per_node)
        logits = cfg.train.micro_batch_size * cfg.data.seq_len // cfg.parallel.context * sizes.vocab
        refused = loss_missing("full", GPU, logits) if cfg.memory.loss == "full" else None
        found.append(Estimate(cfg, gpus, memory, time, refused))
    return found


def plan_stages(stages: list[Stage], tracer: Tracer, sizes: Sizes, target: Target) -> list[StagePlan]:
    """The plan of every stage."""
    found = estimates([(stage.cfg, target.gpus) for stage in stages], tracer, sizes, target)
    plans = []
    for stage, estimate in zip(stages, found, strict=True):
        written = checkpoint_bytes(stage.cfg, sizes), export_bytes(stage.cfg, sizes)
        plans.append(StagePlan(stage.name, estimate, *written))
    return plans


def export_bytes(cfg: Config, sizes: Sizes) -> float:
    """Bytes of the model at a stage's end on disk."""
    return EXPORT[cfg.checkpoint.export_dtype] * sizes.parameters
