"""Reads a job's metrics while it runs: for the study that may prune it, and for a line on the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..console import terminal


class Follower:
    """The rows of a run folder's stages as they come."""

    def __init__(self, run: Path, label: str, live: bool):
        """Args: `label` begins the line; `live` says whether this process may draw one."""
        self.run, self.label = run, label
        self.drawn = live and terminal.rewrites(sys.stderr)
        self.reported = 0  # steps over all stages
        self._read: dict[Path, tuple[int, int]] = {}  # file -> (inode, bytes read)
        self._last: dict[Path, int] = {}  # file -> its newest step

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw("")

    def new_rows(self) -> list[tuple[int, float | None]]:
        """(step counted over all stages, loss) of every step that was not returned before."""
        rows, before = [], 0
        for file in sorted(self.run.glob("[0-9]*_*/metrics.jsonl")):
            for row in self._new(file):
                self._last[file] = step = int(row["step"])
                if before + step > self.reported:
                    self.reported = before + step
                    rows.append((self.reported, row.get("loss")))
                    self._draw(_line(self.label, file.parent.name, row))
            before += self._last.get(file, 0)
        return rows

    def _new(self, file: Path) -> list[dict[str, Any]]:
        try:
            with file.open("rb") as opened:
                inode = file.stat().st_ino
                known, position = self._read.get(file, (inode, 0))
                opened.seek(position if known == inode else 0)  # a resume replaces the file by a shorter one
                whole = opened.read().rpartition(b"\n")[0]
                self._read[file] = (inode, (position if known == inode else 0) + len(whole) + bool(whole))
            return [json.loads(line) for line in whole.splitlines()]
        except (OSError, ValueError):
            return []

    def _draw(self, text: str) -> None:
        if self.drawn:
            sys.stderr.write(f"\r\x1b[2K{text[: terminal.width(sys.stderr) - 1]}")
            sys.stderr.flush()


def _line(label: str, stage: str, row: dict[str, Any]) -> str:
    loss, speed = row.get("loss"), None if row.get("untimed") else row.get("tokens_per_second")
    parts = [label, f"{stage} step {row['step']}", "loss none" if loss is None else f"loss {loss:.4f}"]
    return "  ".join([*parts, *([f"{speed:,.0f} tok/s"] if speed else [])])
