"""What one rank reads for each optimizer step: its share of the next segments of the stream, as batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .batch import Batch, make_batch
from .segments import Starts
from .stream import Stream


@dataclass(frozen=True)
class Step:
    """The data of one optimizer step.

    Attributes:
        ids: its segments in order, of all ranks together.
        batches: this rank's micro-batches.
        documents: where documents start in each of its segments; None without a document mask.
    """

    ids: list[int]
    batches: list[Batch]
    documents: Starts | None = None


def local_ids(ids: list[int], rank: int, world_size: int, micro_batch_size: int) -> list[list[int]]:
    """This rank's share of one step's segments, a list per micro-batch.

    Consecutive runs of micro_batch_size segments are dealt to the ranks in turn.
    """
    per_pass = micro_batch_size * world_size
    starts = range(rank * micro_batch_size, len(ids), per_pass)
    return [ids[start : start + micro_batch_size] for start in starts]


def pinned(batch: Batch, device: torch.device) -> Batch:
    """The same batch in memory that a GPU reads while the host goes on; on other devices the batch itself."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a thread starts on GPU 0, where every rank would open a context
        return dataclasses.replace(
            batch,
            input_ids=batch.input_ids.pin_memory(),
            labels=batch.labels.pin_memory(),
            position_ids=batch.position_ids.pin_memory(),
        )


class Loader:
    """Steps of one stage for one of ``ranks`` ranks that read different sequences.

    Args:
        document_mask: whether batches know where their documents start.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        document_mask: bool = False,
    ):
        self.stream = stream
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.ranks = ranks
        self.document_mask = document_mask

    def step(self, samples: int) -> Step:
        """Read the step that begins after ``samples`` sequences; of its segments, only this rank's are touched."""
        ids = self.stream.ids(samples, self.global_batch_size)
        shares = local_ids(ids, self.rank, self.ranks, self.micro_batch_size)
        return Step(ids, [self._batch(share) for share in shares], self._documents(ids))

    def steps(self, samples: int, count: int, finish: Callable[[Batch], Batch]) -> Iterator[Step]:
        """Read ``count`` steps one after the other; ``finish`` gets every batch, where it is read."""
        for number in range(count):
            step = self.step(samples + number * self.global_batch_size)
            yield dataclasses.replace(step, batches=[finish(batch) for batch in step.batches])

    def _documents(self, ids: list[int]) -> Starts | None:
        return self.stream.documents(ids) if self.document_mask else None

    def _batch(self, share: list[int]) -> Batch:
        return make_batch(self.stream.rows(share), self._documents(share))
