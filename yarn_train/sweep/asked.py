"""A sweep that is asked to stop tells the processes that look after its jobs, on this machine or on others.

By a file in the sweep's folder: launchers start those processes in their own ways, and not all hear a signal.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE = ".stop"
INTERVAL = 0.2  # seconds between two looks


def asked(folder: Path) -> int:
    """The signal that the sweep was asked to stop with, 0 without one."""
    try:
        return int((folder / FILE).read_text())
    except (OSError, ValueError):
        return 0


@contextmanager
def passed_on(folder: Path, noted: Callable[[], int]) -> Iterator[None]:
    """Inside, a signal that `noted` returns is passed on to the sweep's jobs; one of an earlier start is forgotten."""
    (folder / FILE).unlink(missing_ok=True)
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(folder / FILE, noted, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        with suppress(OSError):
            (folder / FILE).unlink(missing_ok=True)


def _tell(file: Path, noted: Callable[[], int], over: threading.Event) -> None:
    while not over.wait(INTERVAL):
        if number := noted():
            aside = file.with_name(f"{file.name}.{os.getpid()}.incomplete")
            aside.write_text(str(number))
            os.replace(aside, file)
            return


@contextmanager
def ctrl_c_for_this_process_alone(hear: Callable[[int], None]) -> Iterator[None]:
    """Inside, processes that are started do not get the terminal's Ctrl-C: `hear` does, in another thread.

    They inherit that it is blocked, which unlike a handler survives their start. Those of submitit would end, and their
    jobs with them, before a checkpoint is saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(hear, over), daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(hear: Callable[[int], None], over: threading.Event) -> None:
    while not over.is_set():
        if signal.sigtimedwait({signal.SIGINT}, INTERVAL) is not None:
            hear(signal.SIGINT)
