"""What a rank says when it fails: losing the others, or the storage, is told apart from failing by itself.

Never imports torch.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import re
import shutil
import stat
from pathlib import Path

from ..errors import RanksLost, StorageError, YarnTrainError
from . import environment
from .heartbeat import heartbeat

TORCH = {"DistNetworkError", "DistStoreError", "DistBackendError"}
# How gloo words a peer that is gone or silent; its errors are plain RuntimeErrors.
GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
ADVICE = (
    "Either another rank failed first, and its own error is the cause, or the network between the machines did "
    "(python -m yarn_train.doctor --nodes finds the machine). The same command goes on from the newest checkpoint."
)
WHILE_MEETING = (
    "Not all ranks came within launch.timeout: another one failed first, and its own error is the cause, or it still "
    "prepares data (run data/prepare.py before, on storage that all machines share), or the network does not let it "
    "(python -m yarn_train.doctor --nodes finds the machine)."
)
LOST = "lost contact with other ranks"
STORAGE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EROFS: "make the storage writable",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
    errno.EIO: "look after the disk (dmesg) or the file server",
    errno.ESTALE: "look after the file server",
}
# How libraries in Rust (safetensors, tokenizers) word the system's errors, and Python's text of one inside another's.
NUMBERS = re.compile(r"os error (\d+)|Os \{ code: (\d+)|\[[Ee]rrno (\d+)\]")


def explained(error: Exception, advice: str = ADVICE) -> Exception:
    """`error`, or what it means where it says that other ranks did not answer, or that the storage failed."""
    if isinstance(error, YarnTrainError):
        return error
    text = str(error).strip()
    network = any(cls.__name__ in TORCH for cls in type(error).__mro__)
    if network or (isinstance(error, RuntimeError) and any(mark in text for mark in GLOO)):
        return _ranks_lost(text.splitlines()[0] if text else type(error).__name__, advice)
    return storage_error(error) or error


def after_others(interrupt: KeyboardInterrupt) -> RanksLost | None:
    """What a stop means that torch's agent asked for because another rank had failed; None for anybody else's."""
    first = heartbeat.first_failure()
    return RanksLost(f"{_here()} {LOST}: {interrupt or 'interrupted'}\n{first}") if first else None


def _ranks_lost(detail: str, advice: str) -> RanksLost:
    first = heartbeat.first_failure()
    why = f"{first}\nThe same command goes on from the newest checkpoint." if first else advice
    return RanksLost(f"{_here()} {LOST}: {detail}\n{why}")


def storage_error(error: Exception, place: Path | None = None, need: int = 0) -> StorageError | None:
    """What an error of the file system means; None where it is another one.

    Args:
        place: what was written, for errors that do not say it (those of writing, and of libraries in Rust).
        need: its bytes; 0 where nobody knows.
    """
    number = _errno(error)
    if number not in STORAGE:
        return None
    name = getattr(error, "filename", None) or place
    known = Path(str(name)) if name else heartbeat.run_folder()
    facts = [f"it needs {need / 1e6:,.1f} MB"] if need else []
    facts += [_about(known, number)] if known else []
    what = name or (f"{known}, in phase {heartbeat.phase}" if known else "the storage")
    more = f" ({', '.join(facts)})" if facts else ""
    return StorageError(
        f"{_here()} could not use {what}: {os.strerror(number)}{more}\n"
        f"Complete checkpoints are intact: {STORAGE[number]}, and the same command goes on from the newest one."
    )


def _about(path: Path, number: int) -> str:
    """What explains an error there: how much is free, or whose it is."""
    try:
        there = existing(path)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return f"{shutil.disk_usage(there).free / 1e6:,.1f} MB free there"
        return whose(there)
    except OSError:
        return "it cannot be looked at"


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # a file system that knows none


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(place for place in [path.absolute(), *path.absolute().parents] if place.exists())


def whose(path: Path) -> str:
    """Owner and mode of a file or folder, and who this process is."""
    found = path.stat()
    return f"{path} belongs to {_user(found.st_uid)}, {stat.filemode(found.st_mode)}; this is {_user(os.geteuid())}"


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} ({number})"
    except KeyError:  # as in containers
        return f"user {number}"


def _errno(error: BaseException | None) -> int:
    """The system's number of an error, of its cause, or in its text; 0 without one."""
    if error is None:
        return 0
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = NUMBERS.search(str(error))
    return int(next(filter(None, found.groups()))) if found else _errno(error.__cause__)


def _here() -> str:
    return f"rank {environment.rank()} on {platform.node()}"
