"""Which attention kernel a run gets, tried for a moment: a package can be installed and still not load."""

from __future__ import annotations

from typing import Any

import torch

from ...dist.runtime import device as own_device
from ...errors import ConfigError
from ...model.attention import local_attend
from ...model.availability import NEEDS, missing
from ...model.registry import choose_kernel
from ..finding import FAIL, OK, Finding

SHAPE = (1, 4, 256, 64)  # batch, heads, tokens, head_dim
CLOSE = 0.05  # of the largest value, in bfloat16


def attention(requested: str = "auto", dtype: str = "bfloat16") -> list[Finding]:
    """Forward and backward of the kernel that ``model.attention`` stands for, against float32 arithmetic."""
    place = own_device()
    try:
        kernel = choose_kernel(requested, place, getattr(torch, dtype))
    except ConfigError as error:
        return [Finding(FAIL, "attention", error.problems[0], "the run is refused", "model.attention=auto")]
    numbers = getattr(torch, dtype)
    facts = {"attention": kernel.name, "kernels": [name for name in NEEDS if missing(name, place, numbers) is None]}
    try:
        deviation = largest_error(kernel.name, place, numbers)
    except Exception as problem:  # what a package or a compiler of kernels raises can be anything
        text = str(problem).strip().splitlines()
        means, fix = "the first step of a run fails", "build it for this torch and CUDA again, or model.attention=sdpa"
        return [
            Finding(
                FAIL, "attention", f"{kernel.name} does not run: {text[0] if text else problem!r}", means, fix, facts
            )
        ]
    return [judge_attention(kernel.name, kernel.reason, deviation, facts)]


def judge_attention(name: str, reason: str, error: float, facts: dict[str, Any]) -> Finding:
    """`error` is the largest deviation of outputs and gradients, as a share of their largest value."""
    if not error < CLOSE:  # nan too
        figure = f"{name} is off by {error:.1%} of the largest value ({reason})"
        return Finding(
            FAIL, "attention", figure, "training would be wrong", "model.attention=sdpa, and a new build", facts
        )
    return Finding(OK, "attention", f"{name}, forward and backward tried: {reason}", facts=facts)


def largest_error(kernel: str, place: torch.device, dtype: torch.dtype) -> float:
    """Of causal attention's output and gradients, relative to the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(SHAPE, generator=generator).to(dtype).float().requires_grad_() for _ in range(3)]
    tried = [t.detach().to(place, dtype).requires_grad_() for t in exact]
    scale = SHAPE[3] ** -0.5
    weights = torch.randn(SHAPE, generator=generator)
    later = torch.ones(SHAPE[2], SHAPE[2], dtype=torch.bool).triu(1)
    wanted = (exact[0] @ exact[1].transpose(2, 3) * scale).masked_fill(later, -torch.inf).softmax(-1) @ exact[2]
    (wanted * weights).sum().backward()
    out = local_attend(kernel)(tried[0], tried[1], tried[2], scale, None, 0)
    (out * weights.to(place, dtype)).sum().backward()
    pairs = [(out, wanted), *((a.grad, b.grad) for a, b in zip(tried, exact, strict=True))]
    errors = [
        ((a.float().cpu() - b).abs().max() / b.abs().max()).item() for a, b in pairs if a is not None and b is not None
    ]
    return max(errors)
