"""The longest sequence that fits: doubling until one does not, then halving the gap. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu.outcome import MEMORY, OK

Row = dict[str, Any]
MEMORIES = ("memory_bytes", "host_bytes")  # of a row's machine
FINENESS = 8  # the gap between what fits and what does not ends at an eighth of the power of two below


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        fits: tokens of the longest that was seen to run; 0 if none did.
        fails: tokens of the shortest that did not; None if all did, up to the most that was asked for.
        status, reason: of that one.
        probes: (tokens, status) in the order of trying.
    """

    fits: int
    fails: int | None
    status: str
    reason: str
    probes: tuple[tuple[int, str], ...]


def longest(start: int, most: int, probe: Callable[[int], Row]) -> Found:
    """Try `start`, twice that, and so on up to `most`, then between the last that ran and the first that did not.

    A probe that ends by anything but memory ends the search: what is longer would not end otherwise, and what is
    shorter would say nothing about memory.

    Args:
        probe: runs one step of so many tokens and returns its row.
    """
    fits, fails, row, probes = 0, None, {"status": OK, "reason": ""}, []
    tokens: int | None = start
    while tokens is not None:
        seen = probe(tokens)
        probes.append((tokens, seen["status"]))
        if seen["status"] == OK:
            fits = tokens
        else:
            fails, row = tokens, seen
        if seen["status"] not in (OK, MEMORY):
            break
        tokens = _next(fits, fails, start, most)
    return Found(fits, fails, row["status"], row["reason"], tuple(probes))


def _next(fits: int, fails: int | None, start: int, most: int) -> int | None:
    if fails is None:
        return fits * 2 if fits * 2 <= most else None
    if not fits:
        return None
    power = start
    while power * 2 <= fits:
        power *= 2
    step = max(1, power // FINENESS)
    middle = fits + (fails - fits) // 2 // step * step
    return middle if fits < middle < fails else None


def memory_line(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Peak bytes as a + b * tokens, by least squares over the steps that ran; None with fewer than two lengths."""
    points = [
        (float(row["result"]["tokens"]), float(row["result"]["peak_bytes"])) for row in rows if row["status"] == OK
    ]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def predicted(rows: Sequence[Row], more_bytes: float = 0.0, host_per_token: float = 0.0) -> int | None:
    """Tokens at which that line reaches the device's memory, or what is kept in host memory all of that.

    Args:
        more_bytes: of the device, whatever the length: what a model with more layers than the measured one adds.
        host_per_token: bytes.

    Returns:
        None where the line is flat or the memory is not known.
    """
    line = memory_line(rows)
    memory, host = (next((row["machine"][key] for row in rows if row["machine"].get(key)), None) for key in MEMORIES)
    if line is None or memory is None or line[1] <= 0:
        return None
    most = (memory - line[0] - more_bytes) / line[1]
    return max(0, int(min(most, host / host_per_token) if host and host_per_token else most))
