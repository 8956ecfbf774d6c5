"""One job of a sweep in a process of its own: what ``python train.py <words>`` does, without the seconds of imports.

It is forked from a server (multiprocessing's) that has imported everything once and done nothing else: no thread pool,
no CUDA, no random number. So a job that crashes, leaks or is killed touches no other.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..dist import environment

SPARED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
IMPORTED = ["yarn_train.cli", "yarn_train.app", "yarn_train.checks.workers", "yarn_train.launch.elastic"]
THREADS = "OMP_NUM_THREADS"
PR_SET_PDEATHSIG = 1  # of prctl(2)


def start(script: Sequence[str], words: Sequence[str], log: Path, variables: dict[str, str]) -> BaseProcess:
    """Start a job.

    Args:
        script: what Python is given to run the program: a file, or ``-m`` and a module.
        words: the job's command line.
        log: gets what it prints, after what is there.
        variables: of its environment, on top of the server's.
    """
    if THREADS in variables:  # OpenMP reads it when the server imports torch, too early for the job to say
        environment.become({THREADS: variables[THREADS]})
    context = multiprocessing.get_context("forkserver")
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own, which a child does not know
    warm()
    process = context.Process(target=_be, args=(list(script), list(words), str(log), variables))
    process.start()
    return process


def warm() -> None:
    """Start the server, unless it runs; it begins to import while this process goes on.

    A scheduler sends its SIGTERM to every process of a job. The server must outlive it, as the kernel kills the jobs
    with it, before they could save: so it starts with these signals ignored.
    """
    from multiprocessing.forkserver import ensure_running, set_forkserver_preload

    set_forkserver_preload(IMPORTED)
    with _ignored():
        ensure_running()


@contextmanager
def _ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SPARED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _be(script: list[str], words: list[str], log: str, variables: dict[str, str]) -> None:
    os.setsid()  # Ctrl-C is for the sweep, which passes it on
    _die_with(os.getppid())
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    # the server ignores these and SIGUSR2, which is between a scheduler and the process that looks after the job
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    _redirect(log)
    environment.become(variables)
    module = script[0] == "-m"
    sys.argv = [script[1] if module else script[0], *words]
    # multiprocessing has imported the sweep's own main module under that name; the program makes its own
    if module:
        runpy.run_module(script[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(script[0]).resolve().parent)
        runpy.run_path(script[0], run_name="__main__")


def _die_with(server: int) -> None:
    """Let the kernel kill this job when the server is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != server:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)


def _outlive_nobody() -> None:
    """End with the process that looks after the job: the server stays as long as one of its jobs does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _redirect(log: str) -> None:
    for source, flags, targets in (
        (os.devnull, os.O_RDONLY, (0,)),
        (log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, (1, 2)),
    ):
        opened = os.open(source, flags, 0o644)
        for target in targets:
            os.dup2(opened, target)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- multiprocessing has closed it
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
