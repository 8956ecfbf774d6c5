"""The folders that a run writes to: space against what it needs, speed, and whether renames and locks work."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ..finding import FAIL, OK, WARN, Finding

GIB, MIB = 2**30, 2**20
MOST = 256 * MIB  # written as a trial
SHARE = 20  # of the free space, one part in this many at most
BLOCK = 8 * MIB
SECONDS = 3.0  # of writing and of reading
PREFIX = ".yarn-doctor-"
STALE = 3600.0  # seconds after which a trial's folder belongs to nobody: its doctor was killed
LITTLE = 2 * GIB  # free space below which not even the quickstart and its cache are safe
SLOW = 100e6  # bytes/s; one checkpoint of a 7B model then takes 13 minutes
SKEW = 2.0  # seconds between the file server's clock and ours
# Exits 0 when it cannot get the lock that its parent holds, 1 when it gets it all the same.
LOCKS = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(0)
sys.exit(1)
"""


@dataclass(frozen=True)
class Trial:
    """What was tried in a folder.

    Attributes:
        write, read: bytes/s, writing to the device and not to memory; None when not measured.
        renames: whether a file could replace another one; locks: whether a lock kept another process out.
        skew: seconds that the file system's clock is ahead.
        error: why nothing could be written.
    """

    write: float | None = None
    read: float | None = None
    renames: bool = True
    locks: bool = True
    skew: float = 0.0
    error: str = ""


def disk(folder: str, what: str, needed: float = 0.0, speed: bool = True, measured: str = "") -> list[Finding]:
    """One line about the file system that `folder` is or will be on.

    Args:
        needed: bytes that a run will write there.
        speed: also write and read back a few hundred MiB.
        measured: a folder that is measured by somebody else; what is on the same file system is as fast.
    """
    place = existing(Path(folder).absolute())
    if measured and existing(Path(measured).absolute()).stat().st_dev == place.stat().st_dev:
        speed = False
    usage = shutil.disk_usage(place)
    return [judge_disk(what, str(folder), usage.free, usage.total, needed, tried(place, usage.free, speed))]


def hub_cache() -> list[Finding]:
    """The same for the hub's cache, where downloaded models and data sets go; its speed is the network's."""
    from huggingface_hub import constants

    return disk(constants.HF_HUB_CACHE, "hub cache", speed=False)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def tried(place: Path, free: int, speed: bool) -> Trial:
    """Write, read, rename and lock in a folder of its own below `place`, which is removed again."""
    try:
        _tidy(place)
        size = int(min(MOST, free // SHARE)) // BLOCK * BLOCK if speed else 0
        write, read = _speed(place, size) if size else (None, None)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as scratch:
            file = Path(scratch, "trial")
            before = time.time()
            file.write_bytes(b"new")
            skew = file.stat().st_mtime - before
            return Trial(write, read, _renames(Path(scratch), file), _locks(Path(scratch, "lock")), skew)
    except OSError as error:
        return Trial(error=f"{error.strerror or error}")


def _tidy(place: Path) -> None:
    for left in place.glob(f"{PREFIX}*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _speed(place: Path, size: int) -> tuple[float, float | None]:
    """Bytes/s of writing to the device, and of reading back.

    The file has no name, so that it is gone with this process, whatever ends that.
    """
    block, written, begin = memoryview(bytearray(os.urandom(BLOCK))), 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        while written < size and time.perf_counter() - begin < SECONDS:
            # Synced each time, or the time limit would hold for memory only; doubled, so that syncing costs little and
            # the last one takes about as long as all before it.
            until = min(size, max(MIB, 2 * written))
            while written < until:
                written += file.write(block[: until - written])
            os.fsync(file.fileno())
        write = written / (time.perf_counter() - begin)
        if not hasattr(os, "posix_fadvise"):
            return write, None  # it would be memory that is measured
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        seen, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < SECONDS and (part := file.readinto(block)):
            seen += part
        return write, seen / (time.perf_counter() - begin)


def _renames(scratch: Path, new: Path) -> bool:
    """Whether a rename replaces a file and can be made to last (fsync of the folder)."""
    old = scratch / "old"
    old.write_bytes(b"old")
    try:
        os.replace(new, old)
        handle = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        return False
    return old.read_bytes() == b"new" and not new.exists()


def _locks(file: Path) -> bool:
    """Whether another process is kept out of a file that this one has locked."""
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return subprocess.run([sys.executable, "-S", "-c", LOCKS, str(file)], timeout=10).returncode == 0


def judge_disk(what: str, folder: str, free: float, total: float, needed: float, trial: Trial) -> Finding:
    """The worst of what is wrong with a folder."""
    name = f"{what} folder"
    speeds = [
        f"{word} {rate / 1e6:,.0f} MB/s" for word, rate in (("writes", trial.write), ("reads", trial.read)) if rate
    ]
    figure = ", ".join([f"{folder}: {free / GIB:,.1f} of {total / GIB:,.1f} GiB free", *speeds])
    facts = {f"{what}_free": free, f"{what}_write": trial.write, f"{what}_read": trial.read}
    option = {"output": "run.dir=<folder>", "data": "data.cache=<folder>"}.get(what, "export HF_HOME=<folder>")
    if trial.error:
        return Finding(FAIL, name, f"{folder}: {trial.error}", "a run cannot write there", option, facts)
    if needed > free:
        figure += f"; the experiment writes {needed / GIB:,.1f} GiB"
        fix = f"{option} on a larger disk, or checkpoint.keep=1"
        return Finding(FAIL, name, figure, "the run ends with 'No space left on device'", fix, facts)
    if needed:
        figure += f", {needed / GIB:,.1f} needed"
    if not trial.renames:
        means = "a checkpoint that is cut short could look complete"
        return Finding(FAIL, name, f"{figure}; files cannot be renamed and synced", means, option, facts)
    if not trial.locks:
        means = "several processes would prepare the same data at once; one process still works"
        fix = f"mount it with locks (NFS: without nolock; Lustre: -o flock), or {option} elsewhere"
        return Finding(FAIL if what == "data" else WARN, name, f"{figure}; locks do not work", means, fix, facts)
    if free < LITTLE and not needed:
        return Finding(WARN, name, figure, "a checkpoint may not fit", f"free some space, or {option}", facts)
    if abs(trial.skew) > SKEW:
        figure += f"; its clock is {trial.skew:+.0f} s from this machine's"
        return Finding(WARN, name, figure, "logs and make's time stamps mislead", "set the clocks (NTP)", facts)
    if trial.write is not None and trial.write < SLOW:
        means = f"a 7B checkpoint (75 GiB) takes {75 * GIB / trial.write / 60:,.0f} minutes"
        return Finding(WARN, name, figure, means, f"{option} on a faster disk, or checkpoint.every larger", facts)
    return Finding(OK, name, figure, facts=facts)
