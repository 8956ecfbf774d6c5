"""Attention to cached keys against an explicit softmax; what it refuses, and what it leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.model import registry
from yarn_train.model.attention import local_attend, register
from yarn_train.model.cached import NAMES, attend_cached, attention_function, cached, kernel_of

SIZES = [(1, 1), (1, 9), (3, 9), (9, 9), (2, 300)]  # new positions, all keys


def qkv(new: int, total: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = [(4, new), (kv_heads, total), (kv_heads, total)]
    return [torch.randn(2, heads, tokens, 8, generator=g).to(dtype) for heads, tokens in sizes]


def oracle(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k + mask) v in float64, the last query seeing all keys."""
    q, k, v = (t.double().repeat_interleave(4 // t.shape[1], dim=1) for t in (q, k, v))
    new, total = q.shape[2], k.shape[2]
    hidden = torch.arange(total) > torch.arange(total - new, total)[:, None]
    return (q @ k.transpose(2, 3) * scale).masked_fill(hidden, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "total"), SIZES)
def test_the_last_positions_see_all_keys_up_to_their_own(new: int, total: int, kv_heads: int):
    q, k, v = qkv(new, total, kv_heads)
    out = attend_cached("sdpa", q, k, v, 0.7)
    assert torch.allclose(out.double(), oracle(q, k, v, 0.7), atol=1e-6)


def test_in_16_bits_pieces_are_merged_in_32():
    q, k, v = qkv(3, 60, 2, torch.bfloat16)
    out = attend_cached("sdpa", q, k, v, 0.3)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.double(), oracle(q, k, v, 0.3), atol=2**-7)


def test_as_transformers_calls_it():
    q, k, v = qkv(2, 7, 2)
    out, weights = attention_function("sdpa")(torch.nn.Module(), q, k, v, None)
    assert weights is None
    assert out.is_contiguous()
    assert torch.allclose(out.double(), oracle(q, k, v, 1 / math.sqrt(8)).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"attention_mask": torch.zeros(2, 1, 2, 7)}, "a mask"),
        ({"attention_mask": None, "softcap": 30.0}, "a softcap"),
        ({"attention_mask": None, "dropout": 0.1}, "dropout 0.1"),
    ],
)
def test_what_it_would_not_apply_is_refused(given: dict, named: str):
    with pytest.raises(ValueError, match=named):
        attention_function("sdpa")(torch.nn.Module(), *qkv(2, 7, 2), **given)


def test_a_window_that_hides_nothing_is_fine():
    attention_function("sdpa")(torch.nn.Module(), *qkv(2, 7, 2), None, sliding_window=7)


FA2 = registry.IMPLEMENTATIONS["flash_attention_2"]
IMPLEMENTATIONS = {
    **{name: kernel for kernel, name in registry.IMPLEMENTATIONS.items()},
    "eager": "sdpa",
    f"{FA2}_context_0_1": "flash_attention_2",
    **{name: kernel for kernel, name in NAMES.items()},
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_kernel_stays_the_one_the_model_was_loaded_with(implementation: str):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **sizes))
    register(f"{FA2}_context_0_1", local_attend("sdpa"))
    model.set_attn_implementation(implementation)
    kernel = IMPLEMENTATIONS[implementation]
    assert kernel_of(model) == kernel
    with cached(model):
        assert model.config._attn_implementation == NAMES[kernel]
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize(("kernel", "primitive"), [("flex", "cpu"), ("sdpa_cudnn", "cpu"), ("eager", "eager")])
def test_kernels_that_prepare_for_each_shape_leave_cached_keys_to_sdpa(kernel: str, primitive: str, monkeypatch):
    asked = []
    monkeypatch.setattr("yarn_train.model.kernels.attend", lambda name, q, *rest: asked.append(name) or (q, None))
    attend_cached(kernel, *qkv(1, 9, 2), 0.3)
    assert asked == [primitive]
