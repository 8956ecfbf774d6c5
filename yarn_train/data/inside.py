"""Folders of ``Dataset.save_to_disk`` name their files in JSON: names that lead out of the folder are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PLAIN = re.compile(r"[^/\\\x00]+")


def is_plain(name: object) -> bool:
    """Whether this is the name of a file in a folder, and not a path to one elsewhere."""
    return isinstance(name, str) and PLAIN.fullmatch(name) is not None and name not in (".", "..")


def escapes(folder: Path) -> list[str]:
    """Names in ``state.json`` or ``dataset_dict.json`` that are no plain files or folders of ``folder``.

    Raises:
        OSError, ValueError: one of the two cannot be read; the second also if it is something else than was written.
    """
    named: list[Any] = []
    below = []
    if (folder / "dataset_dict.json").is_file():
        below = _entries(folder / "dataset_dict.json", "splits")
        named += below
    if (folder / "state.json").is_file():
        entries = _entries(folder / "state.json", "_data_files")
        named += [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
    found = [str(name) for name in named if not is_plain(name)]
    for name in (name for name in below if is_plain(name)):
        found += [f"{name}/{other}" for other in escapes(folder / name)]
    return found


def _entries(file: Path, key: str) -> list[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file.name} is not what was written: {type(error).__name__}") from error
    if not isinstance(found, list):
        raise ValueError(f"{file.name} is not what was written: {key} is no list")
    return found
