"""Who is measured with whom: a round robin tournament, so that all pairs of a round run at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[int, int]


def tournament(nodes: Sequence[int], most: int) -> list[list[Pair]]:
    """Rounds of disjoint pairs (lower first); every pair meets once if `most` rounds are enough (nodes - 1, or nodes).

    Where they are not, rounds far apart are taken, so that each node meets partners at various distances.
    """
    seats: list[int | None] = [*sorted(nodes), *([None] if len(nodes) % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        couples = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in couples if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    if len(rounds) <= most:
        return rounds
    return [rounds[number * len(rounds) // most] for number in range(most)]


def partner(node: int, pairs: Sequence[Pair]) -> int | None:
    """Whom a node meets in a round; None when it pauses."""
    return next((b if node == a else a for a, b in pairs if node in (a, b)), None)
