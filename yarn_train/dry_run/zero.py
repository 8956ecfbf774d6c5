"""How DeepSpeed divides the state of a model over ranks, by its own rules: of a run that it is not here to start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Piece = tuple[int, int]  # elements [start, end) of a flattened parameter
ALIGNMENT = 2  # stages 1 and 2 pad a group to a multiple of this and the ranks (its nccl_start_alignment_factor)


def zero_pieces(groups: Sequence[Mapping[str, int]], stage: int, world_size: int, rank: int) -> dict[str, Piece]:
    """By parameter, the elements whose master weights and moments `rank` keeps.

    Args:
        groups: of the optimizer, each the number of elements by parameter, in order.
        stage: 0: all of them; 1 and 2: a piece of each group's parameters laid end to end; 3: of each parameter.
    """
    found: dict[str, Piece] = {}
    for group in groups:
        unit = ALIGNMENT * world_size
        share = -(-sum(group.values()) // unit) * unit // world_size
        before = 0
        for name, numel in group.items():
            if stage == 3:
                part = -(-numel // world_size)
                found[name] = _within(rank * part, part, numel)
            elif stage == 0:
                found[name] = (0, numel)
            else:
                found[name] = _within(rank * share - before, share, numel)
            before += numel
    return found


def _within(start: int, count: int, numel: int) -> Piece:
    """What lies inside of [0, numel) of `count` elements from `start`."""
    low, high = max(0, start), min(numel, start + count)
    return (low, high) if low < high else (0, 0)
