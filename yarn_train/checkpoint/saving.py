"""Writing one checkpoint: aside, then renamed, then marked COMPLETE; all ranks succeed or all learn who failed and why.

Everything here may run in a thread beside training: it computes nothing with tensors and talks to other ranks over a
group of its own.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StorageError
from . import ranks, rng, safetensors_file
from .complete import (
    ALMOST,
    COMPLETE,
    Complete,
    complete_checkpoints,
    finish,
    step_of,
    unfinished_checkpoints,
)
from .index import INDEX, Index, tensor_file
from .safetensors_file import Sealed
from .state import FILE as STATE
from .state import TrainState

Parts = Iterable[bytes | memoryview]
HELP = "Free space or mend the storage, and"


class SaveFailed(Exception):
    """A rank could not write; the same on all of them."""


@dataclass(frozen=True)
class Kept:
    """Which complete checkpoints stay: the newest `newest`, and steps that are multiples of `every`."""

    newest: int
    every: int | None

    def for_good(self, step: int) -> bool:
        """Whether a checkpoint of this step stays whatever comes after it."""
        return self.every is not None and step % self.every == 0

    def beyond(self, complete: Sequence[Path]) -> list[Path]:
        """Of complete checkpoints, oldest first, those that go."""
        return [path for path in complete[: -self.newest] if not self.for_good(step_of(path))]


@dataclass
class Save:
    """One checkpoint on its way to the disk, as one rank writes it.

    Attributes:
        folder: of the stage's checkpoints.
        files: contents of this rank's files, by name.
        nbytes: of all of them together.
        index: what the whole checkpoint holds.
        exchange: gives every rank's value to every rank.
        began: when training stopped for it, by time.perf_counter().
        stall: seconds that training stood still for it; None while it does.
    """

    folder: Path
    rank: int
    files: Mapping[str, Parts]
    nbytes: int
    index: Index
    state: TrainState
    keep: Kept
    exchange: Callable[[Any], list[Any]]
    say: Callable[[str], None]
    began: float
    stall: float | None = None

    @property
    def final(self) -> Path:
        """Where it is going to lie."""
        return self.folder / f"step_{self.state.step:08d}"

    @property
    def aside(self) -> Path:
        """Where it is written: a name that no reader looks at."""
        return self.folder / f".{self.final.name}.incomplete"

    def run(self) -> None:
        """Write and publish it; collective.

        Raises:
            StorageError: a rank could not; nothing of this checkpoint is left. The same on every rank.
        """
        started = time.perf_counter()
        try:
            self._together(self._prepare)
            wrote = self._together(self._write)
            self._together(lambda: self._publish(wrote))
        except SaveFailed as error:
            self._clear()
            raise StorageError(str(error)) from error
        if self.rank == 0:
            size = sum(sealed.bytes for _, files in wrote for sealed in files.values())
            now = time.perf_counter()
            stall = now - self.began if self.stall is None else self.stall
            self.say(
                f"checkpoint {self.final.name}: {as_text(size)}, written in {now - started:.1f} s, "
                f"training stood still for {stall:.1f} s"
            )

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """What `work` gave on every rank; if it failed on any, all raise the first one's error."""
        result, failure, bug = None, None, None
        try:
            result = work()
        except OSError as error:
            failure = self._told(error)
        except SaveFailed as error:
            failure = str(error)
        except Exception as error:
            bug, failure = error, f"rank {self.rank} on {platform.node()} failed: {type(error).__name__}: {error}"
        answers = self.exchange((result, failure, self._goes_on() if failure else ""))
        if bug is not None:
            raise bug
        for _, failed, goes_on in answers:
            if failed:
                raise SaveFailed(f"checkpoint {self.final.name} was not saved: {failed}\n{goes_on}")
        return [answer for answer, _, _ in answers]

    def _told(self, error: OSError) -> str:
        free = "unknown"
        with suppress(OSError):
            free = as_text(shutil.disk_usage(self.folder).free)
        where = f" {error.filename}" if error.filename else ""
        return (
            f"rank {self.rank} on {platform.node()} could not write{where}: {error.strerror or error} "
            f"(its part of the checkpoint: {as_text(self.nbytes)}; free there: {free})"
        )

    def _goes_on(self) -> str:
        with suppress(OSError):
            if found := complete_checkpoints(self.folder):
                return f"The newest good checkpoint is {found[-1]}. {HELP} the same command goes on from it."
        return f"No checkpoint was complete before. {HELP} the same command starts this stage anew."

    def _prepare(self) -> None:
        if self.rank == 0:
            remove_leftovers(self.folder)
            self.aside.mkdir(parents=True)

    def _write(self) -> tuple[str, dict[str, Sealed]]:
        self.aside.mkdir(parents=True, exist_ok=True)
        written = {name: safetensors_file.write(self.aside / name, parts) for name, parts in self.files.items()}
        safetensors_file.fsync(self.aside)
        return platform.node(), written

    def _publish(self, wrote: Sequence[tuple[str, Mapping[str, Sealed]]]) -> None:
        if self.rank:
            return
        self._refuse_unseen(wrote)
        files = {name: sealed for _, found in wrote for name, sealed in found.items()}
        files[INDEX] = safetensors_file.write(self.aside / INDEX, [self.index.text().encode()])
        with safetensors_file.named(self.aside / STATE):
            self.state.save(self.aside)
        safetensors_file.fsync(self.aside / STATE)
        files[STATE] = safetensors_file.read_sealed(self.aside / STATE)
        complete = Complete.now(self.state.step, len(wrote), files)
        safetensors_file.write(self.aside / ALMOST, [complete.text().encode()])
        safetensors_file.fsync(self.aside)
        if self.final.exists():  # a save of this step that is not used
            self.final.rename(self.folder / f".{self.final.name}.old.incomplete")
        self.aside.rename(self.final)
        safetensors_file.fsync(self.folder)
        finish(self.final)
        self._prune()

    def _refuse_unseen(self, wrote: Sequence[tuple[str, Mapping[str, Sealed]]]) -> None:
        """What other ranks say they wrote must be here, or their machines write to other storage."""
        deadline = time.monotonic() + ranks.SHARED_WITHIN
        for rank, (host, files) in enumerate(wrote):
            for name, sealed in files.items():
                while not _has(self.aside / name, sealed.bytes):
                    if time.monotonic() > deadline:
                        raise SaveFailed(
                            f"rank {rank} on {host} wrote {name}, which rank 0 on {platform.node()} does not see in "
                            f"{self.aside}: run.dir must be on storage that all machines share"
                        )
                    time.sleep(0.1)
                    os.listdir(self.aside)  # makes network storage look again

    def _prune(self) -> None:
        """Remove what is not kept any more. That it fails harms no checkpoint."""
        try:
            remove_old(self.folder, self.keep)
        except OSError as error:
            self.say(f"old checkpoints could not be removed: {error}")

    def _clear(self) -> None:
        """After a failure, give back the space that this checkpoint took."""
        if self.rank == 0:
            with suppress(OSError):
                if not (self.final / COMPLETE).exists():
                    self.final.rename(self.aside)  # half deleted it must not look like one that lost its marker
            shutil.rmtree(self.aside, ignore_errors=True)


def this_ranks_files(rank: int, tensors: Parts) -> dict[str, Parts]:
    """Contents of the files that a rank writes: its tensors, and its random-number states as they are now."""
    states = sorted(rng.capture().items(), key=lambda item: (-item[1].itemsize, item[0]))
    head = safetensors_file.header([(n, safetensors_file.CODES[t.dtype], t.numel()) for n, t in states])
    parts: list[bytes | memoryview] = [head, *(safetensors_file.raw(tensor) for _, tensor in states)]
    return {tensor_file(rank): tensors, rng.file_of(rank): parts}


def remove_old(folder: Path, keep: Kept) -> list[str]:
    """Remove complete checkpoints that are not kept, and leftovers; returns the names of the first.

    A folder without COMPLETE is a leftover once a newer checkpoint is complete.
    """
    complete = complete_checkpoints(folder)
    old, newest = keep.beyond(complete), step_of(complete[-1]) if complete else 0
    dead = [path for path in unfinished_checkpoints(folder) if step_of(path) < newest]
    for path in [*old, *(path for path in dead if not keep.for_good(step_of(path)))]:
        path.rename(folder / f".{path.name}.old.incomplete")  # half deleted it must not count as complete
    remove_leftovers(folder)
    return [path.name for path in old]


def remove_leftovers(folder: Path) -> None:
    """Remove folders aside below `folder`: of saves that died or failed, and of checkpoints renamed to be deleted."""
    for leftover in leftovers(folder):
        shutil.rmtree(leftover)


def leftovers(folder: Path) -> list[Path]:
    """Folders that no reader looks at: of saves that are under way or died, and of checkpoints that half are gone."""
    return list(folder.glob(".step_*.incomplete"))


def as_text(count: float) -> str:
    """Bytes as people read them: 1.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
