"""Files of a run folder as plain values; what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a sweep has hundreds of files; Python's own is 10x slower


def unreadable(path: Path, what: str, error: object) -> DataError:
    """The error of a file that is not `what` it should be."""
    got = " ".join(str(error).split())  # parsers explain themselves over several lines
    return DataError(f"{path}: got {got}; allowed: {what}; fix: repair the file, or move it away to report without it")


def json_file(path: Path, kind: type) -> Any:
    """A JSON list or object, None where there is no file.

    Raises:
        DataError: it is something else.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "JSON", error) from error
    if not isinstance(value, kind):
        raise unreadable(path, f"a JSON {'list' if kind is list else 'object'}", type(value).__name__)
    return value


def yaml_file(path: Path) -> dict[str, Any]:
    """A YAML mapping, empty where there is no file or another value; DataError as :func:`json_file`."""
    if not path.is_file():
        return {}
    try:
        value = LOADER(path.read_text(encoding="utf-8")).get_single_data()  # what yaml.safe_load does
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unreadable(path, "YAML", error) from error
    return value if isinstance(value, dict) else {}
