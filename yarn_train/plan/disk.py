"""Before weights load: refuse a run whose checkpoints and models will not fit the disk, or that may not write there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from ..checkpoint.complete import complete_checkpoints, step_of
from ..checkpoint.saving import Kept, as_text, leftovers
from ..config import Config, parts_of
from ..data.local import list_files
from ..data.manifest import MANIFEST
from ..data.store import find_parts
from ..dist.failure import existing, storage_error
from ..errors import ConfigError, DataError
from ..stages import Stage
from .estimate import export_bytes
from .memory import checkpoint_bytes
from .sizes import Sizes

DATA_CACHE = Path("data/cache")  # where data.cache=null prepares
PREPARED = 2.0  # bytes that preparing takes of a byte of text: ids of all documents, and then the segments of them


@dataclass(frozen=True)
class Stored:
    """What a stage leaves on the disk: `kept` checkpoints of so many bytes, and a model.

    Attributes:
        beside: checkpoints that are there on top of them while one is written.
    """

    name: str
    checkpoint: float
    export: float
    kept: int
    beside: int

    @classmethod
    def of(cls, name: str, cfg: Config, checkpoint: float, export: float) -> Stored:
        """As ``checkpoint.*`` and ``train.steps`` say."""
        keep, saved = cfg.checkpoint, saves(cfg)

        def kept(steps: Sequence[int]) -> int:
            multiples = [step for step in steps[: -keep.keep] if keep.keep_every and step % keep.keep_every == 0]
            return len(steps[-keep.keep :]) + len(multiples)

        return cls(name, checkpoint, export, kept(saved), kept(saved[:-1]) + 1 - kept(saved))

    def __str__(self) -> str:
        beside = f" and {self.beside} being written" if self.beside else ""
        return (
            f"{self.name}: {self.kept} checkpoints{beside} of {as_text(self.checkpoint)}, model {as_text(self.export)}"
        )


@dataclass(frozen=True)
class Room:
    """What is needed in a folder, and how that is known."""

    folder: Path
    needed: float
    what: str


def at_most(stages: Iterable[Stored]) -> tuple[float, float]:
    """(bytes at the end of all stages, bytes when it is fullest); one stage comes after the other."""
    total, most = 0.0, 0.0
    for stage in stages:
        most = max(most, total + (stage.kept + stage.beside) * stage.checkpoint)
        total += stage.kept * stage.checkpoint + stage.export
        most = max(most, total)
    return total, most


def check_disk(stages: Sequence[Stage], base: PretrainedConfig, folder: Path) -> str:
    """A line about the room that a run needs, or its refusal, as ``plan.check`` says. Writes nothing that stays.

    For one rank to call: the answer depends on the machine only in what else fills its disks.

    Raises:
        ConfigError: with plan.check=refuse, a file system has less room than the run will need there.
        StorageError: the run folder cannot be written.
    """
    unfinished = [stage for stage in stages if not stage.finished]
    for place in [folder, *(stage.folder / "checkpoints" for stage in unfinished)]:
        check_writable(place)
    mode = stages[0].cfg.plan.check
    if mode == "off":
        return "disk: not checked (plan.check=off)"
    by_system: dict[int, list[Room]] = defaultdict(list)
    for room in [run_room(unfinished, base, folder), *data_rooms([stage for stage in unfinished if stage.trains])]:
        by_system[existing(room.folder).stat().st_dev].append(room)
    lines, short = [], []
    for rooms in by_system.values():
        needed, there = sum(room.needed for room in rooms), existing(rooms[0].folder)
        free = shutil.disk_usage(there).free
        if needed > free:
            short.append(_short(rooms, needed, free, there))
        lines.append(f"at most {as_text(needed)} more of {as_text(free)} free at {there}")
    if short and mode == "refuse":
        raise ConfigError(short)
    return "\n".join(f"WARNING: {line}" for line in short) or f"disk: {'; '.join(lines)}"


def _short(rooms: Sequence[Room], needed: float, free: float, there: Path) -> str:
    got = f"{as_text(needed)} still to be written and {as_text(free)} free at {there} ("
    got += "; ".join(room.what for room in rooms) + ")"
    fix = (
        "free some space, or another run.dir; checkpoint.keep=1, a larger checkpoint.keep_every and "
        "checkpoint.export_dtype=bfloat16 need less; plan.check=warn starts it anyway"
    )
    return f"disk: {got}; allowed: no more than is free; fix: {fix}"


def saves(cfg: Config) -> list[int]:
    """Steps after which a stage is saved."""
    every, last = cfg.checkpoint.every, cfg.train.steps
    return [*range(every, last, every), last] if last else []


def run_room(unfinished: Sequence[Stage], base: PretrainedConfig, folder: Path) -> Room:
    """How much more than now is used when the stages that are not finished use most."""
    sizes = Sizes.of(base)
    stored, most, now, found = [], 0.0, 0.0, 0.0
    for stage in unfinished:
        one = Stored.of(stage.name, stage.cfg, checkpoint_bytes(stage.cfg, sizes), export_bytes(stage.cfg, sizes))
        stored.append(one)
        checkpoints = stage.folder / "checkpoints"
        there = {step_of(path): bytes_of(path) for path in complete_checkpoints(checkpoints)}
        found += sum(there.values())
        now -= sum(map(bytes_of, leftovers(checkpoints)))
        for change in changes(there, stage.cfg, one.checkpoint, one.export):
            now += change
            most = max(most, now)
    what = "; ".join(map(str, stored)) + (f"; {as_text(found)} of them are there" if found else "")
    return Room(folder, most, what)


def changes(there: Mapping[int, float], cfg: Config, checkpoint: float, export: float) -> Iterator[float]:
    """Bytes that a stage adds and gives back, one after the other, from a start that finds complete checkpoints.

    Args:
        there: bytes of those, by step. The start removes what is not kept of them once the newest is loaded, and each
            save what is not kept when the new one is complete.
    """
    keep = Kept(cfg.checkpoint.keep, cfg.checkpoint.keep_every)
    recent = deque(sorted(there.items()))
    yield from _removed(recent, keep)
    newest = max(there, default=0)
    for step in saves(cfg):
        if step > newest:
            yield checkpoint
            recent.append((step, checkpoint))
            yield from _removed(recent, keep)
    yield export


def _removed(recent: deque[tuple[int, float]], keep: Kept) -> Iterator[float]:
    """What goes when only the newest are kept; those kept for good leave `recent` as well."""
    while len(recent) > keep.newest:
        step, size = recent.popleft()
        yield 0.0 if keep.for_good(step) else -size


def data_rooms(stages: Sequence[Stage]) -> Iterator[Room]:
    """What preparing local data takes, roughly; of data sets on the hub nobody here knows the size."""
    seen = []
    for stage in stages:
        for part in parts_of(stage.cfg.data):
            path = part.data.path
            if path is None or not Path(path).exists() or part.data in seen or is_prepared(stage.cfg):
                continue
            seen.append(part.data)
            with_ids = PREPARED * source_bytes(path)
            cache = Path(stage.cfg.data.cache or DATA_CACHE)
            yield Room(cache, with_ids, f"{as_text(with_ids)} to prepare {path} in {cache}, roughly")


def is_prepared(cfg: Config) -> bool:
    """Whether the training data is ready to be read."""
    if cfg.data.cache and (Path(cfg.data.cache) / MANIFEST).exists():
        return True
    try:
        return bool(find_parts(cfg.data, cfg.model.path))
    except DataError:
        return False


def source_bytes(path: str) -> float:
    """Bytes of the files that would be read of a local source."""
    try:
        listing = list_files(path)
    except DataError:
        return 0.0
    names = [name for names in (listing.splits.values() if listing else ()) for name in names]
    return float(sum((listing.root / name).stat().st_size for name in names if listing))


def bytes_of(checkpoint: Path) -> float:
    """Bytes of the files of a checkpoint."""
    return float(sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file()))


def check_writable(folder: Path) -> None:
    """Really write into `folder`, or where it is going to be made.

    Raises:
        StorageError: with whose it is.
    """
    there = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(there)
        raise storage_error(error) or error from error
