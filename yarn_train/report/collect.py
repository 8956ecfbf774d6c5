"""Read a run folder into plain dataclasses: no torch, and nothing but the folder itself is asked.

A run that is unfinished, crashed or not evaluated still has a report, so every part but the folder may be missing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError

STAGE_NAME = re.compile(r"\d+_")


@dataclass(frozen=True)
class Row:
    """One perplexity of ``eval/perplexity.json``; `perplexity` is NaN where the model's answer was not finite."""

    label: str
    window: int
    perplexity: float
    mode: str = "token_mean"
    method: str = ""
    ramp: str | None = None
    factor: float = 1.0
    stage: str | None = None
    stride: int = 0
    tokens: int = 0
    documents: int = 0
    score_from: int | None = None


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
    perplexity: tuple[Row, ...] = ()
    frequencies: Frequencies | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

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
        DataError: when it is no run folder, or when a file in it cannot be read as what it should be.
    """
    folder = Path(folder)
    stages = _stages(folder) if folder.is_dir() else []
    if not stages and not (folder / "run.json").is_file():
        raise DataError(_not_a_run(folder))
    return Run(
        folder=folder,
        info=_json(folder / "run.json", dict) or {},
        config=_yaml(folder / "config.yaml"),
        stages=tuple(Stage(p.name, p, _yaml(p / "config.yaml"), _metrics(p / "metrics.jsonl")) for p in stages),
        perplexity=_rows(folder / "eval" / "perplexity.json"),
        frequencies=_frequencies(folder / "frequencies.json"),
    )


def _stages(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and STAGE_NAME.match(p.name))


def _not_a_run(folder: Path) -> str:
    got = "a folder without run.json and without stage folders" if folder.is_dir() else "no such folder"
    fix = "give the folder that training wrote, outputs/<run.name>"
    if (folder.parent / "run.json").is_file():
        fix = f"this is a stage; give the run it belongs to, {folder.parent}"
    return f"{folder}: got {got}; allowed: a run folder (run.json, 01_.../metrics.jsonl); fix: {fix}"


def _unreadable(path: Path, what: str, error: object) -> DataError:
    got = " ".join(str(error).split())  # parsers explain themselves over several lines
    return DataError(f"{path}: got {got}; allowed: {what}; fix: repair the file, or move it away to report without it")


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unreadable(path, "JSON", error) from error
    if not isinstance(value, kind):
        raise _unreadable(path, f"a JSON {'list' if kind is list else 'object'}", type(value).__name__)
    return value


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise _unreadable(path, "YAML", error) from error
    return value if isinstance(value, dict) else {}


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
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # the run was killed, or is writing this line now
                break
            raise _unreadable(path, "one JSON object with a step per line", f"line {number}: {error!r}") from error
    return tuple(by_step[step] for step in sorted(by_step))


def _rows(path: Path) -> tuple[Row, ...]:
    names = Row.__dataclass_fields__
    found = []
    for entry in _json(path, list) or []:
        try:
            known = {k: v for k, v in entry.items() if k in names and (v is not None or names[k].default is None)}
            known["perplexity"] = math.nan if entry["perplexity"] is None else float(entry["perplexity"])
            found.append(Row(**{**known, "label": str(entry["label"]), "window": int(entry["window"])}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, "rows with label, window and perplexity", f"{entry!r} ({error!r})") from error
    return tuple(found)


def _frequencies(path: Path) -> Frequencies | None:
    value = _json(path, dict)
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
        raise _unreadable(path, "head_dim, theta, original_length and tables", repr(error)) from error
