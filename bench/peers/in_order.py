"""transformers' Trainer as measurements need it: rows in their order, and the loss of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer


class Rows(Dataset):
    """Tokens [length] each; one is a batch."""

    def __init__(self, rows: Sequence[torch.Tensor] | torch.Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[number], "labels": self.rows[number]}


class InOrder(Trainer):
    """The Trainer, which neither shuffles nor forgets the loss."""

    last: torch.Tensor

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.last = super().training_step(*args, **kwargs)
        return self.last
