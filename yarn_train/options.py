"""The configuration schema: frozen dataclasses whose defaults, choices and meanings live here and nowhere else.

One dataclass per folder of ``conf/``: :mod:`options_training`, :mod:`options_job` and :mod:`options_eval` hold them.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from .option_field import DOCUMENT_SOURCES, SOURCES
from .options_eval import EvalConfig, HarnessConfig, PasskeyConfig, StudyConfig
from .options_job import (
    CheckpointConfig,
    CurriculumConfig,
    LaunchConfig,
    PlanConfig,
    ProfileConfig,
    RunConfig,
    SweepConfig,
    TrackingConfig,
)
from .options_training import (
    AdapterConfig,
    CompileConfig,
    DataConfig,
    EngineConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RopeConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "DOCUMENT_SOURCES",
    "FREE_FORM",
    "SECTIONS",
    "SOURCES",
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
    "defaults",
    "keys",
]


@dataclass(frozen=True)
class Config:
    """The whole configuration of one run; one field per folder of ``conf/``."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    passkey: PasskeyConfig = field(default_factory=PasskeyConfig)
    harness: HarnessConfig = field(default_factory=HarnessConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)


SECTIONS: dict[str, type] = {f.name: typing.get_type_hints(Config)[f.name] for f in dataclasses.fields(Config)}
FREE_FORM = {"curriculum.stages", "data.mixture"}  # keys below these are the user's own names


def keys() -> list[str]:
    """Every option as ``section.key``, in schema order."""
    return [f"{section}.{f.name}" for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)]


def defaults() -> dict[str, dict[str, Any]]:
    """The schema's defaults as a plain nested dict: what Hydra composes experiments on top of."""
    return dataclasses.asdict(Config())
