"""Which segments each optimizer step consumes: a pure function of (seed, samples consumed so far).

There is no iterator to save or to fast-forward: the position is one integer, counted in sequences, that means the same
for every number of ranks, every micro-batch size and every accumulation.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .batch import Batch, make_batch
from .store import Segments


@lru_cache(maxsize=2)
def epoch_order(num_segments: int, seed: int, epoch: int) -> np.ndarray:
    """The seeded permutation of all segments in one epoch, int64 [num_segments]."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_segments)


def segment_ids(start: int, count: int, *, num_segments: int, seed: int) -> list[int]:
    """Segments number start .. start + count - 1 of the endless shuffled stream over epochs."""
    positions = range(start, start + count)
    return [int(epoch_order(num_segments, seed, p // num_segments)[p % num_segments]) for p in positions]


def local_ids(ids: list[int], rank: int, world_size: int, micro_batch_size: int) -> list[list[int]]:
    """This rank's share of one step's segments, a list per micro-batch.

    Consecutive runs of micro_batch_size segments are dealt to the ranks in turn.
    """
    per_pass = micro_batch_size * world_size
    starts = range(rank * micro_batch_size, len(ids), per_pass)
    return [ids[start : start + micro_batch_size] for start in starts]


class Loader:
    """Batches of one stage for one rank."""

    def __init__(self, segments: Segments, *, seed: int, global_batch_size: int, micro_batch_size: int):
        self.segments = segments
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size

    def step_ids(self, samples: int) -> list[int]:
        """Segments of the optimizer step that begins after `samples` sequences, in order, for all ranks together."""
        return segment_ids(samples, self.global_batch_size, num_segments=len(self.segments), seed=self.seed)

    def micro_batches(self, ids: list[int], rank: int, world_size: int) -> list[Batch]:
        """This rank's micro-batches of the step whose segments are `ids`."""
        shares = local_ids(ids, rank, world_size, self.micro_batch_size)
        return [make_batch(self.segments[share]) for share in shares]
