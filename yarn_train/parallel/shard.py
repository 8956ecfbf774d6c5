"""Which positions of a sequence a context rank holds: pure index maps.

A ring of R cuts the sequence into 2R chunks and gives chunks r and 2R-1-r to rank r: under the causal mask every rank
then has the same work at every step. Inside a ring rank, its tokens are cut into U contiguous parts, one per Ulysses
rank, so that joining the parts in rank order gives the ring rank's tokens back in its own order.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

Run = tuple[int, int]  # positions [start, end)


@dataclass(frozen=True)
class Layout:
    """How `ring` * `ulysses` ranks share a sequence; context ranks are numbered ring major."""

    ring: int
    ulysses: int

    @property
    def size(self) -> int:
        """Ranks that share a sequence."""
        return self.ring * self.ulysses

    def padded(self, length: int) -> int:
        """The least length >= `length` that these ranks can share evenly."""
        unit = self.ulysses if self.ring == 1 else self.ring * math.lcm(2, self.ulysses)
        return -(-length // unit) * unit

    def ring_runs(self, length: int, rank: int) -> list[Run]:
        """The positions of ring rank `rank`, in its order; `length` is a padded one."""
        if self.ring == 1:
            return [(0, length)]
        chunk, last = length // (2 * self.ring), 2 * self.ring - 1 - rank
        first, second = (chunk * rank, chunk * (rank + 1)), (chunk * last, chunk * (last + 1))
        return [(first[0], second[1])] if first[1] == second[0] else [first, second]

    def runs(self, length: int, rank: int) -> list[Run]:
        """The positions of context rank `rank`, in its order; `length` is a padded one."""
        ring, ulysses = divmod(rank, self.ulysses)
        part = length // self.size
        return _rows(self.ring_runs(length, ring), part * ulysses, part * (ulysses + 1))

    def positions(self, length: int, rank: int) -> list[int]:
        """:meth:`runs`, one by one."""
        return [position for start, end in self.runs(length, rank) for position in range(start, end)]

    def order(self, length: int) -> list[int]:
        """Where position i stands in the shards of ranks 0, 1, 2 ... put end to end: the inverse of the sharding."""
        inverse, place = [0] * length, 0
        for rank in range(self.size):
            for start, end in self.runs(length, rank):
                inverse[start:end] = range(place, place + end - start)
                place += end - start
        return inverse


def _rows(runs: list[Run], first: int, end: int) -> list[Run]:
    """Rows [first, end) of what lies in memory as `runs`."""
    ends = list(accumulate(b - a for a, b in runs))
    found = []
    for number in range(bisect_right(ends, first), len(runs)):
        start = ends[number] - (runs[number][1] - runs[number][0])  # the run's first row
        low, high = max(first, start), min(end, ends[number])
        if low < high:
            found.append((runs[number][0] + low - start, runs[number][0] + high - start))
    return found
