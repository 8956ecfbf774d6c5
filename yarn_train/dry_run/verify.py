"""Whether all ranks together do what one would: read every token once, keep every parameter once, agree on groups.

What is found here is no mistake of a user but a rule of ours that is broken, so it ends the dry run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from ..config import Config
from ..errors import YarnTrainError
from .ranks import RankView, made_up, meta_model

UNEVEN = 0.10  # of the fullest rank's state; the emptiest may have this much less


class RuleBroken(YarnTrainError):
    """The ranks of a run would not do its work exactly once: an error in yarn-train itself."""

    exit_code = 1

    def __init__(self, what: str):
        super().__init__(
            f"the ranks of this run do not fit together: {what}\nthis is an error in yarn-train: report it"
        )


@dataclass(frozen=True)
class Part:
    """A stretch [start, end) that a rank holds."""

    start: int
    end: int
    rank: int


def verify(views: Sequence[RankView], cfg: Config, base: PretrainedConfig) -> None:
    """Compare all ranks of a stage.

    Raises:
        RuleBroken: naming the first ranks, and tokens or parameters, that do not fit.
    """
    for name in views[0].groups:
        _groups_agree(views, name)
    stream, batch, length = made_up(cfg), cfg.train.global_batch_size, cfg.data.seq_len
    for step in range(len(views[0].reads)):
        wanted = sorted(stream.ids(step * batch, batch))
        parts = [Part(*read, view.rank) for view in views for read in view.reads[step]]
        covers = [(number * length, (number + 1) * length) for number in wanted]
        _exactly(parts, covers, f"step {step + 1}, segment and token", length)
        _labels(sum(view.labels[step] for view in views), batch * (length - 1), step)
    _parameters(views, cfg, {name: p.numel() for name, p in meta_model(base).named_parameters()})


def uneven(views: Sequence[RankView]) -> list[str]:
    """Warnings: ranks that keep nothing, or much less than others."""
    held = [view.elements for view in views]
    idle = [view.rank for view in views if not view.elements]
    if idle:
        return [
            f"{len(idle)} ranks keep nothing of the model (the first is rank {idle[0]}): use fewer, or copies of it"
        ]
    lack = 1 - min(held) / max(held)
    if lack <= UNEVEN:
        return []
    return [
        f"rank {held.index(min(held))} keeps {lack:.0%} less of the model than rank {held.index(max(held))}: rows do "
        f"not divide by the ranks; more copies (parallel.replicate) or fewer ranks even that out"
    ]


def without(views: Sequence[RankView]) -> tuple[int, int]:
    """(parameters that some rank keeps nothing of, ranks of which that is true)."""
    names = {name for view in views for name, (start, end) in view.pieces.items() if start == end}
    return len(names), sum(any(start == end for start, end in view.pieces.values()) for view in views)


def _groups_agree(views: Sequence[RankView], name: str) -> None:
    """Whether every rank is in its own group, and all of its members name the same one."""
    for view in views:
        group = view.groups[name]
        if view.rank not in group:
            raise RuleBroken(f"rank {view.rank} is not in its own {name} group {list(group)}")
        other = next((rank for rank in group if views[rank].groups[name] != group), None)
        if other is not None:
            theirs = list(views[other].groups[name])
            raise RuleBroken(f"{name} group of rank {view.rank} is {list(group)}, but of rank {other} {theirs}")


def _exactly(parts: Iterable[Part], covers: Sequence[tuple[int, int]], what: str, unit: int = 0) -> None:
    """Check that `parts` lie end to end over `covers`, in any order, without a gap, an overlap or anything else."""
    ordered = sorted((p for p in parts if p.start < p.end), key=lambda p: (p.start, p.end, p.rank))
    number = 0
    for start, end in covers:
        reached, last = start, None
        while number < len(ordered) and ordered[number].start < end:
            part = ordered[number]
            if part.start < reached:
                both = f"rank {part.rank}" if last is None else f"ranks {last.rank} and {part.rank}"
                raise RuleBroken(f"{what} {_address(part.start, unit)} belongs to {both}: allowed is one")
            if part.start > reached:
                break
            reached, last, number = part.end, part, number + 1
        if reached != end:
            raise RuleBroken(
                f"{what} {_address(min(reached, end), unit)} belongs to no rank, or where it ends is wrong"
            )
    if number < len(ordered):
        part = ordered[number]
        raise RuleBroken(f"{what} {_address(part.start, unit)} is rank {part.rank}'s but is no part of the whole")


def _address(place: int, unit: int) -> str:
    return " and ".join(f"{n:,}" for n in divmod(place, unit)) if unit else f"element {place:,}"


def _labels(found: int, wanted: int, step: int) -> None:
    if found != wanted:
        raise RuleBroken(f"step {step + 1} learns {found:,} tokens on all ranks together, {wanted:,} are there")


def _parameters(views: Sequence[RankView], cfg: Config, numels: Mapping[str, int]) -> None:
    """Whether the ranks of every copy keep each parameter exactly once."""
    whole = cfg.engine.name == "deepspeed" and cfg.engine.stage == 0
    copies = {(view.rank,) if whole else view.groups["sharding"] for view in views}
    for copy in sorted(copies):
        for name, numel in numels.items():
            parts = [Part(*views[rank].pieces[name], rank) for rank in copy]
            _exactly(parts, [(0, numel)], f"parameter {name}")
