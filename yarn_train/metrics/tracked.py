"""What trackers show of metrics.jsonl: rows of all stages on one axis, read from the files as they grow.

A stage counts its steps and tokens from 1; trackers want one number that only grows over the whole run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

STEP, TOKENS = "train/step", "train/tokens"  # the axes
GIB = 2**30
MODE = "token_mean"
UNNAMED = re.compile(r"[^\w@=+()/ -]+")  # trackers nest names at dots, and commas are part of their queries
# key of a row -> what trackers call it, and its divisor
SHOWN = {
    "loss": ("train/loss", 1),
    "lr": ("train/lr", 1),
    "grad_norm": ("train/grad_norm", 1),
    "skipped_total": ("train/skipped_total", 1),
    "tokens_per_second": ("performance/tokens_per_second", 1),
    "mfu": ("performance/mfu", 1),
    "peak_memory_bytes": ("performance/peak_memory_gib", GIB),
    "seconds": ("performance/step_seconds", 1),
    "data_wait_seconds": ("performance/data_wait_seconds", 1),
    "save_seconds": ("performance/save_seconds", 1),
}


@dataclass(frozen=True)
class TrackedStage:
    """A stage as trackers place it.

    Attributes:
        folder: its folder, with metrics.jsonl.
        number: its place in the run, from 1.
        steps_before: optimizer steps of all earlier stages.
        finished: whether it was, when this run started.
    """

    folder: Path
    number: int
    steps_before: int
    finished: bool


@dataclass(frozen=True)
class Point:
    """One optimizer step: its number over all stages, and finite numbers by the names that trackers show."""

    step: int
    values: dict[str, float]


def placed(stages: Sequence[tuple[Path, int, bool]]) -> list[TrackedStage]:
    """Stages in their order, each given as (folder, steps, finished)."""
    steps = [count for _, count, _ in stages]
    return [
        TrackedStage(folder, number, sum(steps[: number - 1]), finished)
        for number, (folder, _, finished) in enumerate(stages, start=1)
    ]


def point(row: Mapping[str, Any], stage: TrackedStage, tokens_before: int = 0) -> Point:
    """A row of metrics.jsonl; what has no finite value is left out, as trackers would draw it as zero or stumble.

    Args:
        tokens_before: that all earlier stages trained on.
    """
    step = stage.steps_before + row["step"]
    numbers: dict[str, Any] = {name: _divided(row.get(key), by) for key, (name, by) in SHOWN.items()}
    epoch = row.get("epoch")
    if isinstance(epoch, Mapping):
        numbers |= {f"train/epoch/{named(source)}": passes for source, passes in epoch.items()}
    else:
        numbers["train/epoch"] = epoch
    if row.get("skipped"):
        del numbers[SHOWN["loss"][0]]  # it trained nothing; a curve of what did is meant
    if row.get("untimed"):  # rates of steps that are not like the others
        del numbers[SHOWN["tokens_per_second"][0]], numbers[SHOWN["mfu"][0]]
    numbers |= {STEP: step, TOKENS: tokens_before + row["tokens"]}
    numbers |= {"train/stage": stage.number, "train/stage_step": row["step"]}
    return Point(step, {name: value for name, value in numbers.items() if _is_number(value)})


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``eval/perplexity/<label>@<window>`` of the rows of an evaluation, of the mean over tokens."""
    kept = [row for row in rows if row.get("mode", MODE) == MODE]
    named_rows = ((f"eval/perplexity/{named(row['label'])}@{row['window']}", row["perplexity"]) for row in kept)
    return {name: float(value) for name, value in named_rows if _is_number(value)}


def named(text: str) -> str:
    """A label as part of a tracker's name."""
    return UNNAMED.sub("_", text)


class Rows:
    """Reads the rows of the stages, each once, in order; those that are not written yet come with a later call.

    Not shared between threads, but for :meth:`begin`.
    """

    def __init__(self, stages: Sequence[TrackedStage]):
        self._stages = list(stages)
        # A stage's file is read once nothing will be cut off its end: when it is finished, or has begun.
        self._readable = [stage.finished for stage in stages]
        self._place = 0
        self._tokens_before = 0
        self._tokens = 0
        self._file: BinaryIO | None = None

    def begin(self, number: int) -> None:
        """Stage ``number`` (from 1) goes on from here: what its file holds now is there to stay."""
        self._readable[:number] = [True] * number

    def new(self) -> Iterator[Point]:
        """Rows that were written since the last call."""
        while self._place < len(self._stages) and self._readable[self._place]:
            more = self._place + 1 < len(self._stages) and self._readable[self._place + 1]  # then this one is complete
            yield from self._read(self._stages[self._place])
            if not more:
                return
            self.close()
            self._place += 1
            self._tokens_before = self._tokens

    def close(self) -> None:
        """Close the file that is read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, stage: TrackedStage) -> Iterator[Point]:
        if self._file is None:
            try:
                self._file = (stage.folder / "metrics.jsonl").open("rb")
            except FileNotFoundError:
                return
        while (line := self._file.readline()).endswith(b"\n"):
            found = point(json.loads(line), stage, self._tokens_before)
            self._tokens = round(found.values[TOKENS])
            yield found
        self._file.seek(-len(line), 1)  # half a line, whose end is still to be written


def _divided(value: Any, by: float) -> Any:
    return value / by if by != 1 and _is_number(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
