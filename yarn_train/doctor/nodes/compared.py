"""What was measured of machines and of pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rank:
    """A rank's own measurements; None where it gave none, and why in `error`."""

    matmul: float | None = None
    memory: float | None = None
    write: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Node:
    """A machine: its number, its name, what it is, its ranks, bytes/s between them (None with one rank)."""

    number: int
    host: str
    identity: Mapping[str, Any] = field(default_factory=dict)
    ranks: Sequence[Rank] = ()
    intra: float | None = None
    intra_error: str = ""
    skew: float | None = None

    @property
    def label(self) -> str:
        """For people."""
        return self.host


@dataclass(frozen=True)
class Meet:
    """What two machines measured together: bus bandwidth in bytes/s, latency in seconds, or why they did not."""

    bus: float | None = None
    latency: float | None = None
    error: str = ""


def rate_text(value: float) -> str:
    """Bytes/s for people."""
    return f"{value / 1e9:,.2f} GB/s" if value >= 1e8 else f"{value / 1e6:,.1f} MB/s"
