"""Options of the job around the training: its folder, checkpoints, plan, start, tracking and stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .option_field import option


@dataclass(frozen=True)
class RunConfig:
    name: str = option("run", "name of the run; its folder is outputs/<name>")
    dir: str = option("", "run folder; empty means outputs/<run.name>")
    seed: int = option(0, "seed of initialisation and sample order", minimum=0)
    resume: str = option(
        "auto",
        "auto: continue what the run folder holds; never: refuse a folder that holds a run already",
        choices=("auto", "never"),
    )
    init_from: str | None = option(
        None, "start from these weights: a run folder, a stage folder, a model folder or a hub id"
    )
    allow_change: list[str] = option(
        [], "options that may differ from those the run folder was started with, by name: [optim.lr, data.path]"
    )
    max_hours: float | None = option(
        None, "save and stop with exit code 75 before this many hours have passed since the start", above=0.0
    )
    deterministic: bool = option(
        False, "only kernels whose results do not vary from run to run; slower, and an error where there is none"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = option(50, "steps between checkpoints; the last step of a stage always makes one", minimum=1)
    keep: int = option(2, "newest complete checkpoints kept per stage", minimum=1)
    keep_every: int | None = option(None, "steps whose multiples are kept for good, beside the newest", minimum=1)
    async_save: bool = option(
        True, "write checkpoints in the background from a copy in host memory, while training goes on"
    )
    export_dtype: str = option(
        "float32", "dtype of the weights in the exported model/", choices=("float32", "bfloat16")
    )


@dataclass(frozen=True)
class PlanConfig:
    gpu: str = option(
        "h100",
        "python -m yarn_train.plan: the GPU to plan for",
        choices=("h100", "h200", "a100-80", "a100-40", "b200"),
    )
    gpus: int = option(8, "python -m yarn_train.plan: GPUs of the whole run", minimum=1)
    gpus_per_node: int = option(8, "python -m yarn_train.plan: GPUs that share a machine's fast links", minimum=1)
    memory_gib: float | None = option(
        None, "memory per GPU (on CPU: of the host) in GiB; null takes what is there, or plan.gpu's", above=0.0
    )
    check: str = option(
        "refuse",
        "before weights load, a run that cannot fit its memory is: refuse: not started; warn: started with a warning; "
        "off: not looked at",
        choices=("refuse", "warn", "off"),
    )
    output: str | None = option(None, "python -m yarn_train.plan: also write the plan to this JSON file")


@dataclass(frozen=True)
class LaunchConfig:
    nproc_per_node: int | str | None = option(
        None,
        "workers that train.py starts on this machine through torch's elastic agent; gpu: one for each GPU; null: "
        "none, this process is the only one or torchrun started it",
    )
    nnodes: int = option(1, "machines of the run; each starts the same command", minimum=1)
    rendezvous: str | None = option(
        None, "host:port of one of the machines, where all of them meet; needed with launch.nnodes > 1"
    )
    max_restarts: int = option(
        0, "times that the workers are started again when one fails; they go on from the newest checkpoint", minimum=0
    )
    timeout: float = option(600.0, "seconds that a rank waits for the others before it gives up", above=0.0)
    stall_after: float = option(
        300.0, "seconds without progress after which a rank says where it stands; training is not stopped", above=0.0
    )
    dry_run: bool = option(
        False, "check the run for launch.nnodes * launch.nproc_per_node GPUs without a GPU, weights or data, and stop"
    )


@dataclass(frozen=True)
class TrackingConfig:
    wandb: str = option(
        "auto",
        "Weights & Biases: auto: online when this machine is logged in, else off; offline: written to <run>/wandb, for "
        "wandb sync",
        choices=("auto", "online", "offline", "disabled"),
    )
    wandb_project: str = option("yarn-train", "project of the wandb run")
    wandb_entity: str | None = option(None, "team or user of the wandb project; null takes the login's")
    wandb_group: str | None = option(None, "group of the wandb run; null takes the name of the sweep the run is in")
    wandb_tags: list[str] = option([], "tags of the wandb run")
    wandb_model: bool = option(False, "log the last stage's model/ as a wandb artifact")
    tensorboard: bool = option(False, "write TensorBoard events to <run>/tensorboard")


@dataclass(frozen=True)
class ProfileConfig:
    steps: int = option(
        0, "optimizer steps to profile: a trace and a table of costs in the stage's profile/; 0: none", minimum=0
    )
    start: int = option(
        3, "first step to profile, counted from 1; steps that a resumed run has behind it are not profiled", minimum=1
    )
    ranks: list[int] = option([0], "ranks that profile; each writes a trace, the lowest the table", minimum=0)
    shapes: bool = option(False, "tell operators apart by the sizes of their inputs")


@dataclass(frozen=True)
class SweepConfig:
    objective: str = option(
        "auto",
        "what a sweep compares its jobs by, lower is better: perplexity: of the last stage at the largest window; "
        "loss: mean training loss of the last tenth of the steps; auto: perplexity where the jobs evaluate",
        choices=("auto", "perplexity", "loss"),
    )
    prune: bool = option(True, "with hydra/sweeper=optuna: stop jobs whose loss its pruner finds hopeless")


@dataclass(frozen=True)
class CurriculumConfig:
    stages: dict[str, Any] = option(
        {}, "stage name -> options that differ in that stage; empty trains one stage from the options above"
    )
