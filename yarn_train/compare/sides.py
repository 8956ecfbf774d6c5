"""One of the two runs: what its folder says about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError, problem
from ..report.collect import Run, Stage, collect
from .options import Fact
from .tensors import MODEL_FILES, complete_steps


@dataclass(frozen=True)
class Side:
    """A run folder, or one stage of it."""

    run: Run
    stages: tuple[Stage, ...]

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Every start of the run, as run.json has them."""
        found = self.run.info.get("starts")
        return [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []

    def resumed(self, stage: str, step: int) -> dict[str, Any] | None:
        """The last resume of which `step` is the first step, which uses its weights, or the second, its moments."""
        found = [s for s in self.starts if s.get("stage") == stage and s.get("step") in (step - 1, step - 2)]
        return max((s for s in found if s["step"] > 0), key=lambda start: int(start["step"]), default=None)


def open_side(path: str | Path) -> Side:
    """Read a run folder or a stage folder.

    Raises:
        DataError: it is neither, or a file in it cannot be read.
    """
    folder = Path(path)
    if (folder / "metrics.jsonl").is_file() and not (folder / "run.json").is_file():
        run = collect(folder.resolve().parent)
        stages = tuple(stage for stage in run.stages if stage.name == folder.resolve().name)
        return Side(run, stages)
    run = collect(folder)
    if not run.stages:
        fix = "train at least one step, or give another folder"
        raise DataError(problem(str(folder), "a run without stages", "a run that has trained", fix))
    return Side(run, run.stages)


def data_of(stage: Stage) -> list[dict[str, Any]]:
    """What the stage's newest checkpoint says of its prepared data; empty where there is none."""
    for checkpoint in reversed(complete_steps(stage.folder).values()):
        try:
            state = json.loads((checkpoint / "train_state.json").read_text(encoding="utf-8"))
            return [{str(k): v for k, v in source.items()} for source in state["data"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return []


def data_facts(a: Stage, b: Stage) -> list[Fact] | None:
    """What differs in the data that two stages were trained on; None where one does not say what its data are."""
    ours, theirs = data_of(a), data_of(b)
    if not ours or not theirs:
        return None
    if len(ours) != len(theirs):
        return [Fact("sources", len(ours), len(theirs))]
    keys = ("weight", "segments", "content_sha256", "documents_sha256")
    pairs = [(x, y, key) for x, y in zip(ours, theirs, strict=True) for key in keys]
    return [Fact(f"{x.get('name')} {key}", x.get(key), y.get(key)) for x, y, key in pairs if x.get(key) != y.get(key)]


def place_facts(a: Side, b: Side) -> list[Fact]:
    """Software and machines that differ; the number of starts is told by the steps at which they began."""
    flat = [
        {
            **{key: side.run.info.get(key) for key in ("git", "python", "device", "host")},
            "world_size": sorted({start.get("world_size") for start in side.starts}, key=str),
            **{f"versions.{name}": value for name, value in (side.run.info.get("versions") or {}).items()},
        }
        for side in (a, b)
    ]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [Fact(key, flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)]


def has_model(stage: Stage) -> bool:
    """Whether the stage's model was exported."""
    return any((stage.folder / "model" / name).is_file() for name in MODEL_FILES)
