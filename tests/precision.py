"""How near a kernel's results must be to an explicit softmax in float64, and why."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Of the norm of the difference over the norm of what is right, for outputs and gradients. Elements are no measure: with
# scores far apart a gradient is a small difference of large numbers, and a correct kernel misses any limit that a wrong
# one would miss too. Hence also the model's own scale, head_dim ** -0.5. Seen at that scale, heads of 64 and 128, 45 to
# 1,000 tokens, 1 to 4 key heads, with the CPU's kernels (torch's flash, plain matrices, flex): at most
#   bfloat16 5.4e-3 (3.6e-3 without shared key heads, whose gradients are summed), float16 6.8e-4, float32 6.0e-7.
# Wrong ones: a causal mask one key too wide or without the first key 2.2e-1 or more; the scale off by 2 % 1.4e-2 in the
# output and 2.7e-2 in the gradients of q and k, by YaRN's factor far more.
LIMITS = {torch.bfloat16: 1.2e-2, torch.float16: 2.5e-3, torch.float32: 1e-5}
# The log-sum-exp is float32 whatever the inputs are: at most 5.9e-6 was seen. The same mistakes: 3e-3 or more.
LSE_LIMIT = 1e-4


def scale_of(dim: int) -> float:
    """What scores are multiplied with, as in a model with heads of `dim`."""
    return dim**-0.5


def distance(found: Tensor, right: Tensor) -> float:
    """The norm of the difference over that of `right`, in float64; not a number is infinitely far."""
    off = ((found.double() - right).norm() / right.norm()).item()
    return off if off == off else float("inf")


def assert_near(found: Iterable[Tensor], right: Iterable[Tensor], limit: float) -> None:
    """(out, lse), with gradients of q, k and v or not; `limit` of all but the log-sum-exp, which has its own.

    Args:
        limit: of :data:`LIMITS`.
    """
    names = ("out", "lse", "dq", "dk", "dv")
    pairs = list(zip(found, right, strict=True))
    seen = {name: distance(*pair) for name, pair in zip(names, pairs, strict=False)}
    allowed = {name: min(limit, LSE_LIMIT) if name == "lse" else limit for name in seen}
    far = {name: f"{off:.1e}" for name, off in seen.items() if off > allowed[name]}
    assert not far, f"{far}, allowed {limit:.1e} (lse {allowed['lse']:.1e})"
