"""Kernel primitives against an explicit softmax in float64, with the log-sum-exp of longer key ranges too."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from support import strides
from torch import Tensor
from torch.nn.attention import flex_attention

from yarn_train.model.kernels import attend, attend_backward
from yarn_train.model.merge import new_lse, repeat_heads, seq_major, sum_heads
from yarn_train.model.primitives import PRIMITIVES
from yarn_train.model.spans import Rectangle, rectangles

SCALE = 0.3
CPU = PRIMITIVES["cpu"]
ON_CPU = ["cpu", "eager", "flex"]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def flex_learns_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses a backward of flex_attention there at its front door; the unfused code behind it has one."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()  # it traces that code anew for each shape, and refuses to go on after some


def qkv(q_tokens: int, k_tokens: int, kv_heads: int = 2, dtype=torch.float32, dim: int = 8) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((q_tokens, 4), (k_tokens, kv_heads), (k_tokens, kv_heads))
    return [torch.randn(2, tokens, heads, dim, generator=g).to(dtype).transpose(1, 2) for tokens, heads in shapes]


def oracle(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, in float64."""
    q, k, v = q.double(), *(t.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def oracle_gradients(upstream: Tensor, inputs: list[Tensor], causal: bool) -> list[Tensor]:
    leaves = [t.double().requires_grad_() for t in inputs]
    return list(torch.autograd.grad(oracle(*leaves, causal)[0], leaves, upstream.double()))


def assert_close(got: Any, right: Any, dtype: torch.dtype = torch.float32) -> None:
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def check(primitive: str, inputs: list[Tensor], causal: bool) -> None:
    """A primitive's forward and backward against the oracle."""
    dtype, run = inputs[0].dtype, PRIMITIVES[primitive]
    out, lse = run.forward(*inputs, causal, SCALE)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert_close((out, lse), oracle(*inputs, causal), dtype)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    gradients = run.backward(upstream, *inputs, out, lse, causal, SCALE)
    assert [t.shape for t in gradients] == [t.shape for t in inputs]
    assert_close(gradients, oracle_gradients(upstream, inputs, causal), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("q_tokens", "k_tokens", "causal"), [(13, 13, True), (13, 5, False), (5, 13, False)])
@pytest.mark.parametrize("primitive", ON_CPU)
def test_cpu(primitive: str, q_tokens: int, k_tokens: int, causal: bool, kv_heads: int, dtype: torch.dtype) -> None:
    check(primitive, qkv(q_tokens, k_tokens, kv_heads, dtype), causal)


@pytest.mark.parametrize("primitive", ON_CPU)
def test_gradients_of_some_keys_from_the_log_sum_exp_of_all(primitive: str) -> None:
    """What ring attention needs: the parts' dq add up to that of the whole, dk and dv are the whole's own rows."""
    run = PRIMITIVES[primitive]
    q, k, v = qkv(7, 12)
    out, lse = run.forward(q, k, v, False, SCALE)
    upstream = torch.randn(out.shape)
    dq, dk, dv = oracle_gradients(upstream, [q, k, v], False)
    parts = [
        run.backward(upstream, q, k[:, :, at], v[:, :, at], out, lse, False, SCALE)
        for at in (slice(0, 5), slice(5, 12))
    ]
    assert_close([parts[0][0] + parts[1][0]], [dq])
    assert_close([torch.cat([p[1] for p in parts], 2), torch.cat([p[2] for p in parts], 2)], [dk, dv])


@pytest.mark.parametrize("primitive", ON_CPU)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rectangles_that_share_rows_are_merged_into_the_whole(dtype: torch.dtype, primitive: str) -> None:
    inputs = qkv(12, 12, dtype=dtype)
    tiles = [Rectangle(0, 5, 0, 5, True), Rectangle(5, 12, 0, 5, False), Rectangle(5, 12, 5, 12, True)]
    out, lse = attend(primitive, *inputs, SCALE, tiles)
    assert_close((out, lse), oracle(*inputs, True), dtype)
    upstream = torch.randn(out.shape).to(dtype)
    gradients = attend_backward(primitive, upstream, *inputs, out, lse, SCALE, tiles)
    assert_close(gradients, oracle_gradients(upstream, inputs, True), dtype)


@pytest.mark.parametrize("primitive", ON_CPU)
@pytest.mark.parametrize("starts", [(0,), (0, 1, 9)])
def test_results_lie_in_memory_as_their_fake_ones(starts: tuple[int, ...], primitive: str) -> None:
    inputs, spans = [t[:1] for t in qkv(12, 12)], rectangles([(0, 12)], [(0, 12)], starts)
    out, lse = attend(primitive, *inputs, SCALE, spans)
    gradients = attend_backward(primitive, out, *inputs, out, lse, SCALE, spans)
    fakes = [seq_major(inputs[0]), new_lse(inputs[0]), *map(seq_major, inputs)]
    assert [*map(strides, (out, lse, *gradients))] == [*map(strides, fakes)]


def test_sum_heads_is_the_gradient_of_repeat_heads() -> None:
    k = torch.randn(2, 2, 3, 8, requires_grad=True)
    repeated = repeat_heads(k, 6)
    upstream = torch.randn(repeated.shape)
    assert_close([sum_heads(upstream, 2)], torch.autograd.grad(repeated, k, upstream))


@pytest.mark.parametrize(
    ("primitive", "dtype"), [("flash", torch.bfloat16), ("efficient", torch.float32), ("cudnn", torch.bfloat16)]
)
def test_cuda_primitives_fit_the_signatures_of_their_operators(primitive: str, dtype: torch.dtype) -> None:
    """On meta tensors: the arguments bind and the shapes come out right; numbers need a GPU."""
    inputs = [t.to("meta", dtype) for t in qkv(13, 13)]
    out, lse = PRIMITIVES[primitive].forward(*inputs, True, SCALE)
    assert (out.shape, lse.shape) == (inputs[0].shape, inputs[0].shape[:3])
    gradients = PRIMITIVES[primitive].backward(out, *inputs, out, lse, True, SCALE)
    assert [t.shape for t in gradients] == [t.shape for t in inputs]


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash_attn 2.8's two functions by their published signatures, computed by the CPU kernel."""

    def forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
        return_softmax,
    ):  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
        out, lse = CPU.forward(*(t.transpose(1, 2) for t in (q, k, v)), causal, softmax_scale)
        return out.transpose(1, 2), lse.contiguous(), torch.empty(0), torch.empty(2)

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
        assert softmax_lse.is_contiguous()
        assert all(t.is_contiguous() for t in (dq, dk, dv))
        mine = [t.transpose(1, 2) for t in (dout, q, k, v, out)]
        for total, part in zip((dq, dk, dv), CPU.backward(*mine, softmax_lse, causal, softmax_scale), strict=True):
            total.copy_(part.transpose(1, 2))
        return torch.empty(0)

    module = types.ModuleType("flash_attn.flash_attn_interface")
    module.__dict__.update(_flash_attn_forward=forward, _flash_attn_backward=backward)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize(("k_tokens", "causal"), [(13, True), (5, False)])
def test_flash_attention_2_is_called_by_its_published_signature(k_tokens: int, causal: bool) -> None:
    check("flash_attention_2", qkv(13, k_tokens), causal)
