"""Data sets in the local file system: which files there are, of which kind and split, and opening their tables."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, problem
from .convert import Tables, convert, failed
from .inside import escapes
from .json_rows import convert_json
from .splits import by_file_name, utf8

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
}
SAVED = "saved"  # a folder of Dataset.save_to_disk
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")  # of json and csv
NOT_DATA = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
READABLE = "files *.parquet, *.arrow, *.jsonl, *.json or *.csv (also *.gz, *.zst), or *.txt with one document each"
SAMPLED = 2**16  # bytes hashed at either end of a file


@dataclass(frozen=True)
class Listing:
    """Files of one kind below ``root`` by split, each a path with ``/``."""

    root: Path
    kind: str
    splits: dict[str, list[str]]


def list_files(path: str) -> Listing | None:
    """Find the data files of a folder, a file or a pattern such as ``books/*.jsonl``; None if nothing has that name.

    Of a folder with several kinds of files, those of the most frequent kind are data, as ``datasets`` does it; a
    ``metadata.csv`` beside books is none. Hidden files and folders and those in ``__folders__`` are not looked at;
    links are followed, but no folder is entered twice.

    Raises:
        DataError: if there is no file of a known kind, one has a name that is not UTF-8, or their splits are not clear.
    """
    given = Path(path)
    if given.is_file():
        kind = _most_frequent([given.name], path)
        return Listing(given.parent, kind, {"train": utf8([given.name])})  # train, whatever its name
    if given.is_dir():
        if _is_saved(given):
            return Listing(given, SAVED, {"train": [n for n in _walk(given) if n.endswith(".arrow")]})
        return _by_kind(given, _walk(given), path)
    if glob.has_magic(path):
        root = Path(*_without_pattern(given))
        matched = sorted(Path(p).relative_to(root).as_posix() for p in glob.glob(path, recursive=True))
        return _by_kind(root, [n for n in matched if (root / n).is_file()], path)
    return None


def kind_of(name: str) -> str | None:
    """How a file is read, by its ending: a value of KINDS, or None."""
    name = name.rsplit("/", 1)[-1]
    if name in NOT_DATA:
        return None
    stem, ending = os.path.splitext(name.lower())
    if ending in COMPRESSIONS:
        kind = KINDS.get(os.path.splitext(stem)[1])
        return kind if kind in ("json", "csv") else None
    return KINDS.get(ending)


def open_local(listing: Listing, path: str, column: str) -> Tables:
    """Open the tables of a listing, through the Arrow cache of ``datasets``.

    ``identity`` has one SHA-256 over every file's name below the folder, its size, and the first and last 64 KiB of
    it (of parquet that is the footer with the sizes of all compressed pages): hashing 11 GB whole at every start would
    take longer than the start. It does not depend on where the folder is.

    Raises:
        DataError: if a file is corrupt, or has no column ``column``.
    """
    content, version = fingerprints(listing, path)
    identity = {"files_sha256": content}
    if listing.kind == SAVED:
        return Tables(_load_saved(listing.root, path), identity)
    if listing.kind == "parquet":
        _check_parquet(listing, path, column)
    if listing.kind == "json":
        files = {split: [listing.root / name for name in names] for split, names in listing.splits.items()}
        return Tables(convert_json(path, files, column, version), identity)
    where = {s: [glob.escape(str((listing.root / n).absolute())) for n in ns] for s, ns in listing.splits.items()}
    return Tables(convert(path, listing.kind, data_files=where), identity)


def missing_column(path: str, column: str, there: list[str]) -> DataError:
    """The error for a table without the column that is asked for."""
    fix = "set data.column" if column != "input_ids" else "use data.source=text for a column of texts"
    return DataError(problem("data.column", column, f"a column of {path}: {', '.join(there)}", fix))


def _walk(root: Path) -> list[str]:
    names, entered = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(s for s in subfolders if not s.startswith((".", "__")))
        below = Path(folder).relative_to(root)
        names += [(below / f).as_posix() for f in files if not f.startswith((".", "__"))]
    return sorted(names)


def _without_pattern(path: Path) -> list[str]:
    parts = list(path.parts[:-1])
    return parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))]


def _by_kind(root: Path, names: list[str], path: str) -> Listing:
    kind = _most_frequent(names, path)
    return Listing(root, kind, by_file_name(utf8([n for n in names if kind_of(n) == kind])))


def _most_frequent(names: list[str], path: str) -> str:
    counts = Counter(kind for name in names if (kind := kind_of(name)))
    if not counts:
        raise DataError(problem("data.path", path, READABLE, f"it has {len(names)} files and none like these"))
    ranks = list(KINDS.values())
    return max(counts, key=lambda k: (counts[k], -ranks.index(k)))


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _load_saved(folder: Path, path: str) -> dict[str, object]:
    from datasets import DatasetDict, load_from_disk

    try:
        if outside := escapes(folder):
            raise ValueError(f"it names {outside[0]!r}, which is no file of this folder")
        opened = load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder makes datasets or Arrow raise
        raise failed(path, error) from error
    return {str(k): v for k, v in opened.items()} if isinstance(opened, DatasetDict) else {"train": opened}


def _check_parquet(listing: Listing, path: str, column: str) -> None:
    """Read every footer first: it names a damaged file and a missing column before gigabytes are converted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in (name for names in listing.splits.values() for name in names):
        try:
            there = pq.read_schema(listing.root / name).names
        except (OSError, pa.ArrowException) as error:
            raise failed(path, error, name) from error
        if column not in there:
            raise missing_column(name, column, there)


def fingerprints(listing: Listing, path: str) -> tuple[str, str]:
    """(SHA-256 of the files, equal wherever copies of them are; SHA-256 that also changes whenever one is written).

    The second is for conversions on this machine: a change in the middle of a large file shows in its time alone.
    """
    content, version = hashlib.sha256(), hashlib.sha256()
    for name in sorted(name for names in listing.splits.values() for name in names):
        try:
            with open(listing.root / name, "rb") as file:
                state = os.fstat(file.fileno())
                sample = hashlib.sha256(file.read(SAMPLED))
                file.seek(max(0, state.st_size - SAMPLED))
                sample.update(file.read(SAMPLED))
        except OSError as error:
            raise failed(path, error, name) from error
        content.update(json.dumps([name, state.st_size, sample.hexdigest()]).encode())
        version.update(json.dumps([name, state.st_size, sample.hexdigest(), state.st_mtime_ns]).encode())
    return content.hexdigest(), version.hexdigest()
