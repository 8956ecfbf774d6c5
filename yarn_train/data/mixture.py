"""Which source each segment of a mixture comes from: a periodic schedule with exact shares. Pure Python.

Every draw is a slot, and source i with weight w must get its k-th draw (k = 0, 1, ...) in one of the slots
floor(k / w) ... ceil((k + 1) / w) - 1. Earliest deadline first fills the slots (the "Pfair" windows of Baruah, Cohen,
Plaxton and Varvel, 1996; a feasible set of unit tasks on one machine is met by earliest deadline first). A draw that
lies in its window keeps |drawn_i(n) - w_i n| < 1 for every source after every n draws. When all w_i n are whole numbers
the deviation is therefore 0, so the schedule repeats with the least common denominator of the weights as its period.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction


class Schedule:
    """An endless order of draws from sources whose weights add up to 1.

    Any ``period`` consecutive draws, aligned or not, hold exactly ``weight * period`` of every source, and the first n
    draws hold fewer than one more or less than ``weight * n`` of each, for every n. Setup takes O(period log sources),
    ``source`` O(1) and ``drawn`` O(sources log period).

    Attributes:
        weights: of the sources, in order.
        period: the least common denominator of the weights.
    """

    def __init__(self, weights: Sequence[Fraction]):
        if not weights or min(weights) <= 0 or sum(weights) != 1:
            raise ValueError(f"weights must be positive and add up to 1, got {[str(w) for w in weights]}")
        self.weights = tuple(weights)
        self.period = math.lcm(*(weight.denominator for weight in weights))
        shares = [int(weight * self.period) for weight in weights]
        self._order = _earliest_deadline_first(shares)
        self._slots: list[list[int]] = [[] for _ in shares]
        for slot, source in enumerate(self._order):
            self._slots[source].append(slot)

    def source(self, position: int) -> int:
        """Index of the source that draw number ``position`` (from 0) comes from."""
        return self._order[position % self.period]

    def drawn(self, count: int) -> tuple[int, ...]:
        """How many of the first ``count`` draws come from each source."""
        periods, rest = divmod(count, self.period)
        return tuple(periods * len(slots) + bisect_left(slots, rest) for slots in self._slots)


def _earliest_deadline_first(shares: Sequence[int]) -> list[int]:
    """One period: source per slot, for sources that get ``shares[i]`` of ``sum(shares)`` slots; ties to the first."""
    period = sum(shares)
    drawn = [0] * len(shares)
    # the window of draw k is [floor(k / w), ceil((k + 1) / w)) with 1 / w = period / share
    closed = [(0, i) for i in range(len(shares))]  # (first slot of its next window, source): equal ones are a heap
    open_now: list[tuple[int, int]] = []  # (end of its window, source)
    order = []
    for slot in range(period):
        while closed and closed[0][0] <= slot:
            i = heapq.heappop(closed)[1]
            heapq.heappush(open_now, (-(-(drawn[i] + 1) * period // shares[i]), i))
        chosen = heapq.heappop(open_now)[1]
        drawn[chosen] += 1
        order.append(chosen)
        heapq.heappush(closed, (drawn[chosen] * period // shares[chosen], chosen))
    return order
