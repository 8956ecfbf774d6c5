"""AdamW's state, whichever optimizer keeps it: made before the first step, and counted in one form for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from .host_moments import HostMomentsAdamW

MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def materialize_state(optimizer: Optimizer) -> None:
    """Make now what the first step would make, zeros: a checkpoint is loaded into tensors that must exist."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:
                optimizer.state[p] = _fresh(optimizer, p)


def _fresh(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    if isinstance(optimizer, HostMomentsAdamW):
        return optimizer.fresh_state(p)
    if isinstance(optimizer, AdamW):  # fused: its kernel wants the count on the device
        moments = {key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in MOMENTS}
        return {"step": torch.zeros((), dtype=torch.float32, device=p.device), **moments}
    torchao: Any = optimizer  # its quantized buffers, signed and unsigned
    return {
        "step": torch.tensor(0.0),
        "exp_avg": torchao._new_buffer(p, True),
        "exp_avg_sq": torchao._new_buffer(p, False),
    }


def counts(states: Sequence[dict[str, Tensor]]) -> Tensor:
    """How many updates each parameter has had, int64 on the CPU, in the order of `states`."""
    return torch.stack([state["step"].detach() for state in states]).cpu().to(torch.int64)


def set_counts(states: Sequence[dict[str, Tensor]], values: Tensor) -> None:
    """The reverse of :func:`counts`, in place."""
    for state, value in zip(states, values.tolist(), strict=True):
        state["step"].fill_(value)
