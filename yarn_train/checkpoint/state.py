"""The part of a training state that is not tensors: where the run stands, kept beside the sharded tensors as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.stream import SourceState
from ..errors import CheckpointError
from .complete import persistent

FILE = "train_state.json"


@dataclass(frozen=True)
class Skipped:
    """A step that updated nothing: its number, counted from 1, why, and the segments it had read."""

    step: int
    reason: str
    segments: tuple[int, ...]


@dataclass(frozen=True)
class TrainState:
    """After `step` optimizer steps of a stage.

    The position in the data is `samples`: sequences consumed so far. With the seed it fixes every later sequence,
    whatever the number of ranks or the accumulation. `data` follows from it; it tells a person where every source
    stands, and the next start whether it has the same data. It is empty in checkpoints older than the field.

    Attributes:
        step: steps taken, those that were skipped included.
        world_size, accumulation: of the start that wrote it; 0 micro-batches per step in what is older than the field.
        skipped: steps so far that updated nothing.
        skipped_in_a_row: those of them since the last that did.
        losses: of the newest steps that did, oldest first: what a spike is measured by, see ``train.skipped``.
    """

    step: int
    tokens: int
    samples: int
    seed: int
    world_size: int
    data: tuple[SourceState, ...] = ()
    accumulation: int = 0
    skipped: int = 0
    skipped_in_a_row: tuple[Skipped, ...] = ()
    losses: tuple[float, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``train_state.json`` into a checkpoint folder."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Read it back.

        Raises:
            CheckpointError: it is not what this version writes.
            StorageError: it could not be read.
        """
        path = folder / FILE
        try:
            return cls._of(json.loads(persistent(path.read_bytes, path)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is not what this yarn-train writes ({error}): another version wrote it, or it was changed"
            ) from error

    @classmethod
    def _of(cls, stored: dict[str, Any]) -> TrainState:
        streak = (Skipped(**{**one, "segments": tuple(one["segments"])}) for one in stored.get("skipped_in_a_row", ()))
        return cls(
            **{
                **stored,
                "data": tuple(SourceState(**source) for source in stored.get("data", ())),
                "skipped_in_a_row": tuple(streak),
                "losses": tuple(stored.get("losses", ())),
            }
        )


def refuse_other_data(checkpoint: Path, now: tuple[SourceState, ...], allowed: bool = False) -> str | None:
    """Check that a checkpoint's run read the data that is prepared now: its position means nothing in other data.

    Args:
        allowed: take other data nevertheless, and its position as a count.

    Returns:
        A line that says so, where other data is taken.

    Raises:
        CheckpointError: saying which data both are.
    """
    state = TrainState.load(checkpoint)
    then = state.data
    if not then or (len(then) == len(now) and all(a.same_data(b) for a, b in zip(then, now, strict=True))):
        return None
    if allowed:
        return (
            f"data: changed from {_described(then)} to {_described(now)}; training goes on after {state.samples:,} "
            "sequences, counted in the new data"
        )
    raise CheckpointError(
        f"{checkpoint} was trained on other data, and its position means nothing in this:\n"
        f"  - then: {_described(then)}\n  - now:  {_described(now)}\n"
        "restore that data (data.cache, data.path, the tokenizer) to continue, choose another run.name, or go on with "
        "the new data: run.allow_change=[data.path]"
    )


def _described(data: tuple[SourceState, ...]) -> str:
    sources = (
        f"{source.name} (share {source.weight}, {source.segments:,} segments, content {source.content_sha256[:12]}, "
        f"document starts {source.documents_sha256[:12] or 'unknown'})"
        for source in data
    )
    return " + ".join(sources)
