"""The file that makes a checkpoint one, and whether what it promises is there. Works without other ranks.

COMPLETE is JSON: the format, the step, the number of ranks that wrote it, when, and bytes and sha256 of every other
file. What it says is hashed in its last entry. A folder gets its final name with the marker inside as .COMPLETE, and
that is renamed last. So of a folder with a final name: COMPLETE is a checkpoint; .COMPLETE is one whose save died in
its last instant; neither of them is one that lost its marker.

Bytes that are wrong, or not there, are damage. Storage that could not be read says nothing about them: StorageError.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ..dist import environment
from ..errors import CheckpointError, StorageError
from . import safetensors_file
from .safetensors_file import Sealed

COMPLETE = "COMPLETE"
ALMOST = f".{COMPLETE}"  # its name until the save's last rename
LOST, UNFINISHED = "lost", "unfinished"
FORMAT = 1
AGAIN = 1.0  # seconds until storage that failed is read once more
NAME = re.compile(r"step_(\d{8,})")
WRONG = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # what these say is about what is there
Result = TypeVar("Result")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Damaged(Exception):
    """What is wrong with a COMPLETE that cannot be used."""


@dataclass(frozen=True)
class Complete:
    """What COMPLETE says.

    Attributes:
        saved: when, in UTC.
        files: every other file of the folder, by its name.
    """

    step: int
    world_size: int
    saved: str
    files: Mapping[str, Sealed]

    @classmethod
    def now(cls, step: int, world_size: int, files: Mapping[str, Sealed]) -> Complete:
        """Of a checkpoint whose last file was written just now."""
        return cls(step, world_size, datetime.now(UTC).isoformat(timespec="seconds"), files)

    def text(self) -> str:
        """The file."""
        content = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "saved": self.saved,
            "files": {name: asdict(sealed) for name, sealed in sorted(self.files.items())},
        }
        return json.dumps({**content, "sha256": _hashed(content)}, indent=1) + "\n"

    @classmethod
    def load(cls, checkpoint: Path, marker: str = COMPLETE) -> Complete:
        """Read it back.

        Args:
            marker: COMPLETE or ALMOST.

        Raises:
            Damaged: it is missing, was changed, or names a file outside of the folder.
            CheckpointError: it is of a format that is not known here.
            StorageError: it could not be read.
        """
        path = checkpoint / marker
        try:
            content = json.loads(persistent(path.read_bytes, path).decode())
            if content.pop("sha256") != _hashed(content):
                raise Damaged(f"{COMPLETE} is not what was written (its sha256 differs)")
            if content["format"] != FORMAT:
                raise CheckpointError(
                    f"{checkpoint} was written by a newer yarn-train (format {content['format']}; this one reads "
                    f"{FORMAT}): go on with that version; nothing was changed"
                )
            files = {str(name): Sealed(**sealed) for name, sealed in content["files"].items()}
            found = cls(int(content["step"]), int(content["world_size"]), str(content["saved"]), files)
        except WRONG as error:
            raise Damaged(f"{COMPLETE} is missing or no file") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{COMPLETE} is not what was written ({type(error).__name__})") from error
        outside = [name for name in files if not _PLAIN.fullmatch(name) or name == COMPLETE]
        if outside:
            raise Damaged(f"{COMPLETE} names {outside[0]!r}, which is no file of this folder")
        return found


def _hashed(content: Mapping[str, Any]) -> str:
    """Of what it says, however that is laid out: all formats have this in common."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def persistent(read: Callable[[], Result], path: Path) -> Result:
    """What `read` gives, tried once more where the storage failed.

    Raises:
        OSError: one of WRONG.
        StorageError: `path` could not be read.
    """
    for last in (False, True):
        try:
            return read()
        except WRONG:
            raise
        except OSError as error:
            if last:
                raise StorageError(
                    f"rank {environment.rank()} on {platform.node()} could not read {error.filename or path}: "
                    f"{error.strerror or error} (errno {error.errno})\n"
                    "Whether the checkpoint is intact is not known, and nothing was changed. "
                    "Look after the storage: the same command tries again."
                ) from error
        time.sleep(AGAIN)
    raise AssertionError("both tries neither gave nor raised anything")


def complete_checkpoints(folder: Path) -> list[Path]:
    """Folders that were completed below `folder`, oldest first; whether they still are intact is not looked at."""
    return sorted((path for path in _steps(folder) if (path / COMPLETE).is_file()), key=step_of)


def unfinished_checkpoints(folder: Path) -> list[Path]:
    """Folders of checkpoints without COMPLETE: a save died, or the file was lost."""
    return sorted((path for path in _steps(folder) if not (path / COMPLETE).is_file()), key=step_of)


def standing(checkpoint: Path) -> str:
    """COMPLETE, ALMOST, LOST or UNFINISHED: which marker a folder with a final name has, or had.

    Raises:
        OSError: it cannot be looked at.
    """
    if (checkpoint / COMPLETE).is_file():
        return COMPLETE
    if (checkpoint / ALMOST).is_file():
        return ALMOST
    return LOST if any(path.is_file() for path in checkpoint.iterdir()) else UNFINISHED


def standings(folder: Path) -> list[tuple[str, str]]:
    """(name, :func:`standing`) of every folder with a checkpoint's name, oldest first.

    Raises:
        StorageError: they could not be looked at.
    """
    steps = persistent(lambda: sorted(_steps(folder), key=step_of), folder)
    return [(path.name, persistent(lambda path=path: standing(path), path)) for path in steps]  # type: ignore[misc]


def finish(checkpoint: Path) -> None:
    """The last rename of a save that died right before it.

    Raises:
        OSError: the storage cannot be written.
    """
    (checkpoint / ALMOST).rename(checkpoint / COMPLETE)
    safetensors_file.fsync(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved, by its name."""
    found = NAME.fullmatch(checkpoint.name)
    if found is None:
        raise ValueError(f"{checkpoint.name} is no name of a checkpoint")
    return int(found[1])


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]


def dealt(files: Mapping[str, Sealed], ranks: int) -> list[list[tuple[str, Sealed]]]:
    """Which rank reads which files: about as many bytes each."""
    shares: list[list[tuple[str, Sealed]]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name, sealed in sorted(files.items(), key=lambda item: (-item[1].bytes, item[0])):
        least = min(range(ranks), key=lambda rank: loads[rank])
        shares[least].append((name, sealed))
        loads[least] += sealed.bytes
    return shares


def file_problems(checkpoint: Path, files: Iterable[tuple[str, Sealed]], patience: float = 0.0) -> list[str]:
    """What is wrong with these files of a checkpoint; reads all of them.

    Args:
        patience: seconds until what this machine does not see yet is missing.

    Raises:
        StorageError: one could not be read.
    """
    deadline = time.monotonic() + patience
    found = []
    for name, sealed in files:
        path = checkpoint / name
        wait_for(path, deadline)
        try:
            problem = persistent(lambda path=path, sealed=sealed: _file_problem(path, sealed), path)  # type: ignore[misc]
        except FileNotFoundError:
            problem = f"{name} is missing"
        except WRONG:
            problem = f"{name} is no file"
        found += [problem] if problem else []
    return found


def wait_for(path: Path, deadline: float) -> bool:
    """Whether `path` is there before `deadline`, a monotonic time; network storage remembers what was not there."""
    while not os.path.lexists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(path.parent)  # makes network storage look again
    return True


def _file_problem(path: Path, sealed: Sealed) -> str | None:
    size = os.stat(path).st_size
    if size != sealed.bytes:
        return f"{path.name} has {size:,} bytes instead of {sealed.bytes:,}"
    if safetensors_file.read_sealed(path) != sealed:
        return f"{path.name}: its sha256 differs from what was written"
    return None


def problems_of(checkpoint: Path) -> list[str]:
    """Everything that is wrong with a checkpoint, one line each; empty when it is exactly what was written.

    Raises:
        CheckpointError: it is of a format that is not known here.
        StorageError: it could not be read.
    """
    try:
        files = Complete.load(checkpoint).files
    except Damaged as error:
        return [str(error)]
    return file_problems(checkpoint, sorted(files.items()))
