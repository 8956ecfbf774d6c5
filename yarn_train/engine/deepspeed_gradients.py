"""Gradients between backward and step: every stage keeps them elsewhere until it steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@torch.no_grad()
def full_gradients(named: dict[str, Any], optimizer: Any, stage: int) -> dict[str, Tensor]:
    """fp32 gradients by parameter name, summed over ranks and micro-batches so far; collective.

    Args:
        named: parameters by name, each once.
        optimizer: what ``deepspeed.initialize`` returned.
    """
    if stage <= 1:  # reduced in step(): sum what each rank has accumulated
        return {name: _summed(_accumulated(parameter), parameter) for name, parameter in named.items()}
    if stage == 2:
        unfinished = dict(optimizer.all_grad_tensors)  # step() finishes them again
        optimizer.finalize_gradient_accumulation_boundary()
        gradients = {name: _detached(parameter.get_full_hp_grad()) for name, parameter in named.items()}
        optimizer.all_grad_tensors.update(unfinished)
        return gradients
    optimizer.finalize_gradient_accumulation_boundary()  # with offload: copies them to the host; step() does so again
    return {name: _detached(optimizer.get_fp32_grad_for_param(parameter)) for name, parameter in named.items()}


def forget_gradients(optimizer: Any) -> None:
    """After a step that updated nothing: stages 1 and 2 with offload keep the bad gradients and add the next to them.

    Seen in DeepSpeed 0.19.8; everywhere else its step clears them itself.
    """
    kept = getattr(optimizer, "averaged_gradients", {})
    for group in kept if getattr(optimizer, "overflow", False) else ():
        kept[group] = None


def _accumulated(parameter: Any) -> Tensor | None:
    """The local sum: in fp32 aside where the parameter is bfloat16."""
    for attribute in ("_hp_grad", "grad_accum", "grad"):
        gradient = getattr(parameter, attribute, None)
        if gradient is not None:
            found: Tensor = gradient
            return found
    return None


def _summed(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if gradient is None:
        total = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
    else:
        total = gradient.detach().float().clone().view(parameter.shape)
    dist.all_reduce(total)
    return total


def _detached(gradient: Tensor) -> Tensor:
    return gradient.detach().float().clone()
