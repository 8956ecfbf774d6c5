"""Which options differ between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import defaults

NAMES = ("run.name", "run.dir")  # of the folder: they differ between any two runs


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as ``{"rope.alpha": 1.0}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def differing(configs: Sequence[Mapping[str, Any] | None]) -> dict[str, list[Any]]:
    """Option -> its value in every run, of those options that are not the same in all; None for a run without one.

    Runs that have no configuration are left out of the comparison. An option that a folder is too old to have had its
    default's effect.
    """
    default = flat(defaults())
    rows = [default | flat(config) if config else {} for config in configs]
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in NAMES]
    found = {}
    for key in keys:
        if len({_same(row.get(key)) for row in rows if row}) > 1:
            found[key] = [row.get(key) for row in rows]
    return found


def common(configs: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Options that all runs with a configuration share."""
    rows = [flat(defaults()) | flat(config) for config in configs if config]
    differ = differing(configs)
    return {key: value for key, value in (rows[0] if rows else {}).items() if key not in differ and key not in NAMES}


def _same(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are one value
    return json.dumps(value, sort_keys=True, default=str)
