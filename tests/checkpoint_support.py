"""What tests of the checkpoint manager share."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from yarn_train.checkpoint import safetensors_file
from yarn_train.checkpoint.fragments import Piece
from yarn_train.checkpoint.host_copy import HostCopy, chunks
from yarn_train.checkpoint.index import INDEX, Index, tensor_file
from yarn_train.checkpoint.layout import Range, shares
from yarn_train.checkpoint.manager import CheckpointManager, views
from yarn_train.checkpoint.state import TrainState


class FakeEngine:
    """An engine of one tensor of `value`, others, and a number."""

    def __init__(self, value: float, **more: Tensor):
        self.weight = torch.full((4,), value)
        self.count = int(value)
        self.more = more

    def state_dict(self) -> dict[str, Any]:
        return {"weights": {"w": self.weight, **self.more}, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weights"]["w"]
        self.count = state["count"]


def state(step: int) -> TrainState:
    return TrainState(step=step, tokens=step * 10, samples=step * 2, seed=0, world_size=1)


def save(checkpoints: CheckpointManager, step: int, value: float = 0.0) -> None:
    """A complete checkpoint of `step`."""
    checkpoints.save(FakeEngine(value), state(step))
    checkpoints.finish()


def names(checkpoints: CheckpointManager) -> list[str]:
    """Everything in the manager's folder."""
    return sorted(path.name for path in checkpoints.folder.iterdir())


def write_all(folder: Path, held: Sequence[Sequence[Piece]], copied: bool = True) -> Index:
    """The tensors' part of a checkpoint of what several ranks hold."""
    written = shares([[Range.of(piece) for piece in rank] for rank in held])
    for rank, mine in enumerate(written):
        local = views(held[rank], mine)
        head = safetensors_file.header([(part.name, part.dtype, part.length) for part in mine])
        content: Iterable[Any] = HostCopy(torch.device("cpu")).take(local) if copied else chunks(local)
        safetensors_file.write(folder / tensor_file(rank), [head, *content])
    (folder / INDEX).write_text(Index.of(written, {}).text())
    return Index.load(folder, [tensor_file(rank) for rank in range(len(held))])


def read_all(folder: Path, index: Index, held: Sequence[Sequence[Piece]]) -> list[str]:
    """Fill what several ranks hold; returns why that cannot be, and then nothing was filled."""
    wanted = {piece.name for rank in held for piece in rank}
    problems = [problem for rank in held for problem in index.problems(rank, wanted)]
    if not problems:
        for rank in held:
            index.read(folder, rank)
    return problems


def failing(patch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """From here on the second half of what is written to a file of this name meets an error of the system."""
    opened = io.open

    class Half:
        def __init__(self, file: Any):
            self.file = file

        def write(self, content: Any) -> int:
            self.file.write(content[: len(content) // 2])
            raise OSError(code, os.strerror(code))

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

    def open_(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = opened(path, mode, *args, **kwargs)
        return Half(file) if "w" in mode and os.path.basename(str(path)) == name else file

    patch.setattr(io, "open", open_)
    patch.setattr("builtins.open", open_)
