"""Fewer points of a curve, such that it looks the same: what stands out is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST = 2000  # points of a line
ALL = 60_000  # points of all lines of a figure


def limit(lines: int) -> int:
    """Points that each of so many lines may have."""
    return max(200, min(MOST, ALL // max(1, lines)))


def thin(values: Sequence[float], most: int) -> list[int]:
    """Indices of at most `most` values, ascending: of each stretch its lowest and its highest, and both ends.

    A spike of one step survives at any length. A stretch without a finite value keeps one that is not, so that a gap
    stays a gap.
    """
    if len(values) <= most:
        return list(range(len(values)))
    stretches = max(1, (most - 2) // 2)
    kept = {0, len(values) - 1}
    for i in range(stretches):
        part = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        finite = [j for j in part if math.isfinite(values[j])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        else:
            kept.add(part[0])
    return sorted(kept)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Weighted mean of the finite values within `width` steps of each, the near ones most; NaN where there are none."""
    return _box(_box(values, width // 2), width - width // 2)


def _box(values: Sequence[float], width: int) -> list[float]:
    """Mean of the finite values within `width` steps of each, in linear time."""
    totals, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        totals.append(totals[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    found = []
    for i in range(len(values)):
        low, high = max(0, i - width), min(len(values), i + width + 1)
        number = counts[high] - counts[low]
        found.append((totals[high] - totals[low]) / number if number else math.nan)
    return found
