"""A tracker in a thread of its own: that it fails, hangs or is slow is no matter of training.

The thread reads the rows from metrics.jsonl, so there is nothing to queue: one that is behind has more to read, and
loses none. Training only says that there is something new.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .tracked import Rows, TrackedStage
from .tracker import COMPLETE, Tracker

BATCH = 100  # steps that a tracker is given at once, at most
LONGEST = 120.0  # seconds that the end of a run waits for a tracker that makes progress
WHEN_STOPPED = 10.0  # seconds that it waits where the run is to leave: schedulers kill what does not

Say = Callable[[str], None]
Call = Callable[[Tracker], object]


class Background:
    """Feeds one tracker from the stages' metrics.jsonl until :meth:`close`, or until it fails.

    Args:
        say: prints a line for the user; called in the thread too.
    """

    def __init__(self, tracker: Tracker, stages: Sequence[TrackedStage], say: Say):
        self.tracker, self._say, self._stages = tracker, say, list(stages)
        self._rows = Rows(stages)
        self._resumed: int | None = None
        self._last = self._sent = 0
        self._calls: deque[Call] = deque()
        self._ending: str | None = None
        self._let_go = False
        self._finished = False
        self._progress = time.monotonic()
        self._news = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def begin(self, number: int, step: int) -> None:
        """Stage ``number`` (from 1) goes on after its own step ``step``; nothing is cut off its file from now on."""
        if self._resumed is None:
            self._resumed = self._stages[number - 1].steps_before + step
        self._rows.begin(number)
        self._news.set()

    def wake(self, step: int) -> None:
        """Rows up to step ``step`` of the run are written."""
        self._last = step
        self._news.set()

    def evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand over the results of the evaluation, after all rows."""
        self._calls.append(lambda tracker: tracker.evaluation(self._sent, rows))
        self._news.set()

    def model(self, folder: Path) -> None:
        """Hand over the final model, after all rows."""
        self._calls.append(lambda tracker: tracker.model(folder))
        self._news.set()

    def end(self, ending: str) -> None:
        """Ask the tracker to end when it has everything.

        Args:
            ending: COMPLETE, STOPPED or FAILED.
        """
        self._progress = time.monotonic()
        self._ending = ending
        self._news.set()

    def wait(self) -> None:
        """After :meth:`end`: wait while the tracker makes progress, no longer than LONGEST; then let it go.

        For a run that did not come to its end, wait for WHEN_STOPPED at most.
        """
        began, ending = time.monotonic(), self._ending or COMPLETE
        try:
            while self._works() and not self._is_late(time.monotonic(), began, ending):
                self._thread.join(0.05)
        finally:  # also when somebody is tired of waiting
            if self._works():
                self._abandon(time.monotonic() - began)

    def _works(self) -> bool:
        return self._thread.is_alive() and not self._finished and self._pid == os.getpid()  # a fork has no such thread

    def _is_late(self, now: float, began: float, ending: str) -> bool:
        patience = self.tracker.patience
        if ending != COMPLETE:
            return now - began > min(WHEN_STOPPED, patience)
        return now - self._progress > patience or now - began > max(LONGEST, patience)

    def _abandon(self, seconds: float) -> None:
        self._let_go = True
        self.tracker.let_go()
        left = self._last - self._sent
        lacks = f"it lacks the last {left:,} steps, which the next start sends" if left > 0 else "it has all"
        self._say(f"{self.tracker.name}: not waited for any longer, after {seconds:.0f} s; {lacks}")

    def _run(self) -> None:
        try:
            self._feed()
        except BaseException as error:  # libraries leave by SystemExit too
            if not self._let_go:
                told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._say(f"{self.tracker.name}: off from here on ({told}); metrics.jsonl has everything")
                self.tracker.let_go()
        finally:
            self._rows.close()
            self._finished = True

    def _feed(self) -> None:
        line = self.tracker.open()
        self._tell(line)
        first = None
        while not self._let_go:
            self._progress = time.monotonic()
            self._news.wait()
            self._news.clear()
            # Before the rows are read: what is handed over while they are sent may belong after rows not read yet.
            ending, due = self._ending, len(self._calls)
            if first is None and (self._resumed is not None or due):
                first = self.tracker.first(self._resumed if self._resumed is not None else self._steps_of_finished())
                self._sent = first - 1
            if first is not None:
                self._pass_on(first)
            for _ in range(due):
                if self._let_go:
                    break
                self._calls.popleft()(self.tracker)
                self._progress = time.monotonic()
            if ending is not None and not self._let_go:
                self._tell(self.tracker.finish(ending))
                return

    def _pass_on(self, first: int) -> None:
        points = (point for point in self._rows.new() if point.step >= first)
        while not self._let_go and (batch := list(itertools.islice(points, BATCH))):
            self.tracker.log(batch)
            self._sent = batch[-1].step
            self._last = max(self._last, self._sent)
            self._progress = time.monotonic()

    def _steps_of_finished(self) -> int:
        """Where a run stands of which no stage is left to train: nothing of it is done again."""
        return max((sum(1 for _ in _lines(stage)) + stage.steps_before for stage in self._stages), default=0)

    def _tell(self, line: str | None) -> None:
        if line and not self._let_go:
            self._say(line)


def _lines(stage: TrackedStage) -> list[bytes]:
    try:
        return (stage.folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
