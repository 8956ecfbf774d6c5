"""How an option is declared: its default, meaning, choices and bounds; and the names of data sources."""

from __future__ import annotations

from dataclasses import field
from typing import Any

DOCUMENT_SOURCES = ("stdlib", "pg19", "stdlib+pg19", "text")  # sources of texts; evaluation reads these only
SOURCES = (*DOCUMENT_SOURCES, "pretokenized", "mixture")


def option(
    default: Any,
    doc: str,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field with its meaning, its choices and its lower bound (`minimum` inclusive, `above` exclusive)."""
    metadata = {"doc": doc, "choices": choices, "minimum": minimum, "above": above}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
