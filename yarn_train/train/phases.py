"""Seconds that a start of a run spends on what it is for: data, training, evaluation. The rest is overhead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Adds up the seconds of this process's run; there is one, as a process has one run at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def begin(self) -> None:
        """Count from zero: another run begins."""
        self.seconds = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Inside, time counts for `phase`: prepare, train (steps and checkpoints) or evaluate."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began


phases = Phases()
