"""The part of a training state that is not tensors: where the run stands, kept beside the sharded tensors as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainState:
    """After `step` optimizer steps of a stage.

    The position in the data is `samples`: sequences consumed so far. With the seed it fixes every later sequence,
    whatever the number of ranks or the accumulation.
    """

    step: int
    tokens: int
    samples: int
    seed: int
    world_size: int

    def save(self, folder: Path) -> None:
        """Write ``train_state.json`` into a checkpoint folder."""
        (folder / "train_state.json").write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Read it back."""
        return cls(**json.loads((folder / "train_state.json").read_text()))
