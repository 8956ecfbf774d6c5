"""Where metrics go. metrics.jsonl is the truth; others show it to a person."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


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
        try:
            self.file.write(json.dumps(row) + "\n")
        except OSError as error:
            error.filename = str(self.path)
            raise

    def close(self) -> None:
        with suppress(OSError):  # every row is written already, or its error told
            self.file.close()


class FanOut:
    """All sinks of the main process; on the other ranks it has none."""

    def __init__(self, sinks: list[Sink]):
        self.sinks = sinks
        self.error: OSError | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Give a row to all of them; an error of the storage is kept for :meth:`check`, as only this rank has it."""
        try:
            for sink in self.sinks if self.error is None else ():
                sink.write(row)
        except OSError as error:
            self.error = error

    def check(self) -> None:
        """Raise what writing met, if anything."""
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def _step(line: str) -> int:
    """Step of a row, or 0 for a line that a dying process left unfinished."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
