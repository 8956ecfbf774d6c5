"""Values as people read them."""

from __future__ import annotations

import math
from typing import Any


def said(value: Any) -> str:
    """An option or a fact in words; lists and mappings on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {said(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ("; " if any(isinstance(item, dict) for item in value) else " ").join(map(said, value))
    if isinstance(value, bool) or value is None:
        return "not stated" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def count(value: float) -> str:
    """A number of things, with thousands apart."""
    return f"{value:,.0f}" if math.isfinite(value) else "not recorded"


def size(value: float) -> str:
    """Bytes in GiB."""
    return f"{value / 2**30:.2f} GiB" if math.isfinite(value) else "not recorded"


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    if not math.isfinite(seconds):
        return "not recorded"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
