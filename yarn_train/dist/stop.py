"""Requests to stop: SIGTERM, SIGUSR1 (a scheduler's warning), SIGINT (Ctrl-C), run.max_hours. Never imports torch.

While steps are taken a request is noted, and the loop saves a checkpoint after the step at hand; anywhere else, and at
the second request, it interrupts at once. The time limit is met: while steps are taken it asks early enough.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..errors import RanksLost
from . import environment
from .failure import explained

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # exit code: stopped on request, the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit code of Ctrl-C, as shells have it
TOGETHER = 1.0  # seconds within which several signals are one request: schedulers may send more than one kind
# What is noted when time is up. Below every signal of SIGNALS: of the numbers that ranks noted the largest counts.
TIME_UP = 1
# Seconds before the limit from which on a rank that lost the others takes them to have left for it: machines do not
# start a run in the same second.
APART = 30.0


class StopRequested(KeyboardInterrupt):
    """Somebody, or the time limit, asked this process to stop.

    Attributes:
        signal: the signal that asked; None for the time limit.
        step: the step whose checkpoint was saved for it; None outside of training.
    """

    def __init__(self, number: int, step: int | None = None, max_hours: float | None = None):
        self.signal, self.step = None if number == TIME_UP else signal.Signals(number), step
        by = self.signal.name if self.signal else f"run.max_hours={max_hours}"
        saved = "" if step is None else f" after step {step}, which is saved"
        super().__init__(f"stopped by {by}{saved}")

    @property
    def exit_code(self) -> int:
        """What the whole job exits with."""
        return INTERRUPTED if self.signal == signal.SIGINT else STOPPED


class Requests:
    """This process's stop requests; there is one, as signal handlers are the process's.

    Attributes:
        noted: the signal that was deferred; 0 without one.
        max_hours: the time limit of the job at hand; None without one.
    """

    def __init__(self) -> None:
        self.noted = 0
        self.max_hours: float | None = None
        self._since = -math.inf
        self._deferred = False
        self._began: float | None = None  # monotonic, as the next two
        self._limit = math.inf
        self._turn = math.inf  # when the step at hand began
        self._longest_step = 0.0

    def job_begins(self) -> None:
        """Count ``run.max_hours`` from now on: the process, or the next job of a multirun, begins."""
        self._began = time.monotonic()

    @contextmanager
    def limited(self, max_hours: float | None) -> Iterator[None]:
        """Inside, a time limit counts from the job's beginning (from now on where nobody said when that was).

        Raises:
            StopRequested: time is up outside of :meth:`deferred`.
        """
        if max_hours is None:
            yield
            return
        began = time.monotonic() if self._began is None else self._began
        self.max_hours, self._limit = max_hours, began + max_hours * 3600
        try:
            with _alarm(self._limit, self._on_time_up):
                yield
        except Exception as error:
            if time.monotonic() > began + max_hours * 3600 - APART and isinstance(explained(error), RanksLost):
                raise self.answer(TIME_UP) from error  # they left for the same limit
            raise
        finally:
            self.max_hours, self._limit = None, math.inf

    def answer(self, number: int, step: int | None = None) -> StopRequested:
        """What a noted request is answered with; see :class:`StopRequested`. Time that is up is no request any more."""
        self._limit = math.inf
        return StopRequested(number, step, self.max_hours)

    def after_step(self, save_seconds: float = 0.0) -> int:
        """What was asked until now, to be called once per step: a signal's number, ``TIME_UP``, or 0.

        Args:
            save_seconds: of the longest save so far. Time is up when a step and a save, each as long as the longest one
                so far, would end after the limit.
        """
        now = time.monotonic()
        self._longest_step, self._turn = max(self._longest_step, now - self._turn), now
        if self.noted:
            return self.noted
        return TIME_UP if now + self._longest_step + save_seconds > self._limit else 0

    def watch(self) -> None:
        """Handle the signals from now on; a SIGINT that is ignored (a background job's) stays ignored."""
        file = environment.exit_file()
        if file is not None:  # left by workers that the agent stopped before it started these
            file.unlink(missing_ok=True)
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals in the main thread only
        for number in SIGNALS:
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        asked = environment.stop_file()
        if asked is not None and asked.exists():  # before this process could hear
            raise StopRequested(signal.SIGUSR1)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first request sets :attr:`noted` (the signal's number) instead of interrupting."""
        self._deferred, self.noted = True, 0
        self._turn, self._longest_step = time.monotonic(), 0.0
        try:
            yield
            late = self.noted or (TIME_UP if time.monotonic() > self._limit else 0)
        finally:
            self._deferred, self.noted = False, 0
        if late:
            raise self.answer(late)

    def hear(self, number: int) -> None:
        """Take a signal that another thread has waited for as if it had come to the main one, while deferred."""
        if self.noted:
            os.kill(os.getpid(), signal.SIGTERM)  # only the main thread can be interrupted
        else:
            self._on_signal(number, None)

    def _on_time_up(self) -> None:
        # after_step() says it while steps are taken, earlier than this; on the way out it was answered.
        if not self._deferred and self._limit < math.inf:
            raise self.answer(TIME_UP)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._since < TOGETHER:
            return
        self._since = now
        if self.noted or not self._deferred:
            raise StopRequested(number)
        self.noted = number
        if environment.rank() == 0 and environment.launcher_pid() is None:  # a launcher of ours says it
            name = signal.Signals(number).name
            # os.write: print() fails when the signal comes in the middle of another print()
            os.write(2, f"{name}: saving after this step; a second signal stops at once\n".encode())


requests = Requests()


@contextmanager
def _alarm(when: float, call: Callable[[], None]) -> Iterator[None]:
    """Inside, `call` runs in the main thread at `when` (monotonic), between two of its instructions; it may raise.

    By a thread that sends SIGALRM, as the process's only timer may be somebody else's, whose alarms go on to them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGALRM)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= when:
            call()
        elif callable(before):
            before(number, frame)

    signal.signal(signal.SIGALRM, on_alarm)
    timer = threading.Timer(when - time.monotonic(), os.kill, (os.getpid(), signal.SIGALRM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # no alarm comes after the handler is gone
        signal.signal(signal.SIGALRM, before)


def ignore_from_now_on() -> None:
    """For a process that leaves already: a further request must not cut that short."""
    if threading.current_thread() is threading.main_thread():
        for number in (*SIGNALS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)


def worker_exit_code(code: int) -> int:
    """What this process exits with when the whole job is to exit with ``code`` after a request to stop.

    Torch's elastic agent takes any code but 0 for a failure, which it reports and may answer with a restart. A launcher
    of ours that stands above it therefore gets the code through a file.
    """
    file = environment.exit_file()
    if file is None:
        return code
    _write(file, f"{code}\n")
    return 0


def leave_error_code(code: int, message: str = "") -> None:
    """Tell a launcher of ours the exit code of a user error, of which torch's elastic agent makes 1.

    ``launch/torchrun.sh`` reads it; in a file of its own: ranks that start later than the one that failed remove the
    other one. The message goes along, for logs that cannot hold it.
    """
    file = environment.exit_file()
    if file is not None and code != 1 and message:  # first: the launcher acts on the other one
        _write(file.with_name(f"{file.name}.told"), f"error: {message}\n")
    if file is not None and code != 1:  # what the agent says anyway; ranks that lost this one must not hide its code
        _write(file.with_name(f"{file.name}.error"), f"{code}\n")


def _write(file: Path, text: str) -> None:
    """All of it or nothing for whoever reads now: several ranks say the same, and a restarted worker says the same again while the launcher reads."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(file)


def stop_code(file: Path) -> int:
    """The exit code that workers left for their launcher; 0 where they were not asked to stop."""
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text else 0
