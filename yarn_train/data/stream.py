"""The endless ordered stream of segments that a run consumes: a pure function of (seed, position).

There is no iterator to save or to fast-forward: the position is one integer, counted in sequences, that means the same
for every number of ranks, every micro-batch size and every accumulation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .mixture import Schedule
from .segments import Segments, open_segments

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One prepared source of a run's training data; the weights of all parts add up to 1."""

    name: str
    weight: Fraction
    folder: Path


@dataclass(frozen=True)
class Source:
    """The same, opened."""

    name: str
    weight: Fraction
    segments: Segments


@dataclass(frozen=True)
class SourceState:
    """Which data one source is and how far it was read, as JSON values.

    Attributes:
        weight: its share of the stream, a fraction such as ``7/10``.
        content_sha256: of its segments.
        documents_sha256: of where its documents start; empty in what is older than the field.
        segments: how many there are.
        epoch: passes over it that are complete.
        position: segments read of the pass after those.
    """

    name: str
    weight: str
    content_sha256: str
    segments: int
    epoch: int
    position: int
    documents_sha256: str = ""

    def same_data(self, other: SourceState) -> bool:
        """Whether both read the same segments equally often; names may differ."""
        starts = self.documents_sha256, other.documents_sha256
        return (self.weight, self.content_sha256) == (other.weight, other.content_sha256) and (
            starts[0] == starts[1] or "" in starts
        )


def epoch_order(num_segments: int, seed: int, epoch: int, source: int = 0) -> np.ndarray:
    """The seeded permutation of all segments of a source in one epoch, int64 [num_segments]."""
    # the source is the last word, and absent for the first: a run of one source keeps its order when it gets others
    entropy = [seed, epoch, source] if source else [seed, epoch]
    return np.random.Generator(np.random.PCG64(entropy)).permutation(num_segments)


class Stream:
    """Segments of one or more sources, each shuffled anew in every epoch of its own, in the shares of their weights.

    A segment's id is its number in its source plus the segments of all sources before that one.
    """

    def __init__(self, sources: Sequence[Source], seed: int):
        self.sources = tuple(sources)
        self.seed = seed
        self._schedule = Schedule([source.weight for source in sources])
        self._lengths = [len(source.segments) for source in sources]
        self._starts = np.cumsum([0, *self._lengths])
        # one epoch in use and one that begins within the same step
        self._orders = [lru_cache(maxsize=2)(partial(self._order, i)) for i in range(len(sources))]

    def __len__(self) -> int:
        """Segments of all sources together."""
        return int(self._starts[-1])

    @property
    def seq_len(self) -> int:
        """Tokens per segment."""
        return self.sources[0].segments.seq_len

    def ids(self, start: int, count: int) -> list[int]:
        """Segments number start .. start + count - 1 of the stream."""
        drawn = list(self._schedule.drawn(start))
        found = []
        for position in range(start, start + count):
            source = self._schedule.source(position)
            epoch, index = divmod(drawn[source], self._lengths[source])
            found.append(int(self._starts[source] + self._orders[source](epoch)[index]))
            drawn[source] += 1
        return found

    def rows(self, ids: Sequence[int]) -> Tensor:
        """The segments [n, seq_len] int64 with these ids, in their order."""
        import torch  # here, so that preparing data does not load it

        groups = self._by_source(ids)
        if len(groups) == 1:  # without a second copy
            source, _, local = groups[0]
            return self.sources[source].segments[local]
        out = torch.empty(len(ids), self.seq_len, dtype=torch.int64)
        for source, at, local in groups:
            out[at] = self.sources[source].segments[local]
        return out

    def documents(self, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Per segment, the positions at which its documents start, 0 first."""
        out: list[tuple[int, ...]] = [()] * len(ids)
        for source, at, local in self._by_source(ids):
            for row, starts in zip(at, self.sources[source].segments.documents(local), strict=True):
                out[row] = tuple(starts)
        return tuple(out)

    def epochs(self, samples: int) -> float | dict[str, float]:
        """Passes complete after ``samples`` sequences, with their fraction; per name if there are several sources."""
        passes = {
            source.name: drawn / length
            for source, drawn, length in zip(self.sources, self._schedule.drawn(samples), self._lengths, strict=True)
        }
        return passes if len(passes) > 1 else next(iter(passes.values()))

    def state(self, samples: int) -> tuple[SourceState, ...]:
        """Which data this is and where its sources stand after ``samples`` sequences."""
        drawn = self._schedule.drawn(samples)
        return tuple(
            SourceState(
                s.name,
                str(s.weight),
                s.segments.content_sha256,
                length,
                *divmod(count, length),
                documents_sha256=s.segments.documents_sha256,
            )
            for s, count, length in zip(self.sources, drawn, self._lengths, strict=True)
        )

    def _order(self, source: int, epoch: int) -> np.ndarray:
        return epoch_order(self._lengths[source], self.seed, epoch, source)

    def _by_source(self, ids: Sequence[int]) -> list[tuple[int, list[int], list[int]]]:
        """(source, places in ``ids``, numbers within the source) of every source that ``ids`` touch."""
        if len(ids) and not 0 <= min(ids) <= max(ids) < len(self):
            raise IndexError(f"segment ids {list(ids)} are not all in [0, {len(self)})")
        groups: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        owners = np.searchsorted(self._starts, ids, side="right") - 1
        for place, (source, number) in enumerate(zip(owners.tolist(), ids, strict=True)):
            places, local = groups[source]
            places.append(place)
            local.append(number - int(self._starts[source]))
        return [(source, *group) for source, group in groups.items()]


def open_stream(parts: Sequence[Part], seed: int) -> Stream:
    """Map the segments of prepared folders.

    Raises:
        DataError: if a folder is not complete.
    """
    return Stream([Source(part.name, part.weight, open_segments(part.folder)) for part in parts], seed)
