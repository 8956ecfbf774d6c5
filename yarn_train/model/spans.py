"""The causal mask of packed documents as rectangles of dense attention: what there is instead of a mask tensor.

A rectangle is computed by one kernel call on contiguous rows, so nothing is ever multiplied and then masked away. Pure:
positions in, rectangles out; the same function serves one process and every step of ring attention.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import count, pairwise
from operator import eq
from typing import NamedTuple

Run = tuple[int, int]  # positions [start, end) that lie next to each other in memory
Documents = tuple[tuple[int, ...], ...]  # per sequence: the sorted positions at which its documents start, 0 first


class Rectangle(NamedTuple):
    """Query rows [q0, q1) attend to key rows [k0, k1): to all of them, or (`causal`, a square) up to the diagonal."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool


class _Piece(NamedTuple):
    """The part of one document in one run: positions [start, end), and the row in memory of position 0 of it."""

    start: int
    end: int
    offset: int


def rectangles(queries: Sequence[Run], keys: Sequence[Run], starts: Sequence[int] = (0,)) -> list[Rectangle]:
    """Rectangles of causal attention inside each document, adjacent ones joined into fewer kernel calls.

    Args:
        queries, keys: the positions held, as runs in the order in which they lie in memory.
        starts: where the sequence's documents start; the last one has no end.

    Returns:
        Rectangles in ROWS of the held tensors, not in positions.
    """
    held = _by_document(keys, starts)
    found: list[Rectangle] = []
    for document, pieces in _by_document(queries, starts).items():
        for query in pieces:
            for key in held.get(document, ()):
                found += _below_diagonal(query, key)
    return _join_full(_join_staircases(found))


def _by_document(runs: Sequence[Run], starts: Sequence[int]) -> dict[int, list[_Piece]]:
    pieces = defaultdict(list)
    row = 0
    for start, end in runs:
        for number, first in enumerate(starts):
            last = starts[number + 1] if number + 1 < len(starts) else end
            if max(start, first) < min(end, last):
                pieces[number].append(_Piece(max(start, first), min(end, last), row - start))
        row += end - start
    return pieces


def _below_diagonal(query: _Piece, key: _Piece) -> Iterable[Rectangle]:
    """The pairs with key position <= query position, as at most a full, a causal and another full rectangle."""

    def rectangle(q0: int, q1: int, k0: int, k1: int, causal: bool = False) -> Rectangle:
        return Rectangle(q0 + query.offset, q1 + query.offset, k0 + key.offset, k1 + key.offset, causal)

    if key.start < query.start:  # keys before the first query: seen by every query
        yield rectangle(query.start, query.end, key.start, min(key.end, query.start))
    corner, end = max(query.start, key.start), min(query.end, key.end)
    if corner < end:
        yield rectangle(corner, end, corner, end, causal=True)
    if corner < end < query.end:  # queries after the last key: they see all that is left
        yield rectangle(end, query.end, corner, end)


def _join_staircases(found: list[Rectangle]) -> list[Rectangle]:
    """Join causal, full, causal along one diagonal into one causal square (the shards of one rank on themselves)."""
    rest = list(found)
    for full in [r for r in found if not r.causal]:
        above = next((r for r in rest if r.causal and (r.q1, r.k0, r.k1) == (full.q0, full.k0, full.k1)), None)
        right = next((r for r in rest if r.causal and (r.q0, r.q1, r.k0) == (full.q0, full.q1, full.k1)), None)
        if above and right:
            rest = [r for r in rest if r not in (full, above, right)]
            rest.append(Rectangle(above.q0, right.q1, above.k0, right.k1, True))
    return rest


def _join_full(found: list[Rectangle]) -> list[Rectangle]:
    """Join full rectangles that share their keys and touch in their queries, or the other way around."""
    causal = [r for r in found if r.causal]
    full = sorted((r for r in found if not r.causal), key=lambda r: (r.k0, r.k1, r.q0))
    full = _join(full, lambda a, b: (a.k0, a.k1, a.q1) == (b.k0, b.k1, b.q0))
    full = _join(sorted(full), lambda a, b: (a.q0, a.q1, a.k1) == (b.q0, b.q1, b.k0))
    return sorted(causal + full)


def _join(ordered: list[Rectangle], touch: Callable[[Rectangle, Rectangle], bool]) -> list[Rectangle]:
    joined: list[Rectangle] = []
    for one in ordered:
        if joined and touch(joined[-1], one):
            last = joined.pop()
            one = Rectangle(last.q0, one.q1, last.k0, one.k1, False)
        joined.append(one)
    return joined


def disjoint(intervals: Iterable[tuple[int, int]]) -> bool:
    """Whether no two intervals [start, end) share a number."""
    return all(a[1] <= b[0] for a, b in pairwise(sorted(intervals)))


def stacked(per_row: Iterable[Iterable[Rectangle]], length: int) -> list[Rectangle]:
    """Rectangles of several sequences as those of one in which they lie end to end, `length` rows each."""
    return [
        Rectangle(s.q0 + first, s.q1 + first, s.k0 + first, s.k1 + first, s.causal)
        for first, spans in zip(count(step=length), per_row, strict=False)
        for s in spans
    ]


def cuts(spans: Sequence[Rectangle], length: int) -> tuple[int, ...] | None:
    """Where documents begin, and at the end `length`, if `spans` are causal squares that fill the diagonal; or None."""
    ends = (0, *(s.q1 for s in spans))
    squares = (Rectangle(start, end, start, end, True) for start, end in pairwise(ends))
    return ends if ends[-1] == length and all(map(eq, spans, squares)) else None


def check_documents(documents: Documents, rows: int, length: int) -> None:
    """Raise a ValueError unless `documents` has one list per row, each rising from 0 and staying below `length`."""
    if len(documents) != rows:
        raise ValueError(f"documents: {len(documents)} lists of starts for {rows} sequences")
    for starts in documents:
        if not starts or starts[0] != 0 or starts[-1] >= length or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"documents: starts must rise from 0 and stay below {length}, got {starts}")
