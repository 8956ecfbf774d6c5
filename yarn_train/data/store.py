"""Prepared data on disk: a ``datasets`` folder of packed segments and a ``manifest.json`` that says what it is.

A folder is written aside and renamed, so one that has its name is complete. Any number of processes may ask for the
same folder: the one that gets the file lock prepares it and the others wait on the lock, which the operating system
releases if its holder dies. No process group is needed, so no collective can time out meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import DataError, problem
from .pack import Packer
from .segments import MANIFEST, Segments, SegmentWriter, manifest, open_segments, write_manifest
from .sources import Document, documents
from .tokenize import bracket_ids, id_dtype, load_tokenizer, tokenize_documents, tokenizer_sha256

FORMAT = 1  # raise when prepared bytes change for the same input
ORDER_SEED = 0  # of the order of documents: part of the data, not of the run, so runs of all seeds share one folder

__all__ = ["Segments", "default_folder", "manifest", "open_segments", "prepare", "shuffled"]

Progress = Callable[[int, int, int], None]  # documents done, documents in all, tokens so far
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """Everything that determines a prepared folder, and how to make it."""

    source: str
    path: str | None
    split: str
    held_out: float
    seq_len: int
    tokenizer_path: str
    tokenizer: Any

    def identity(self) -> dict[str, Any]:
        """What a folder must have in its manifest to be the one that was asked for."""
        bos, eos = bracket_ids(self.tokenizer)
        return {
            "format": FORMAT,
            "source": self.source,
            "split": self.split,
            "held_out": self.held_out if "stdlib" in self.source else None,
            "seq_len": self.seq_len,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "bos_token_id": bos,
            "eos_token_id": eos,
            "order_seed": ORDER_SEED,
        }

    def documents(self) -> list[Document]:
        return shuffled(documents(self.source, self.path, self.split, self.held_out), ORDER_SEED)

    def python(self) -> str | None:
        return platform.python_version() if "stdlib" in self.source else None


def prepare(
    source: str,
    path: str | None,
    split: str,
    held_out: float,
    seq_len: int,
    tokenizer_path: str,
    workers: int = 0,
    cache: str | None = None,
    progress: Progress | None = None,
    *,
    root: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> Path:
    """Make sure that a prepared folder exists and return it; does nothing if it does.

    Args:
        source, path, split, held_out: as in :func:`yarn_train.data.sources.documents`.
        seq_len: tokens per segment.
        tokenizer_path: local folder or hub id.
        workers: processes that tokenise; 0 is one per core. The bytes do not depend on it.
        cache: the folder; None chooses one below ``<root>/data/cache`` by content. A named folder that is ready is
            used without looking for the source, so it can be copied to machines that do not have it.
        progress: called after every document with (documents done, documents in all, tokens so far).
        root: the repository; None is the current folder.
        say: called with one line when the folder was ready already, or another process is preparing it.

    Raises:
        DataError: if the source or tokenizer is unusable, there is less than one segment, or ``cache`` names a folder
            that is half-written or holds something else.
    """
    job = _Job(source, path, split, held_out, seq_len, str(tokenizer_path), load_tokenizer(tokenizer_path))
    folder = Path(cache) if cache is not None else default_folder(job, (root or Path.cwd()) / "data" / "cache")
    named = cache is not None
    if not _ready(folder, job, named):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            say(f"waiting for another process that is preparing {folder}")
            lock.acquire()
        try:
            if not _ready(folder, job, named):  # nobody else made it meanwhile
                _build(folder, job, workers, progress)
                return folder
        finally:
            lock.release()
    say(f"already prepared, nothing to do: {folder}")
    return folder


def default_folder(job: _Job, parent: Path) -> Path:
    """A readable name with a hash of everything that determines the content, down to names and sizes of the files."""
    content = {
        **job.identity(),
        "python": job.python(),
        "files": sorted((d.name, d.size()) for d in job.documents()),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return parent / f"{job.source.replace('+', '-')}-{job.split}-{job.seq_len}-{digest[:12]}"


def shuffled(listed: Sequence[Document], seed: int) -> list[Document]:
    """Documents in a pseudo-random order that depends on their names and ``seed`` only, so that sources are mixed."""
    return sorted(listed, key=lambda d: hashlib.sha256(f"{seed}:{d.name}".encode()).digest())


def _ready(folder: Path, job: _Job, named: bool) -> bool:
    """Whether ``folder`` holds what the job asks for; False if it is to be made."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MANIFEST).exists() and not named:
        return False  # below data/cache, which is ours: made anew
    found, wanted = manifest(folder), job.identity()
    different = [key for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise DataError(
            problem(
                f"data.cache={folder}",
                ", ".join(f"{key}={found.get(key)!r}" for key in different),
                "what this run asks for: " + ", ".join(f"{key}={wanted[key]!r}" for key in different),
                "name another folder, leave data.cache out to have one chosen, or ask for what the folder holds",
            )
        )
    return True


def _build(folder: Path, job: _Job, workers: int, progress: Progress | None) -> None:
    """Write the folder aside and rename it. The caller holds the lock."""
    # whoever wrote these held the lock before us, so it is dead
    for leftover in folder.parent.glob(f"{folder.name}.incomplete-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = folder.with_name(f"{folder.name}.incomplete-{os.getpid()}")
    aside.mkdir()
    try:
        described = _write_segments(aside, job, workers, progress)
        write_manifest(aside, described)
        if folder.exists():
            shutil.rmtree(folder)  # empty, or without a manifest below data/cache
        aside.rename(folder)
    except OSError as error:
        raise DataError(problem("data.cache", str(folder), "a folder that can be written", str(error))) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_segments(folder: Path, job: _Job, workers: int, progress: Progress | None) -> dict[str, Any]:
    """Tokenise, pack and write the ``datasets`` files; returns the manifest."""
    listed = job.documents()
    sizes = {d.name: d.size() for d in listed}
    dtype = id_dtype(len(job.tokenizer))
    packer = Packer(job.seq_len)
    digest = hashlib.sha256()
    skipped: list[str] = []
    count = bytes_in = 0
    with SegmentWriter(folder, job.seq_len, dtype) as out:
        for name, ids in tokenize_documents(listed, job.tokenizer_path, workers, skipped):
            block = packer.feed(ids)
            digest.update(block.tobytes())
            out.write(block)
            count, bytes_in = count + 1, bytes_in + sizes[name]
            if progress is not None:
                progress(count + len(skipped), len(listed), packer.tokens_in)
        if packer.segments == 0:
            raise _too_short(job, count, packer.tokens_in)
        out.finish()
    return {
        **job.identity(),
        "documents": count,
        "skipped": len(skipped),
        "skipped_names": skipped,
        "bytes_in": bytes_in,
        "tokens_in": packer.tokens_in,
        "segments": packer.segments,
        "remainder": packer.remainder,
        "content_sha256": digest.hexdigest(),
        "vocab_size": len(job.tokenizer),
        "dtype": dtype.name,
        "python": job.python(),
    }


def _too_short(job: _Job, count: int, tokens: int) -> DataError:
    has = f"at most the {tokens} tokens in the {count} documents of {job.source}, split {job.split}"
    return DataError(problem("data.seq_len", job.seq_len, has, "use shorter segments or more documents"))
