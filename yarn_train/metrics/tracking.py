"""The trackers of a run: made once on the main process, over all stages and the evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .background import Background
from .tracked import TrackedStage
from .tracker import Tracker


class Trackers:
    """All trackers of a run; none of their failures gets out of here. Without trackers, nothing happens.

    Args:
        stages: all stages of the run, in order.
        trackers: not opened yet; each is, in a thread of its own.
        say: prints a line for the user.
    """

    def __init__(
        self, stages: Sequence[TrackedStage] = (), trackers: Sequence[Tracker] = (), say: Callable[[str], None] = print
    ):
        self._stages = {stage.folder.name: stage for stage in stages}
        self._all = [Background(tracker, stages, say) for tracker in trackers]

    def stage(self, name: str, step: int) -> StageRows:
        """What gets the rows of a stage that goes on after ``step``; its metrics.jsonl ends there by now."""
        stage = self._stages.get(name)
        if stage is not None:
            for one in self._all:
                one.begin(stage.number, step)
        return StageRows(self._all, stage.steps_before if stage is not None else 0)

    def evaluation(self, path: Path) -> None:
        """Pass on the rows of ``eval/perplexity.json``; none where it cannot be read."""
        rows: list[dict[str, Any]] = []
        with suppress(OSError, ValueError):
            rows = json.loads(path.read_text(encoding="utf-8"))
        for one in self._all if rows else ():
            one.evaluation(rows)

    def model(self, folder: Path) -> None:
        """Pass on the run's final model."""
        for one in self._all:
            one.model(folder)

    def close(self, ending: str) -> float:
        """End all of them; returns the seconds that were waited for.

        Args:
            ending: COMPLETE, STOPPED or FAILED of :mod:`.tracker`.
        """
        began = time.monotonic()
        for one in self._all:
            one.end(ending)
        for one in self._all:
            one.wait()
        self._all = []
        return time.monotonic() - began


class StageRows:
    """The sink of a stage's rows: they are in metrics.jsonl, and trackers are told so."""

    def __init__(self, trackers: Sequence[Background], steps_before: int):
        self._trackers, self._before = trackers, steps_before

    def write(self, row: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.wake(self._before + row["step"])

    def close(self) -> None:
        """Trackers live until the run ends."""
