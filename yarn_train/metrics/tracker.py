"""What a tracker is: a copy of metrics.jsonl somewhere else; and ``tracking.json``, what the run's trackers know."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .tracked import Point

FILE = "tracking.json"
COMPLETE, STOPPED, FAILED = "complete", "stopped", "failed"


class Tracker(Protocol):
    """Takes points and results. All of it is called from one thread that training does not wait for.

    Attributes:
        patience: seconds after which a call that has not returned is given up, once the run ends.
    """

    name: str
    patience: float

    def open(self) -> str | None:
        """Get ready; returns a line for the user, if there is news."""

    def first(self, resumed: int) -> int:
        """The first step to be logged, where the run goes on after step ``resumed``; called once, after open."""

    def log(self, points: Sequence[Point]) -> None:
        """Take steps; their numbers only grow."""

    def evaluation(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of eval/perplexity.json, after step ``step``."""

    def model(self, folder: Path) -> None:
        """Take the run's final model."""

    def finish(self, ending: str) -> str | None:
        """No more will come: the run is COMPLETE, was STOPPED and may go on, or FAILED; a line for the user."""

    def let_go(self) -> None:
        """The call that is under way is given up: see that it does not keep the process. From another thread."""


class Record:
    """``tracking.json``: for each tracker by name, what a later start of the run must know. Any thread may use it."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()

    def read(self, name: str) -> dict[str, Any]:
        """What is known of a tracker; nothing where the file is missing or damaged."""
        with self._lock:
            return dict(self._all().get(name, {}))

    def write(self, name: str, **facts: Any) -> None:
        """Add facts of a tracker: aside, then renamed."""
        with self._lock:
            known = self._all()
            known[name] = {**known.get(name, {}), **facts}
            aside = self.path.with_name(f".{self.path.name}.incomplete")
            aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            os.replace(aside, self.path)

    def _all(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        sound = isinstance(found, dict) and all(isinstance(value, dict) for value in found.values())
        return found if sound else {}
