"""The configuration of a run: made of a plain dict, checked as a whole, and the numbers that follow from it.

``build`` turns what Hydra composed into a :class:`Config` and reports every unknown key, wrong type, forbidden value
and broken rule at once; ``validate`` adds the rules that need the number of ranks. Neither touches files, devices or
the network, so a bad option is reported before anything expensive starts. The options themselves: :mod:`options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .data_parts import MixturePart, parts_of
from .errors import ConfigError, problem
from .option_rules import broken_rules
from .option_values import build_section, unknown_key
from .options import (
    DOCUMENT_SOURCES,
    FREE_FORM,
    SECTIONS,
    AdapterConfig,
    CheckpointConfig,
    CompileConfig,
    Config,
    CurriculumConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    HarnessConfig,
    LaunchConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    PasskeyConfig,
    PlanConfig,
    ProfileConfig,
    RopeConfig,
    RunConfig,
    ScheduleConfig,
    StudyConfig,
    SweepConfig,
    TrackingConfig,
    TrainConfig,
    defaults,
    keys,
)
from .problem_list import ProblemList

__all__ = [
    "DOCUMENT_SOURCES",
    "FREE_FORM",
    "SECTIONS",
    "AdapterConfig",
    "CheckpointConfig",
    "CompileConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "HarnessConfig",
    "LaunchConfig",
    "MemoryConfig",
    "MixturePart",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "PasskeyConfig",
    "PlanConfig",
    "ProfileConfig",
    "RopeConfig",
    "RunConfig",
    "ScheduleConfig",
    "StudyConfig",
    "SweepConfig",
    "TrackingConfig",
    "TrainConfig",
    "accumulation_steps",
    "build",
    "data_ranks",
    "defaults",
    "examine",
    "keys",
    "parts_of",
    "refuse_dry_run",
    "unknown_key",
    "validate",
]


def build(raw: Mapping[str, Any]) -> Config:
    """Make a typed :class:`Config` of a plain nested dict; missing keys take their default.

    Raises:
        ConfigError: listing ALL unknown keys, wrong types and forbidden values.
    """
    config, problems = examine(raw)
    if problems:
        raise ConfigError(problems)
    return config


def examine(raw: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Like :func:`build`, for checks that go on: (the configuration with defaults for what is wrong, all problems)."""
    problems: list[str] = []
    sections = {}
    for name, values in raw.items():
        if name not in SECTIONS:
            problems.append(unknown_key(str(name), SECTIONS))
        elif not isinstance(values, Mapping):
            problems.append(problem(name, values, "a section of options", f"write {name}.<option>=..."))
        else:
            sections[name] = build_section(name, values, problems)
    config = Config(**sections)
    found = ProblemList()
    found.add_options(problems)
    found.add(broken_rules(config))
    return config, found.lines


def validate(config: Config, world_size: int) -> None:
    """Check the rules that need the number of ranks.

    Raises:
        ConfigError: listing all of them that are broken.
    """
    parallel = config.parallel
    group = parallel.replicate * parallel.context * (parallel.shard or 1)
    if world_size % group or (parallel.shard is not None and world_size != group):
        sizes = f"replicate * shard * context = {parallel.replicate} * {parallel.shard or 1} * {parallel.context}"
        allowed = f"{sizes} {'equal to' if parallel.shard else 'a divisor of'} the number of ranks ({world_size})"
        raise ConfigError(problem("parallel", group, allowed, "start another number of ranks, or change a size"))
    absent = [rank for rank in config.profile.ranks if rank >= world_size]
    if config.profile.steps and absent:
        allowed, fix = f"numbers from 0 to {world_size - 1}", "profile.ranks=[0] profiles the first"
        raise ConfigError(problem("profile.ranks", absent, allowed, fix))
    ranks = data_ranks(config, world_size)
    per_pass = config.train.micro_batch_size * ranks
    if config.train.global_batch_size % per_pass:
        raise ConfigError(
            problem(
                "train.global_batch_size",
                config.train.global_batch_size,
                f"a multiple of train.micro_batch_size * data-parallel ranks = "
                f"{config.train.micro_batch_size} * {ranks}",
                f"use {-(-config.train.global_batch_size // per_pass) * per_pass}, or another number of ranks",
            )
        )


def refuse_dry_run(config: Config) -> None:
    """For entries that cannot try a run, and would do the real thing instead.

    Raises:
        ConfigError: launch.dry_run asks for it.
    """
    if config.launch.dry_run:
        raise ConfigError(problem("launch.dry_run", True, "false here", "python train.py tries a run"))


def data_ranks(config: Config, world_size: int) -> int:
    """Ranks, or groups of `parallel.context` ranks, that read different sequences."""
    return world_size // config.parallel.context


def accumulation_steps(config: Config, world_size: int) -> int:
    """Forward/backward passes per optimizer step on one rank."""
    return config.train.global_batch_size // (config.train.micro_batch_size * data_ranks(config, world_size))
