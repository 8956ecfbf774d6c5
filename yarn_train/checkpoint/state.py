"""The part of a training state that is not tensors: where the run stands, kept beside the sharded tensors as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ..data.stream import SourceState
from ..errors import CheckpointError

FILE = "train_state.json"


@dataclass(frozen=True)
class TrainState:
    """After `step` optimizer steps of a stage.

    The position in the data is `samples`: sequences consumed so far. With the seed it fixes every later sequence,
    whatever the number of ranks or the accumulation. `data` follows from it; it tells a person where every source
    stands, and the next start whether it has the same data. It is empty in checkpoints older than the field.
    """

    step: int
    tokens: int
    samples: int
    seed: int
    world_size: int
    data: tuple[SourceState, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``train_state.json`` into a checkpoint folder."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Read it back."""
        stored = json.loads((folder / FILE).read_text())
        return cls(**{**stored, "data": tuple(SourceState(**source) for source in stored.get("data", ()))})


def refuse_other_data(checkpoint: Path, now: tuple[SourceState, ...]) -> None:
    """Check that a checkpoint's run read the data that is prepared now: its position means nothing in other data.

    Raises:
        CheckpointError: saying which data both are.
    """
    then = TrainState.load(checkpoint).data
    same = len(then) == len(now) and all(a.same_data(b) for a, b in zip(then, now, strict=True))
    if then and not same:
        raise CheckpointError(
            f"{checkpoint} was trained on other data, and its position means nothing in this:\n"
            f"  - then: {_described(then)}\n  - now:  {_described(now)}\n"
            "restore that data (data.cache, data.path, the tokenizer) to continue, or choose another run.name"
        )


def _described(data: tuple[SourceState, ...]) -> str:
    sources = (
        f"{source.name} (share {source.weight}, {source.segments:,} segments, content {source.content_sha256[:12]}, "
        f"document starts {source.documents_sha256[:12] or 'unknown'})"
        for source in data
    )
    return " + ".join(sources)
