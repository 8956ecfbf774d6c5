"""``manifest.json`` of a prepared folder: what it holds, in which order it was made, and the hashes of it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import DataError, problem

MANIFEST = "manifest.json"
FORMAT = 2  # raise when prepared bytes change for the same input
OF_ITSELF = "manifest_sha256"  # the entry that protects all others
TYPES = {
    "format": int,
    "source": str,
    "seq_len": int,
    "documents": int,
    "tokens_in": int,
    "segments": int,
    "remainder": int,
    "content_sha256": str,
    "documents_sha256": str,
    "vocab_size": int,
    "tokens_per_document": dict,
}


def manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataError: if the folder has none, or one that cannot be read or lacks what this version writes.
    """
    file = Path(folder) / MANIFEST
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise broken(folder, f"{file} is missing, so it is half-written or something else") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise broken(folder, f"{file}: {error}") from error
    wrong = [key for key, kind in TYPES.items() if not isinstance(found.get(key), kind)]
    if wrong and found.get("format") == FORMAT:  # an older one is refused by its format
        raise broken(folder, f"{file} has no usable {', '.join(wrong)}")
    return found


def write_manifest(folder: Path, described: dict[str, Any]) -> None:
    """Write ``manifest.json``, and return when the folder's files are on the disk."""
    whole = {**described, OF_ITSELF: digest(described)}
    (folder / MANIFEST).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    for file in [*folder.iterdir(), folder]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(described: dict[str, Any]) -> str:
    """SHA-256 (hex) of all entries but the one that holds it."""
    others = {key: value for key, value in described.items() if key != OF_ITSELF}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def broken(folder: str | Path, why: str) -> DataError:
    """The error of a folder that cannot be used as it is."""
    ours = any((Path(folder) / name).exists() for name in (MANIFEST, "documents.npy", "state.json"))
    fix = "delete it and run data/prepare.py" if ours else "name another folder"
    return DataError(problem("data.cache", str(folder), "a folder that data/prepare.py completed", f"{why}; {fix}"))
