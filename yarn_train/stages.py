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
from .errors import problem
from .problem_list import ProblemList

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
    def trains(self) -> bool:
        """Whether it takes any step; one that takes none needs no data."""
        return self.cfg.train.steps > 0

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
    stages, problems = examine(raw, run_folder, typed)
    problems.refuse()
    return stages


def examine(raw: Mapping[str, Any], run_folder: Path, typed: Collection[str] = ()) -> tuple[list[Stage], ProblemList]:
    """Like :func:`resolve`, for checks that go on: (stages, defaults in place of what is wrong; problems)."""
    problems = ProblemList()
    whole, found = schema.examine(raw)
    problems.add_options(found)
    entries = whole.curriculum.stages
    stages = []
    if "rope.factor" in typed and entries:
        problems.add_options(
            [
                problem(
                    "rope.factor",
                    whole.rope.factor,
                    f"nothing here: each of the stages {', '.join(map(str, entries))} has its own factor",
                    "set curriculum.stages.<stage>.rope.factor, or use a single-stage experiment such as extend",
                )
            ]
        )
    for number, (name, options) in enumerate(entries.items(), start=1):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            fix = "the stage's folder is named after it"
            allowed = "names of letters, digits, '_', '-' and '.'"
            problems.add_options([problem("curriculum.stages", name, allowed, fix)])
            continue
        merged, wrong = _stage_options(raw, name, options, typed)
        cfg, found = schema.examine(merged)
        new = [line for line in found if line not in problems.lines]
        problems.add_options(f"stage {name}: {line}" for line in [*wrong, *new])
        stages.append(Stage(name, run_folder / f"{number:02d}_{name}", cfg))
    if not stages:
        name = f"s{whole.rope.factor:g}"
        stages = [Stage(name, run_folder / f"01_{name}", whole)]
    return stages, problems


def _stage_options(
    raw: Mapping[str, Any], name: str, options: Any, typed: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """(the composed options with a stage's own on top, problems of how the stage is written)."""
    merged = copy.deepcopy(dict(raw))
    merged.pop("curriculum", None)
    if not isinstance(options, Mapping):
        return merged, [problem(f"curriculum.stages.{name}", options, "a section of options", "see conf/experiment")]
    problems = []
    for section, values in options.items():
        if (section != "run" and section not in STAGE_SECTIONS) or not isinstance(values, Mapping):
            problems.append(problem(section, values, " | ".join(("run", *STAGE_SECTIONS)), "set it for the whole run"))
            continue
        for key, value in values.items():
            if section == "run" and key not in STAGE_RUN_KEYS:
                problems.append(problem(f"run.{key}", value, "run.seed only", "set it for the whole run"))
            elif f"{section}.{key}" not in typed or f"curriculum.stages.{name}.{section}.{key}" in typed:
                there = merged.get(section)
                merged[section] = {**(there if isinstance(there, Mapping) else {}), key: value}
    return merged, problems
