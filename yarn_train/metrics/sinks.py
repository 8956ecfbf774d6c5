"""Where metrics go. metrics.jsonl is the truth; the console shows it to a person."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

Epoch = float | dict[str, float]  # passes over the data with their fraction; per source of a mixture


class Sink(Protocol):
    """Something that takes one row per optimizer step."""

    def write(self, row: dict[str, Any]) -> None:
        """Take one step's metrics."""

    def close(self) -> None:
        """No more rows will come."""


class JsonlSink:
    """One JSON object per optimizer step in `path`; rows after `step` (of work that is about to be redone) go."""

    def __init__(self, path: Path, step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if 0 < _step(line) <= step]
            aside = path.with_suffix(".jsonl.incomplete")
            aside.write_text("".join(f"{line}\n" for line in kept))
            os.replace(aside, path)
        self.file = path.open("a", buffering=1)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self.file.close()


class ConsoleSink:
    """A progress bar on a terminal; a plain line every few steps in a log file. In both, a line per new epoch."""

    def __init__(self, label: str, step: int, total: int, tokens_per_step: int, epoch: Epoch = 0.0):
        self.epoch = epoch
        self.interactive = sys.stderr.isatty()
        self.label, self.total = label, total
        self.every = max(1, total // 20)
        self.bar = tqdm(
            total=total * tokens_per_step,
            initial=step * tokens_per_step,
            desc=label,
            unit="tok",
            unit_scale=True,
            disable=not self.interactive,
            dynamic_ncols=True,
        )

    def write(self, row: dict[str, Any]) -> None:
        for line in begun_epochs(self.epoch, row["epoch"], row["step"]):
            tqdm.write(f"{self.label}  {line}")  # to stdout, above the bar
            sys.stdout.flush()
        self.epoch = row["epoch"]
        text = f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  grad {row['grad_norm']:.3f}"
        if self.interactive:
            self.bar.set_postfix_str(f"step {row['step']}/{self.total}  {text}")
            self.bar.update(row["step_tokens"])
        elif row["step"] % self.every == 0 or row["step"] in (1, self.total):
            left = (self.total - row["step"]) * row["step_tokens"] / row["tokens_per_second"]
            rate = f"{row['tokens_per_second']:,.0f} tok/s"
            print(f"{self.label}  step {row['step']}/{self.total}  {text}  {rate}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        self.bar.close()


class FanOut:
    """All sinks of the main process; on the other ranks it has none."""

    def __init__(self, sinks: list[Sink]):
        self.sinks = sinks

    def write(self, row: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(row)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def begun_epochs(before: Epoch, after: Epoch, step: int) -> list[str]:
    """A line for every source of which step ``step`` read the first segment of another epoch than the first.

    A step that is longer than the source begins several; the newest is named.
    """
    earlier, lines = _by_name(before), []
    for name, passes in _by_name(after).items():
        newest = math.ceil(passes)  # 2.0 passes are done with the second epoch and have not begun the third
        if newest > max(1, math.ceil(earlier[name])):
            lines.append(f"{f'{name}: ' if name else ''}epoch {newest} begins at step {step}")
    return lines


def _by_name(epoch: Epoch) -> dict[str, float]:
    return epoch if isinstance(epoch, dict) else {"": epoch}


def _step(line: str) -> int:
    """Step of a row, or 0 for a line that a dying process left unfinished."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
