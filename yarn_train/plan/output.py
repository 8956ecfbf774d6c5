"""The plan as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StorageError, problem

OURS = {"gpu", "stages"}  # of every plan that was written


def write_plan(path: str, data: Mapping[str, Any]) -> None:
    """Write a plan as JSON, over an earlier plan at most.

    Raises:
        ConfigError: there is something else at `path`.
        StorageError: it cannot be written.
    """
    file = Path(path)
    if file.exists() and not _is_plan(file):
        fix = "name another file; nothing was overwritten"
        raise ConfigError(problem("plan.output", path, "a new file, or an earlier plan", fix))
    try:
        file.write_text(json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise StorageError(problem("plan.output", path, "a file that can be written", str(error))) from error


def _is_plan(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= OURS
