"""What processes are doing, from /proc: a slow machine is told from something that hangs. Never imports torch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

PAUSE = 0.3  # seconds between two looks; a process that computes at all gets its turn in it
STATES = {"D": "waits for a device or a file system", "S": "waits for something that does not come", "T": "is stopped"}


@dataclass(frozen=True)
class Activity:
    """Whether any of some processes computed, and the states of all of them (``R``, ``D``, ``S`` and their kind)."""

    busy: bool
    states: str

    @property
    def text(self) -> str:
        """The worst state, for people: D comes first."""
        worst = min(self.states, default="?")
        return f"it {STATES[worst]} (state {worst})" if worst in STATES else f"state {worst}"


def activity(root: int) -> Activity:
    """What a process, everything below it and everything of its session do within a moment; this one is left out."""
    before = _ticks(root)
    time.sleep(PAUSE)
    after = _ticks(root)
    states = "".join(sorted({state for state, _ in after.values()}))
    return Activity(
        "R" in states or any(ticks > before.get(pid, ("", 0))[1] for pid, (_, ticks) in after.items()), states
    )


def _ticks(root: int) -> dict[int, tuple[str, int]]:
    """State and processor time of each process by its id; nothing where there is no /proc."""
    every: dict[int, tuple[str, int, int, int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        # proc(5), counted after the name: state, parent, group, session; user and system time are 14 and 15
        every[int(file.parent.name)] = words[0], int(words[1]), int(words[3]), int(words[11]) + int(words[12])
    chosen = {pid for pid, (_, _, session, _) in every.items() if root in (pid, session)}
    while below := {pid for pid, (_, parent, _, _) in every.items() if parent in chosen} - chosen:
        chosen |= below
    return {pid: (every[pid][0], every[pid][3]) for pid in chosen - {os.getpid()}}  # it is busy with looking
