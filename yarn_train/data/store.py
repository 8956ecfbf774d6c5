"""Prepared data on disk: a ``datasets`` folder of packed segments and a ``manifest.json`` that says what it is.

Two steps. Documents are tokenised into units (``spool``), by any number of processes and machines, in any order, with
any number of interruptions. When all units are there, one process packs their documents in the job's order. A folder is
written aside and renamed, so one that has its name is complete. No process group is needed, so no collective can time
out meanwhile: processes that want the same folder share the units out among themselves through file locks.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..config import DataConfig, MixturePart, parts_of
from ..errors import DataError, problem
from .build import build_packed, build_rows
from .fill import fill
from .job import Job
from .progress import Counter, Update
from .spool import Spool, plan_units
from .stream import Part
from .tokenize import cutting

ALREADY = "already prepared, nothing to do"
Say = Callable[[str], None]
Shard = tuple[int, int]  # number, of how many
log = logging.getLogger(__name__)


def prepare_parts(
    data: DataConfig,
    tokenizer_path: str,
    *,
    split: str = "train",
    workers: int = 0,
    shard: Shard | None = None,
    resumed: bool = False,
    progress: Update | None = None,
    root: Path | None = None,
    say: Say = log.info,
) -> list[Part]:
    """Make sure that every source of the training data is prepared; see :func:`prepare`.

    Returns:
        One part per source of a mixture, else a single one; without those whose other shards are not done yet. With
        ``data.cache`` the parts of a mixture are folders below it.
    """
    found = []
    for part, cache in _caches(data):
        folder = prepare(
            part.data,
            tokenizer_path,
            split=split,
            cache=cache,
            workers=workers,
            shard=shard,
            resumed=resumed,
            progress=progress,
            root=root,
            say=say,
        )
        found += [] if folder is None else [Part(part.name, part.weight, folder)]
    return found


def prepare(
    data: DataConfig,
    tokenizer_path: str,
    *,
    split: str = "train",
    cache: str | None = None,
    workers: int = 0,
    shard: Shard | None = None,
    resumed: bool = False,
    progress: Update | None = None,
    root: Path | None = None,
    say: Say = log.info,
) -> Path | None:
    """Make sure that the prepared folder of one source exists and return it; does nothing if it does.

    The bytes depend on neither ``workers`` nor ``shard``, nor on how often and where earlier attempts were interrupted.

    Args:
        tokenizer_path: local folder or hub id.
        cache: the folder; None chooses one below ``<root>/data/cache`` by content. A named folder that is ready is
            compared with the source where that is here, and used without it elsewhere, so it can be copied.
        workers: processes that tokenise; 0 is one per core.
        shard: (i, n): tokenise only every n-th unit of work; whoever finds all units done packs them.
        resumed: for a run whose checkpoint names its data by content: a named folder may then be of a source that has
            changed since.
        progress: called after every document.
        root: the repository; None is the current folder.
        say: called with one line when there was nothing to do, or to do here.

    Returns:
        The folder; None if other shards are not done.

    Raises:
        DataError: if the source or tokenizer is unusable, there is less than one segment, or ``cache`` names a folder
            that is half-written or holds something else.
    """
    job = Job(data, split, str(tokenizer_path))
    folder, content = _locate(job, cache, root)
    named = cache is not None
    if shard is not None and data.source == "pretokenized":
        fix = "leave it out: there is nothing to tokenise"
        raise DataError(problem("shard", f"{shard[0]}/{shard[1]}", "none for data.source=pretokenized", fix))
    if job.ready(folder, named):
        if named and not resumed:
            job.check_source(folder)
        _clear_away(folder)
        say(f"{ALREADY}: {folder}")
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if data.source == "pretokenized":
            return _from_rows(folder, job, named, say)
        return _from_documents(folder, job, named, content or job.content(), workers, shard, progress, say)
    except OSError as error:
        if job.ready(folder, named):  # another process finished, and cleared away what this one was looking at
            return folder
        got = f"{type(error).__name__}: {error}"
        kept = _spool_folder(folder)
        fix = f"give it room and permission; what is tokenised stays in {kept}" if kept.exists() else "choose another"
        raise DataError(problem(f"data.cache={folder}", got, "a folder that can be written", fix)) from error


def find_parts(data: DataConfig, tokenizer_path: str, *, split: str = "train", root: Path | None = None) -> list[Part]:
    """The folders that :func:`prepare_parts` made; makes nothing.

    Raises:
        DataError: if one is missing or holds something else.
    """
    found = []
    for part, cache in _caches(data):
        job = Job(part.data, split, str(tokenizer_path))
        folder, _ = _locate(job, cache, root)
        if not job.ready(folder, cache is not None):
            fix = "run data/prepare.py with the same options first"
            raise DataError(problem("data.cache", f"nothing at {folder}", "a prepared folder", fix))
        if cache is not None:
            job.check_source(folder)
        found.append(Part(part.name, part.weight, folder))
    return found


def _caches(data: DataConfig) -> list[tuple[MixturePart, str | None]]:
    """The sources of the training data, and the folder that ``data.cache`` names for each."""
    below = data.cache is not None and data.source == "mixture"
    return [(part, str(Path(data.cache or "") / part.name) if below else data.cache) for part in parts_of(data)]


def _locate(job: Job, cache: str | None, root: Path | None) -> tuple[Path, dict[str, Any] | None]:
    """The job's folder, and its content where the folder is chosen by it."""
    if cache is not None:
        return Path(cache), None
    content = job.content()
    return job.default_folder((root or Path.cwd()) / "data" / "cache", content), content


def _from_documents(
    folder: Path,
    job: Job,
    named: bool,
    content: dict[str, Any],
    workers: int,
    shard: Shard | None,
    progress: Update | None,
    say: Say,
) -> Path | None:
    units = plan_units(job.listed.sizes())
    spool = Spool(_spool_folder(folder), units, job.dtype, content)
    say(cutting(job.tokenizer))
    mine = range(len(units)) if shard is None else range(shard[0] % shard[1], len(units), shard[1])
    counter = Counter(progress)
    while True:
        fill(job, spool, mine, workers, counter, lambda: job.ready(folder, named))
        with _lock(folder, say):
            if job.ready(folder, named):  # made by another
                break
            done = [number for number in range(len(units)) if spool.done(number)]
            if len(done) < len(units) and len(mine) < len(units):
                of = "" if shard is None else f"{shard[0]}/{shard[1]}"
                say(f"shard {of}: done; {len(done)} of {len(units)} units are there, the last shard packs them")
                return None
            intact = [number for number in done if spool.intact(number)]
            if len(intact) == len(units):
                _write(folder, lambda aside: build_packed(aside, job, spool, content))
                break
        # another process may have found them first, and be at work on them
        say(f"{len(units) - len(intact)} of {len(units)} units are damaged and are tokenised again")
        mine = range(len(units))
    _clear_away(folder)
    return folder


def _spool_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


def _clear_away(folder: Path) -> None:
    """Remove the units of a folder that is ready; a process that died between the two could not."""
    if _spool_folder(folder).exists():
        shutil.rmtree(_spool_folder(folder), ignore_errors=True)


def _from_rows(folder: Path, job: Job, named: bool, say: Say) -> Path:
    rows = job.rows
    with _lock(folder, say):
        if not job.ready(folder, named):
            _write(folder, lambda aside: build_rows(aside, job, rows))
    return folder


@contextmanager
def _lock(folder: Path, say: Say) -> Iterator[None]:
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"waiting for another process that is writing {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, build: Callable[[Path], None]) -> None:
    """Let ``build`` write aside, then rename. The caller holds the lock."""
    # whoever wrote these held the lock before us, so it is dead
    for leftover in folder.parent.glob(f"{folder.name}.incomplete-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = folder.with_name(f"{folder.name}.incomplete-{platform.node()}-{os.getpid()}")
    aside.mkdir()
    try:
        build(aside)
        if folder.exists():
            shutil.rmtree(folder)  # empty, or without a manifest below data/cache
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
