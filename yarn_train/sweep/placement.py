"""Which GPUs of this machine a job gets, or how many CPU threads: several jobs, of several sweeps, share a machine.

A GPU is held through an flock'ed file, one folder per machine and user. The kernel lets go of it when its process is
gone, however that ended, so nothing is ever left held. Jobs take turns: only the one whose turn it is looks for GPUs,
and it takes all it needs at once or none, so neither can two wait for each other nor can small jobs keep a large one
waiting for good.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..dist import environment
from ..errors import ConfigError, problem
from .gpus import LIMIT, Device, present

INTERVAL = 1.0  # seconds between two looks
Say = Callable[[str], None]


@dataclass(frozen=True)
class Placement:
    """Where a job runs.

    Attributes:
        devices: its GPUs by their numbers (a slice by its id); empty on a CPU.
        environment: variables for the job's processes, on top of this process's own.
    """

    devices: tuple[str, ...]
    environment: dict[str, str]


class GivenUp(Exception):
    """Somebody waits no longer for GPUs."""


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def placed(
    gpus: int, at_once: int, say: Say = _print, give_up: Callable[[], bool] = lambda: False
) -> Iterator[Placement]:
    """Hold what a job needs while it runs; waits for GPUs as long as too few are free.

    Args:
        gpus: workers of the job on this machine, each of which needs a GPU of its own where there are any; 0 for a job
            that uses none.
        at_once: jobs of the sweep that run on this machine at once: without GPUs they share its cores.
        say: called with one line when the job has to wait.
        give_up: whether to wait no longer.

    Raises:
        GivenUp: `give_up` said so.
        ConfigError: more GPUs than there are, or nobody can be kept from taking the same ones.
    """
    there = _present() if gpus else []
    if not there:
        yield Placement((), _threads(max(1, gpus), at_once))
        return
    _check_count(gpus, there)
    with ExitStack() as held:
        taken = _take(gpus, held, say, give_up)
        # by id: CUDA may number GPUs otherwise than nvidia-smi
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(device.uuid for device in taken)}
        yield Placement(tuple(device.name for device in taken), chosen)


def _threads(workers: int, at_once: int) -> dict[str, str]:
    """A share of the cores; a job that is alone computes as it would without a sweep."""
    if at_once <= 1 or environment.threads_chosen():
        return {}
    return {"OMP_NUM_THREADS": str(max(1, environment.usable_cores() // (at_once * workers)))}


def _present() -> list[Device]:
    try:
        return present()
    except subprocess.TimeoutExpired as error:
        fix = "nvidia-smi must work: look at dmesg; sudo nvidia-smi -pm 1 makes it answer faster"
        raise ConfigError(problem("GPUs", f"no answer of nvidia-smi in {LIMIT:g} s", "an answer", fix)) from error


def _check_count(gpus: int, there: list[Device]) -> None:
    if gpus > len(there):
        chosen = environment.visible_gpus()
        because = "" if chosen is None else f", by CUDA_VISIBLE_DEVICES={','.join(chosen)}"
        allowed = f"<= {len(there)} (GPUs of this machine{because})"
        raise ConfigError(problem("launch.nproc_per_node", gpus, allowed, "ask for fewer; each worker needs its own"))


def _take(count: int, held: ExitStack, say: Say, give_up: Callable[[], bool]) -> list[Device]:
    """`count` free GPUs, held by `held`."""
    folder = lock_folder()
    told: set[str] = set()

    def once(text: str) -> None:
        if not told:
            say(text)
        told.add(text)

    def wait() -> None:
        if give_up():
            raise GivenUp
        time.sleep(INTERVAL)

    with _my_turn(folder / f"{platform.node() or 'machine'}.turn", once, wait):
        while True:
            try:
                there = present()
            except subprocess.TimeoutExpired:  # it did answer, so it will again
                once("waiting for an answer of nvidia-smi")
                wait()
                continue
            _check_count(count, there)
            taken, why = _try(count, there, folder, held)
            if len(taken) == count:
                return taken
            once(f"waiting for {count} free GPU{'s' if count > 1 else ''}, {len(taken)} now: {why}")
            wait()


def _try(count: int, there: list[Device], folder: Path, held: ExitStack) -> tuple[list[Device], str]:
    """(free GPUs, held only where they are `count`; who has the others)."""
    taken: list[Device] = []
    others: list[str] = []
    with ExitStack() as tried:
        for device in there:
            if len(taken) == count:
                break
            if device.used_by:
                others.append(f"{device.name}: {device.used_by}")
            elif (descriptor := _lock(folder / device.uuid, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
                others.append(f"{device.name}: another job of a sweep")
            else:
                tried.callback(os.close, descriptor)
                taken.append(device)
        if len(taken) == count:
            held.push(tried.pop_all())
    return taken, "; ".join(others)


@contextmanager
def _my_turn(path: Path, say: Say, wait: Callable[[], None]) -> Iterator[None]:
    descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        say("waiting for GPUs: another job of a sweep waits for them already")
        while descriptor is None:
            wait()
            descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, how: int) -> int | None:
    """Descriptor of the locked file, closed in the processes that this one starts; None where somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not one that was cleaned away meanwhile
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock_folder() -> Path:
    """The user's folder of locks on this machine.

    Raises:
        ConfigError: it cannot be made, or somebody else made it.
    """
    folder = Path(tempfile.gettempdir()) / f"yarn-train-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = os.lstat(folder).st_uid
    except OSError as error:
        fix = "set TMPDIR to a folder that you can write, the same for all sweeps on this machine"
        raise ConfigError(problem("TMPDIR", f"{folder}: {error}", "a place for locks", fix)) from error
    if folder.is_symlink() or owner != os.getuid():
        fix = f"remove {folder}, or set TMPDIR to a folder of yours, the same for all sweeps on this machine"
        raise ConfigError(problem("TMPDIR", f"{folder} of another user", "a folder that is yours alone", fix))
    folder.chmod(0o700)
    return folder
