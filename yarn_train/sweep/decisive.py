"""Which options decide what a job's result is: jobs compare, and finished ones count, as long as these are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..free_options import FREE_ON_RESUME

IDLE = ("hydra", "launch", "plan", "profile", "tracking")


def decides(option: str) -> bool:
    """Whether an option can change what a job's result is; a section or group counts as all that is in it."""
    return option not in FREE_ON_RESUME and option.partition(".")[0] not in IDLE


def options_sha256(options: Mapping[str, Any]) -> str:
    """Digest of the options that decide a job's result."""
    kept = {
        f"{section}.{key}": value
        for section, values in options.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
        if decides(f"{section}.{key}")
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
