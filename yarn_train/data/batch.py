"""What one forward pass reads: ids, labels that are ALREADY shifted, and positions that are always explicit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..model.spans import Documents, check_documents

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batch:
    """Sequences of equal length.

    Labels are shifted here, once, before anything is split over ranks: shifting per shard would lose one target at
    every shard boundary. For the same reason positions travel with the tokens instead of being made anew by the model.

    Attributes:
        input_ids: [B, S] int64.
        labels: [B, S] int64; ``labels[b, i]`` is the target of position i, that is ``input_ids[b, i + 1]``;
            ``IGNORE_INDEX`` where there is none.
        position_ids: [B, S] int64, absolute; with `documents`, counted from the start of each.
        num_valid: number of labels that are not ``IGNORE_INDEX``.
        documents: per row, the sorted positions at which its documents start, 0 first: attention stays inside of them.
            None is one document per row.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    num_valid: int
    documents: Documents | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.input_ids.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.position_ids.to(device, non_blocking=non_blocking),
            self.num_valid,
            self.documents,
        )


def make_batch(segments: torch.Tensor, documents: Documents | None = None) -> Batch:
    """Make the batch of ``segments`` [B, S] int64: labels shifted left by one, the last of each row ignored.

    Args:
        documents: per row, where its documents start, if tokens are to see their own document only. Then positions
            start at 0 in each document, and the last token of a document has no label: its next one is another's first.

    Raises:
        ValueError: `documents` do not fit the segments.
    """
    rows, length = segments.shape
    labels = torch.full_like(segments, IGNORE_INDEX)
    labels[:, :-1] = segments[:, 1:]
    positions = torch.arange(length, device=segments.device).expand(rows, length).contiguous()
    if documents is None:
        return Batch(segments, labels, positions, num_valid=rows * (length - 1))
    check_documents(documents, rows, length)
    counts = torch.tensor([len(starts) for starts in documents])
    row = torch.arange(rows).repeat_interleave(counts).to(segments.device)
    start = torch.tensor([one for starts in documents for one in starts], device=segments.device)
    first = torch.zeros_like(positions)
    first[row, start] = start
    labels[row, start - 1] = IGNORE_INDEX  # the first document's: the row's last label, which is ignored anyway
    return Batch(segments, labels, positions - first.cummax(1).values, rows * length - int(counts.sum()), documents)


def unlabelled(input_ids: torch.Tensor, position_ids: torch.Tensor) -> Batch:
    """A batch [B, S] that is only read, not learned from."""
    return Batch(input_ids, torch.full_like(input_ids, IGNORE_INDEX), position_ids, num_valid=0)
