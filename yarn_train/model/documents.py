"""The documents of a batch on their way through a model: one small tensor on the CPU.

Tuples of integers would do, were it not for compilation: a compiled block is specialised to every number in them and to
their length, and would be compiled again at every step. A tensor's length is dynamic, and nothing reads its values
before the attention operator runs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .spans import Documents, Rectangle, check_documents, rectangles, stacked


def table(documents: Documents) -> Tensor:
    """(row, start) of every document of a batch, int64 [documents, 2] on the CPU, whatever the default device."""
    pairs = [(row, start) for row, starts in enumerate(documents) for start in starts]
    return torch.tensor(pairs, dtype=torch.int64, device="cpu").view(-1, 2)


def from_table(made: Tensor | None, rows: int, length: int) -> Documents:
    """The inverse of :func:`table`, for `rows` sequences of `length` positions; None is one document in each.

    Raises:
        ValueError: they are not the starts of documents in such sequences.
    """
    return ((0,),) * rows if made is None else _checked(tuple(made.flatten().tolist()), rows, length)


@lru_cache(maxsize=8)
def _checked(numbers: tuple[int, ...], rows: int, length: int) -> Documents:
    starts: list[list[int]] = [[] for _ in range(max((rows, *(row + 1 for row in numbers[::2]))))]
    for row, start in zip(numbers[::2], numbers[1::2], strict=True):
        starts[row].append(start)
    documents = tuple(map(tuple, starts))
    check_documents(documents, rows, length)
    return documents


@lru_cache(maxsize=8)
def causal_squares(documents: Documents, length: int) -> tuple[Rectangle, ...]:
    """One causal square per document, for sequences of `length` positions that lie end to end."""
    run = [(0, length)]
    return tuple(stacked([rectangles(run, run, starts) for starts in documents], length))


def end_to_end(t: Tensor) -> Tensor:
    """[B, H, S, D] -> [1, H, B * S, D]: a view of what lies in memory as [B, S, H, D]."""
    return t.transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2)


def joined(lse: Tensor) -> Tensor:
    """[B, H, S] -> [1, H, B * S]."""
    return lse.transpose(0, 1).flatten(1).unsqueeze(0)


def apart(t: Tensor, rows: int) -> Tensor:
    """[1, H, B * S, ...] -> [B, H, S, ...]: the inverse of :func:`end_to_end` and of :func:`joined`."""
    return t.squeeze(0).unflatten(1, (rows, -1)).transpose(0, 1)
