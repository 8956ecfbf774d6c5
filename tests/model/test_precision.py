"""The limits that kernels on GPUs are held to, tried where kernels run: right ones are in them, wrong ones are not."""

from __future__ import annotations

import pytest
import torch
from precision import LIMITS, LSE_LIMIT, assert_near, distance, scale_of
from torch import Tensor

from yarn_train.model.primitives import PRIMITIVES

TOKENS = 192


def explicit(inputs: list[Tensor], upstream: Tensor, seen: Tensor, scale: float) -> list[Tensor]:
    """Output, log-sum-exp and gradients in float64; `seen` is bool, [Sq, Sk]."""
    q, k, v = leaves = [t.detach().double().requires_grad_() for t in inputs]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    out = scores.softmax(-1) @ v
    return [out.detach(), scores.logsumexp(-1).detach(), *torch.autograd.grad(out, leaves, upstream.double())]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("dim", "kv_heads"), [(64, 4), (128, 1)])
def test_right_kernels_are_near_and_wrong_masks_and_scales_are_not(dtype: torch.dtype, dim: int, kv_heads: int) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, TOKENS, h, dim, generator=g).to(dtype).transpose(1, 2) for h in (4, kv_heads, kv_heads)]
    upstream = torch.randn(inputs[0].shape, generator=g).to(dtype)
    scale, seen = scale_of(dim), torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    right = explicit(inputs, upstream, seen, scale)
    for name in ("cpu", "eager"):
        run = PRIMITIVES[name]
        out, lse = run.forward(*inputs, True, scale)
        gradients = run.backward(upstream, *inputs, out, lse, True, scale)
        assert_near((out, lse, *gradients), right, LIMITS[dtype])
        assert_near((out, lse), right[:2], LIMITS[dtype])

    without_first = seen & (torch.arange(TOKENS) > 0)
    without_first[0] = seen[0]
    wrong = {
        "a key too many": explicit(inputs, upstream, seen | seen.roll(1, 1), scale),
        "a key too few": explicit(inputs, upstream, without_first, scale),
        "2 % of the scale": explicit(inputs, upstream, seen, 1.02 * scale),
    }
    for what, results in wrong.items():
        off = [distance(*pair) for pair in zip(results, right, strict=True)]
        assert off.pop(1) > LSE_LIMIT, what
        assert min(off) > LIMITS[dtype], what
        with pytest.raises(AssertionError, match=r"out.*lse.*dq.*dk.*dv"):
            assert_near(results, right, LIMITS[dtype])


def test_what_is_not_a_number_is_far() -> None:
    right = [torch.ones(3, dtype=torch.float64)] * 2
    with pytest.raises(AssertionError, match="out"):
        assert_near([torch.tensor([1.0, torch.nan, 1.0]), right[1]], right, 1.0)
