"""The stages of a run: one resolved configuration and one folder each, from the composed config alone."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config as schema
from .config import Config
from .errors import ConfigError, problem

# Options of a stage's own: everything else describes the run as a whole and may not differ between its stages.
STAGE_SECTIONS = ("rope", "data", "train", "optim", "schedule", "engine", "parallel", "memory", "compile", "checkpoint")
STAGE_RUN_KEYS = ("seed",)


@dataclass(frozen=True)
class Stage:
    """One stage: its name, its folder and its complete configuration."""

    name: str
    folder: Path
    cfg: Config

    @property
    def model_folder(self) -> Path:
        """The exported Hugging Face model; it exists exactly when the stage is finished."""
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        """Whether the stage's model was exported."""
        return (self.model_folder / "config.json").is_file()


def resolve(raw: Mapping[str, Any], run_folder: Path, typed: Collection[str] = ()) -> list[Stage]:
    """All stages in order.

    A stage is the composed config with that stage's options on top, and the options `typed` on the command line on top
    of both: what a person types is never silently replaced by a file.

    Raises:
        ConfigError: listing the problems of all stages.
    """
    whole = schema.build(raw)
    entries = whole.curriculum.stages
    if not entries:
        name = f"s{whole.rope.factor:g}"
        return [Stage(name, run_folder / f"01_{name}", whole)]
    problems: list[str] = []
    if "rope.factor" in typed:
        problems.append(
            problem(
                "rope.factor",
                whole.rope.factor,
                f"nothing here: each of the stages {', '.join(entries)} has its own factor",
                "set curriculum.stages.<stage>.rope.factor, or use a single-stage experiment such as extend",
            )
        )
    stages = []
    for number, (name, options) in enumerate(entries.items(), start=1):
        if not re.fullmatch(r"[\w.-]+", name):
            fix = "the stage's folder is named after it"
            problems.append(problem("curriculum.stages", name, "names of letters, digits, '_', '-' and '.'", fix))
            continue
        try:
            cfg = _stage_config(raw, name, options, typed)
        except ConfigError as error:
            problems += [f"stage {name}: {p}" for p in error.problems]
            continue
        stages.append(Stage(name, run_folder / f"{number:02d}_{name}", cfg))
    if problems:
        raise ConfigError(problems)
    return stages


def _stage_config(raw: Mapping[str, Any], name: str, options: Any, typed: Collection[str]) -> Config:
    if not isinstance(options, Mapping):
        raise ConfigError(problem(f"curriculum.stages.{name}", options, "a section of options", "see conf/experiment"))
    merged = copy.deepcopy(dict(raw))
    merged.pop("curriculum", None)
    problems = []
    for section, values in options.items():
        if (section != "run" and section not in STAGE_SECTIONS) or not isinstance(values, Mapping):
            problems.append(problem(section, values, " | ".join(("run", *STAGE_SECTIONS)), "set it for the whole run"))
            continue
        for key, value in values.items():
            if section == "run" and key not in STAGE_RUN_KEYS:
                problems.append(problem(f"run.{key}", value, "run.seed only", "set it for the whole run"))
            elif f"{section}.{key}" not in typed or f"curriculum.stages.{name}.{section}.{key}" in typed:
                merged[section] = {**merged.get(section, {}), key: value}
    if problems:
        raise ConfigError(problems)
    return schema.build(merged)
