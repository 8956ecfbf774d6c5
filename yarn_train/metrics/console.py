"""The console: what a person sees of the steps while they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..console.lines import Line, Part, duration, say
from .pace import Pace, saves_between

GIB = 2**30
MINUTE = 60.0  # seconds between lines of a log, where steps take long
SHOWN = 16  # segment ids in a line
Epoch = float | dict[str, float]  # passes over the data with their fraction; per source of a mixture


class ConsoleSink:
    """How the steps go on, in one line; above it a line per new epoch and per step that updated nothing.

    In a log it is a line every 20th of the stage, and at least one a minute.
    """

    def __init__(self, label: str, step: int, total: int, save_every: int, epoch: Epoch = 0.0, then: str = ""):
        """
        Args:
            step: steps that are taken already.
            save_every: steps between saves, whose stalls are part of the time left.
            then: what comes after the last step and is not part of the time left.
        """
        self.label, self.total, self.save_every, self.then = label, total, save_every, then
        self.epoch = epoch
        self.every = max(1, total // 20)
        self.pace = Pace()
        self.line = Line(MINUTE)

    def write(self, row: dict[str, Any]) -> None:
        """Show a step; what happened in it goes above the line."""
        for line in begun_epochs(self.epoch, row["epoch"], row["step"]):
            say(f"{self.label}  {line}")
        self.epoch = row["epoch"]
        if row["skipped"]:
            say(f"{self.label}  step {row['step']} skipped: {row['skipped']}, segments {listed(row['segments'])}")
        self.pace.add(row)
        self.line.show(self._parts(row), always=row["step"] % self.every == 0 or row["step"] in (1, self.total))

    def _parts(self, row: dict[str, Any]) -> list[Part]:
        step = row["step"]
        left = self.pace.left(self.total - step, saves_between(step, self.total, self.save_every)) or 0.0
        mfu, memory = row.get("mfu"), row.get("peak_memory_bytes")
        timed = not row.get("untimed")  # a rate of the others would mislead
        return [
            (1, self.label),
            (0, f"step {step}/{self.total}"),
            (0, f"loss {_number(row['loss'], '.4f')}"),
            (6, f"lr {row['lr']:.2e}"),
            (4, f"grad {_number(row['grad_norm'], '.3f')}"),
            (3, f"{row['tokens_per_second']:,.0f} tok/s" if timed else ""),
            (5, f"MFU {mfu:.1%}" if timed and mfu is not None else ""),
            (7, f"{memory / GIB:.1f} GiB" if memory else ""),
            (2, f"{duration(left)} left"),
            (3, f"then {self.then}" if self.then else ""),
        ]

    def close(self) -> None:
        """Leave the line as it is."""
        self.line.close()


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


def listed(segments: Sequence[int]) -> str:
    """Segment ids for a person; all of them are in metrics.jsonl."""
    shown = ", ".join(map(str, segments[:SHOWN]))
    return f"{shown} and {len(segments) - SHOWN} more" if len(segments) > SHOWN else shown


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _by_name(epoch: Epoch) -> dict[str, float]:
    return epoch if isinstance(epoch, dict) else {"": epoch}
