"""Who writes which elements of a checkpoint, and who reads them: pure functions of ranges."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .fragments import Piece
from .safetensors_file import CODES, itemsize

WHOLE = 1 << 20  # bytes below which a piece that several ranks hold is written by one of them, not by each in part


@dataclass(frozen=True)
class Range:
    """Elements [start, start + length) of the flattened tensor `name`; see :class:`fragments.Piece`.

    Attributes:
        dtype: as safetensors files spell it: F32, BF16 ...
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    length: int
    covers: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of these elements."""
        return self.length * itemsize(self.dtype)

    @classmethod
    def of(cls, piece: Piece) -> Range:
        """What a rank tells the others of a piece."""
        code = CODES[piece.local.dtype]
        return cls(piece.name, piece.shape, code, piece.start, piece.local.numel(), piece.covers)


def shares(held: Sequence[Sequence[Range]]) -> list[list[Range]]:
    """What each rank writes, so that everything is written once and copies share the work out evenly.

    Args:
        held: what each rank holds.

    Raises:
        ValueError: ranks disagree about a tensor, or together do not hold all of it.
    """
    _refuse_gaps(held)
    holders: dict[Range, list[int]] = defaultdict(list)
    for rank, ranges in enumerate(held):
        for part in ranges:
            if part.length:
                holders[part].append(rank)
    written: list[list[Range]] = [[] for _ in held]
    loads = [0] * len(held)
    for part, ranks in sorted(holders.items(), key=lambda item: (-item[0].nbytes, item[0].name, item[0].start)):
        if part.nbytes < WHOLE:
            ranks = [min(ranks, key=lambda rank: loads[rank])]
        cuts = [part.length * i // len(ranks) for i in range(len(ranks) + 1)]
        for rank, begin, end in zip(ranks, cuts, cuts[1:], strict=False):
            if begin < end:
                written[rank].append(replace(part, start=part.start + begin, length=end - begin))
                loads[rank] += written[rank][-1].nbytes
    return [sorted(ranges, key=lambda part: (-itemsize(part.dtype), part.name)) for ranges in written]


def _refuse_gaps(held: Sequence[Sequence[Range]]) -> None:
    kinds: dict[str, tuple[tuple[int, ...], str]] = {}
    parts: dict[str, set[tuple[int, int]]] = defaultdict(set)
    numel: dict[str, int] = {}
    for part in (part for ranges in held for part in ranges):
        if kinds.setdefault(part.name, (part.shape, part.dtype)) != (part.shape, part.dtype):
            raise ValueError(f"{part.name} is {kinds[part.name]} on one rank and {part.shape, part.dtype} on another")
        if part.covers is not None:
            numel[part.covers] = math.prod(part.shape)
            if part.length:
                parts[part.covers].add((part.start, part.length))
    for name, total in numel.items():
        end = 0
        for start, length in sorted(parts[name]):
            if start != end:
                raise ValueError(f"ranks hold {name} up to element {end} and from element {start}")
            end += length
        if end != total:
            raise ValueError(f"ranks hold {end} of {total} elements of {name}")


@dataclass(frozen=True)
class Read:
    """Take elements [begin, end) of what `file` holds of a tensor and put them at `at` of what a rank holds."""

    file: str
    begin: int
    end: int
    at: int


def reads(stored: Iterable[tuple[str, int, int]], start: int, length: int) -> list[Read] | None:
    """What makes up elements [start, start + length) of a tensor; None if that is not all there.

    Args:
        stored: (file, start, length) of everything that files hold of it.
    """
    found, have = [], 0
    for file, at, count in stored:
        low, high = max(start, at), min(start + length, at + count)
        if low < high:
            found.append(Read(file, low - at, high - at, low - start))
            have += high - low
    return found if have == length else None
