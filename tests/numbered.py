"""Stands for prepared folders in tests of what reads them (imported by name)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from yarn_train.data.stream import Source, Stream


class Numbered:
    """Every token of segment i is first + i; remembers what was read."""

    def __init__(self, count: int, first: int = 0, seq_len: int = 6):
        self.count = count
        self.first = first
        self.seq_len = seq_len
        self.content_sha256 = f"sha of {count} from {first}"
        self.documents_sha256 = f"sha of starts in {count}"
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, ids: Sequence[int]) -> torch.Tensor:
        assert all(0 <= i < self.count for i in ids)
        self.read += ids
        return self.first + torch.tensor(ids, dtype=torch.int64)[:, None].expand(-1, self.seq_len).contiguous()

    def documents(self, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        return tuple((0, 1 + i % (self.seq_len - 1)) for i in ids)


def stream(*sources: tuple[int, int], seed: int = 0) -> Stream:
    """Sources of (weight, segments); every token of a row is the row's id."""
    total = sum(weight for weight, _ in sources)
    opened, first = [], 0
    for number, (weight, count) in enumerate(sources):
        opened.append(Source(f"s{number}", Fraction(weight, total), Numbered(count, first)))  # type: ignore[arg-type]
        first += count
    return Stream(opened, seed)
