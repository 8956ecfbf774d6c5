"""``manifest.json`` of a prepared folder: what it holds, in which order it was made, and the hashes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import DataError, problem

MANIFEST = "manifest.json"
FORMAT = 2  # raise when prepared bytes change for the same input


def manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataError: if the folder has none, or one that cannot be read.
    """
    file = Path(folder) / MANIFEST
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise broken(folder, f"{file} is missing, so it is half-written or something else") from error
    except (OSError, ValueError, TypeError) as error:
        raise broken(folder, f"{file}: {error}") from error


def write_manifest(folder: Path, described: dict[str, Any]) -> None:
    """Write ``manifest.json``, and return when the folder's files are on the disk."""
    (folder / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for file in [*folder.iterdir(), folder]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def broken(folder: str | Path, why: str) -> DataError:
    """The error of a folder that cannot be used as it is."""
    fix = f"{why}; delete the folder and run data/prepare.py"
    return DataError(problem("data.cache", str(folder), "a folder that data/prepare.py completed", fix))
