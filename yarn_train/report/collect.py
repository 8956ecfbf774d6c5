"""Read a run folder into plain dataclasses: no torch, and nothing but the folder itself is asked.

A run that is unfinished, crashed or not evaluated still has a report, so every part but the folder may be missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from .evaluations import FOLDER, Evaluations, has_evaluations, read_evaluations
from .files import json_file, unreadable, yaml_file
from .rows import Row

STAGE_NAME = re.compile(r"\d+_")


@dataclass(frozen=True)
class Table:
    """One RoPE table of ``frequencies.json``: inverse frequencies, one per pair of head dimensions."""

    label: str
    method: str
    factor: float
    inv_freq: tuple[float, ...]
    ramp: str | None = None
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Frequencies:
    """The tables a run used or compared, and the base they scale."""

    head_dim: int
    theta: float
    original_length: int
    tables: tuple[Table, ...] = ()

    def base(self) -> list[float]:
        """Unscaled inverse frequencies theta ** (-2 i / head_dim), one per pair."""
        return [self.theta ** (-2 * i / self.head_dim) for i in range(self.head_dim // 2)]

    def pair_of(self, rotations: Any) -> float | None:
        """Pair index (a fraction) that turns `rotations` times over the original length; None where there is none."""
        if not isinstance(rotations, int | float) or rotations <= 0:
            return None
        turns = self.original_length / (rotations * 2 * math.pi)
        pair = self.head_dim * math.log(turns) / (2 * math.log(self.theta))
        return pair if 0 <= pair < self.head_dim // 2 else None


@dataclass(frozen=True)
class Stage:
    """One training stage: its resolved configuration and one record per optimizer step, in step order."""

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()

    def series(self, key: str) -> list[float]:
        """Values of one metric, NaN where a step has none."""
        values = (record.get(key) for record in self.metrics)
        return [float(v) if isinstance(v, int | float) else math.nan for v in values]

    def timed(self) -> tuple[dict[str, Any], ...]:
        """The steps that say how fast training is: all that are not marked as untimed, or else all."""
        return tuple(record for record in self.metrics if not record.get("untimed")) or self.metrics

    def typical(self) -> Stage:
        """This stage as if it had only those."""
        return dataclasses.replace(self, metrics=self.timed())

    def option(self, key: str) -> Any:
        """An option such as ``rope.factor`` of the stage's configuration, None where it is not there."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class Run:
    """Everything a report needs of one run folder."""

    folder: Path
    info: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    frequencies: Frequencies | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def trained_here(self) -> bool:
        """Whether training wrote this folder; else it holds an evaluation alone."""
        return bool(self.info or self.stages)

    @property
    def perplexity(self) -> tuple[Row, ...]:
        return self.evaluations.perplexity

    def option(self, key: str) -> Any:
        """An option of the first stage that states it, None where none does."""
        return next((value for stage in self.stages if (value := stage.option(key)) is not None), None)

    def original_length(self) -> int | None:
        """L, from the RoPE tables or else the configuration; None where neither states it."""
        if self.frequencies:
            return self.frequencies.original_length
        for source in (*self.stages, Stage("", self.folder, self.config)):
            value = source.option("rope.original_max_position_embeddings")
            if isinstance(value, int):
                return value
        return None


def collect(folder: str | Path) -> Run:
    """Read a run folder as DESIGN describes it.

    Raises:
        DataError: when it is neither a run nor an evaluation, or when a file in it cannot be read as what it should be.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise DataError(_not_a_run(folder))
    return Run(
        folder=folder,
        info=json_file(folder / "run.json", dict) or {},
        config=yaml_file(folder / "config.yaml"),
        stages=tuple(_stage(path) for path in _stages(folder)),
        frequencies=_frequencies(folder / "frequencies.json"),
        evaluations=read_evaluations(folder),
    )


def is_run(folder: Path) -> bool:
    """Whether training or an evaluation wrote this folder, however little of it."""
    written = folder.is_dir() and ((folder / "run.json").is_file() or bool(_stages(folder)))
    return written or has_evaluations(folder)


def _stages(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and STAGE_NAME.match(p.name))


def _stage(folder: Path) -> Stage:
    return Stage(folder.name, folder, yaml_file(folder / "config.yaml"), _metrics(folder / "metrics.jsonl"))


def _not_a_run(folder: Path) -> str:
    got = "a folder without run.json, stage folders or eval/*.json" if folder.is_dir() else "no such folder"
    fix = "give the folder that training wrote, outputs/<run.name>, or that an evaluation did, outputs/eval/<model>"
    if (folder.parent / "run.json").is_file():
        fix = f"this is a stage; give the run it belongs to, {folder.parent}"
    elif folder.name == FOLDER and has_evaluations(folder.parent):
        fix = f"give the folder around it, {folder.parent}"
    return f"{folder}: got {got}; allowed: a run folder (run.json, 01_.../metrics.jsonl) or eval/*.json; fix: {fix}"


def _metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """One record per step: where a resumed run repeated steps, the last attempt counts."""
    if not path.is_file():
        return ()
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    by_step: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            by_step[int(record["step"])] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):  # the run was killed, or is writing this line now
                break
            raise unreadable(path, "one JSON object with a step per line", f"line {number}: {error!r}") from error
    return tuple(by_step[step] for step in sorted(by_step))


def _frequencies(path: Path) -> Frequencies | None:
    value = json_file(path, dict)
    if value is None:
        return None
    names = Table.__dataclass_fields__
    try:
        tables = tuple(
            Table(**{**{k: v for k, v in t.items() if k in names}, "inv_freq": tuple(map(float, t["inv_freq"]))})
            for t in value["tables"]
        )
        return Frequencies(int(value["head_dim"]), float(value["theta"]), int(value["original_length"]), tables)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, "head_dim, theta, original_length and tables", repr(error)) from error
