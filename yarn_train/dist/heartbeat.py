"""What this rank is doing, for whoever wonders why nothing happens. Never imports torch.

``at`` is called wherever the work changes its kind; it only notes, so it costs nothing. While a run is watched, one
thread writes the note to a file and another one says when it does not change: storage that hangs takes the first along
and not the second. Nothing of this ever ends a run.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..redact import redacted
from . import environment
from .others import FOLDER, behind, file_of, first_failure, place, remove_others
from .whereabouts import main_thread

INTERVAL = 1.0  # seconds between two writings
LAST = 2.0  # seconds that the last one waits for one under way
RANKS = 64  # of more ranks, each writes less often: together they ask the storage for so many files per second


class Heartbeat:
    """This process's progress; there is one, as a process is one rank.

    Attributes:
        step: steps done so far in the stage; None outside of training.
        phase: kind of work at hand: start | load | data | forward | optimizer | save | evaluate | export ...
        since: monotonic time at which it began.
        folder: of the heartbeat files, of the run that is or was watched last.
        began: when watching it began, in seconds since the epoch.
        together: whether all ranks of this start have met. Until then rank 0 alone knows that the run folder is theirs,
            and the others leave it alone: a run that goes on in it keeps its heartbeats.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.phase = "start"
        self.since = time.monotonic()
        self.folder: Path | None = None
        self.began = 0.0
        self.together = True

    def at(self, phase: str, step: int | None = None) -> None:
        """Note that work of another kind, or the next piece of it, begins now."""
        self.phase, self.step, self.since = phase, step, time.monotonic()

    @contextmanager
    def watched(self, folder: Path, stall_after: float, nccl: bool = False, together: bool = True) -> Iterator[None]:
        """Inside, a thread writes ``folder/heartbeat/rank<R>.json`` and another one says when there is no progress.

        The file stays when the run ends, with the reason in ``ended``: of a rank that was killed it has none.

        Args:
            stall_after: seconds.
            nccl: whether ranks exchange through NCCL, which records what it does.
            together: whether the ranks have met already; else :attr:`together` is set once they have.
        """
        self.folder, self.began, self.together = folder / FOLDER, time.time(), together
        if environment.rank() == 0:
            remove_others(self.folder)
        done = threading.Event()
        writer = threading.Thread(target=self._write_until, args=[done], name="heartbeat", daemon=True)
        watcher = threading.Thread(target=self._watch_until, args=[done, stall_after, nccl], name="stalls", daemon=True)
        writer.start()
        watcher.start()
        ended = "done"
        try:
            yield
        except BaseException as error:
            first = redacted(str(error).strip().partition("\n")[0], environment.secrets())
            ended = f"{type(error).__name__}: {first}" if first else type(error).__name__
            raise
        finally:
            done.set()
            writer.join(LAST)
            self._write(ended)

    def _write_until(self, done: threading.Event) -> None:
        interval = max(INTERVAL, environment.world_size() / RANKS)
        if self.folder is not None and environment.rank() == 0:
            with suppress(OSError):  # here and never again: a folder that is deleted in mid-run must stay away
                self.folder.mkdir(parents=True, exist_ok=True)
        self._write(None)
        while not done.wait(interval):
            self._write(None)

    def _write(self, ended: str | None) -> None:
        if self.folder is None or not (self.together or environment.rank() == 0):
            return
        path = file_of(self.folder, environment.rank())
        aside = path.with_name(f".{path.name}.{threading.get_ident()}")
        try:
            aside.write_text(json.dumps({**self.state(), "ended": ended}, indent=1) + "\n")
            os.replace(aside, path)
        except OSError:  # a full disk is the business of what has to be written
            with suppress(OSError):
                aside.unlink()

    def run_folder(self) -> Path | None:
        """The folder of the watched run; None where none is or was watched."""
        return self.folder.parent if self.folder else None

    def first_failure(self) -> str:
        """Which rank of the watched run failed before this one lost the others; empty where nobody knows."""
        return first_failure(self.folder, self.state(), self.began) if self.folder and self.together else ""

    def state(self) -> dict[str, Any]:
        """What the file says: seconds since the epoch, and who, where and doing what."""
        return {
            "time": time.time(),
            "step": self.step,
            "phase": self.phase,
            "seconds_in_phase": round(time.monotonic() - self.since, 1),
            "host": platform.node(),
            "pid": os.getpid(),
            "rank": environment.rank(),
            "world_size": environment.world_size(),
        }

    def _watch_until(self, done: threading.Event, stall_after: float, nccl: bool) -> None:
        limit, stalled = stall_after, self.since
        while not done.wait(min(INTERVAL, stall_after / 4)):
            since = self.since
            if limit > stall_after and since != stalled:
                say(f"goes on after {since - stalled:.0f} s, at {place(self.step, self.phase)}")
                limit = stall_after
            seconds = time.monotonic() - since
            if seconds >= limit:
                limit, stalled = 2 * limit, since
                say(f"stalled for {seconds:.0f} s at {place(self.step, self.phase)}; {main_thread()}")
                self._look_around()
                if nccl and limit == 2 * stall_after and environment.rank() == 0:
                    say_where_it_is_recorded()

    def _look_around(self) -> None:
        """On rank 0: who is behind."""
        folder = self.folder
        if environment.rank() or folder is None or not self.together:
            return
        for line in behind(folder, self.state()):
            say(line)


def say_where_it_is_recorded() -> None:
    """How to find out which rank did not come to a collective."""
    recorder = environment.flight_recorder()
    if recorder:
        say(
            f"{recorder}<rank> has the last collectives of each rank once launch.timeout is over: "
            f"python -m torch.distributed.flight_recorder.fr_trace -p {Path(recorder).name} {Path(recorder).parent}"
        )


def say(text: str) -> None:
    """A line on stderr that names this rank; lost where stderr is."""
    with suppress(OSError, ValueError):
        print(f"[rank {environment.rank()} on {platform.node()}] {text}", file=sys.stderr, flush=True)


heartbeat = Heartbeat()
