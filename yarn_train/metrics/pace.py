"""How fast steps have been lately, and so how long the others will take; never imports torch."""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NEWEST = 20  # steps that count: the median of these forgets a slow one, and a machine that got slower shows soon


class Pace:
    """Seconds of the newest steps, and of the stalls that saves were.

    Steps that are marked as untimed (a start's first one, say) count only while there are no others.
    """

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=NEWEST)
        self._stalls: deque[float] = deque(maxlen=NEWEST)
        self._typical = False

    def add(self, row: dict[str, Any]) -> None:
        """One step's metrics, in the order of the steps."""
        typical = not row.get("untimed")
        if typical and not self._typical:
            self._steps.clear()
            self._typical = True
        if typical or not self._typical:
            self._steps.append(float(row["seconds"]))
        if row.get("save_seconds"):
            self._stalls.append(float(row["save_seconds"]))

    @property
    def step_seconds(self) -> float | None:
        """Of a usual step; None before the first."""
        return statistics.median(self._steps) if self._steps else None

    def left(self, steps: int, saves: int) -> float | None:
        """Seconds that so many steps will take, with so many saves that training stands still for."""
        if self.step_seconds is None:
            return None
        stall = statistics.median(self._stalls) if self._stalls else 0.0
        return steps * self.step_seconds + saves * stall


def saves_between(step: int, last: int, every: int) -> int:
    """Saves after steps step + 1 .. last - 1; the one after the last step is waited for in any case."""
    return max(0, (last - 1) // every - step // every)


def of_file(metrics: Path) -> float | None:
    """Seconds of a usual step at the end of a metrics.jsonl; None where there is none, or no rows of ours."""
    pace = Pace()
    for row in _rows(metrics):
        pace.add(row)
    return pace.step_seconds


def _rows(metrics: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()[-NEWEST - 1 :]
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            row = json.loads(line)
            kept = {key: row.get(key) for key in ("save_seconds", "untimed")}
            yield {"seconds": float(row["seconds"]), **kept}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # a dying process left half of it
            continue
