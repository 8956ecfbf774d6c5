"""Steps that go wrong on purpose: a loss or a gradient that is not finite, or a loss that jumps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yarn_train.dist.heartbeat import heartbeat
from yarn_train.model.causal_lm import CausalLM


class BrokenBackward(torch.autograd.Function):
    """The value as it is, an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


def poison(patch: pytest.MonkeyPatch, kinds: dict[int, str]) -> None:
    """Make steps, counted from 1, what `kinds` says: loss | gradient | spike."""
    original = CausalLM.forward

    def forward(module: CausalLM, ids: Any, positions: Any, labels: Any = None, documents: Any = None) -> torch.Tensor:
        loss = original(module, ids, positions, labels, documents)
        kind = kinds.get((heartbeat.step or 0) + 1) if labels is not None else None
        if kind == "gradient":
            return BrokenBackward.apply(loss)
        return loss * {None: 1.0, "loss": torch.nan, "spike": 100.0}[kind]

    patch.setattr(CausalLM, "forward", forward)
