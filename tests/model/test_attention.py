"""The SDPA kernel against an explicit softmax in float64, inside a real model, and the choice of a kernel."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

from yarn_train.errors import ConfigError
from yarn_train.model import attention
from yarn_train.model.attention import SDPA, causal_sdpa, choose_kernel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def oracle(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """softmax(scaling * q k + causal mask) v, [batch, tokens, heads, head_dim]."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[3]) if scaling is None else scaling)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def qkv(kv_heads: int, tokens: int = 11, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, tokens, 8, generator=g).to(dtype) for heads in (4, kv_heads, kv_heads)]


def run(attend: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Output and the three gradients under one fixed upstream gradient."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    output = attend(*leaves)
    upstream = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output, *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_causal_sdpa_is_the_explicit_softmax_forward_and_backward(kv_heads: int, scaling: float | None) -> None:
    inputs = qkv(kv_heads)
    ours = run(lambda q, k, v: causal_sdpa(nn.Module(), q, k, v, None, scaling=scaling)[0], inputs)
    right = run(lambda q, k, v: oracle(q, k, v, scaling), [t.double() for t in inputs])
    for got, expected in zip(ours, right, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_causal_sdpa_returns_no_weights_and_a_contiguous_output() -> None:
    output, weights = causal_sdpa(nn.Module(), *qkv(2), None)
    assert weights is None
    assert output.shape == (2, 11, 4, 8)
    assert output.is_contiguous()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "sinks"),
        ({"sliding_window": 10}, "sliding window of 10"),
        ({"attention_mask": torch.ones(1, 1, 11, 11, dtype=torch.bool)}, "mask"),
    ],
)
def test_causal_sdpa_refuses_what_it_would_ignore(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        causal_sdpa(nn.Module(), *qkv(2), **{"attention_mask": None, **given})


def test_causal_sdpa_refuses_cached_keys() -> None:
    query, key, value = qkv(2)
    with pytest.raises(ValueError, match="cached keys"):
        causal_sdpa(nn.Module(), query[:, :, -1:], key, value, None)


def test_a_window_that_covers_all_keys_and_options_that_are_off_are_accepted() -> None:
    causal_sdpa(nn.Module(), *qkv(2), None, softcap=None, s_aux=None, sliding_window=11)
    causal_sdpa(nn.Module(), *qkv(2), None, sliding_window=None)


def llama(implementation: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
    )
    config.use_cache = False
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, attn_implementation=implementation)


def test_a_llama_with_our_kernel_gives_the_logits_of_eager_attention() -> None:
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    ours, eager = llama(SDPA), llama("eager")
    assert ours.config._attn_implementation == SDPA
    torch.testing.assert_close(ours(ids).logits, eager(ids).logits, rtol=1e-5, atol=1e-5)


def test_transformers_builds_no_attention_mask_for_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def spy(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        masks.append(mask)
        return causal_sdpa(module, q, k, v, mask, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, SDPA, spy)
    llama(SDPA)(torch.zeros(1, 40, dtype=torch.long), position_ids=torch.arange(40)[None])
    assert masks == [None, None]  # one per layer
    assert SDPA not in AttentionMaskInterface().valid_keys()  # there a mask is built as soon as transformers likes


def test_the_kernel_gets_a_causal_flag_and_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    original = F.scaled_dot_product_attention

    def spy(*args: Tensor, **kwargs: Any) -> Tensor:
        seen.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    causal_sdpa(nn.Module(), *qkv(2), None, scaling=0.5)
    assert seen == {"dropout_p": 0.0, "scale": 0.5, "is_causal": True, "enable_gqa": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_on_the_cpu_is_sdpa_and_says_why(dtype: torch.dtype) -> None:
    kernel = choose_kernel("auto", CPU, dtype)
    assert (kernel.name, kernel.implementation) == ("sdpa", SDPA)
    assert "flash_attention_2 not used" in kernel.reason
    assert "CUDA GPU" in kernel.reason


def test_sdpa_by_name_is_sdpa_wherever_it_runs() -> None:
    kernel = choose_kernel("sdpa", CUDA, torch.bfloat16)
    assert (kernel.name, kernel.implementation) == ("sdpa", SDPA)
    assert "asked for by name" in kernel.reason


def test_flash_attention_by_name_on_the_cpu_is_an_error_that_says_what_is_missing_and_how_to_fix_it() -> None:
    with pytest.raises(ConfigError) as error:
        choose_kernel("flash_attention_2", CPU, torch.bfloat16)
    (problem,) = error.value.problems
    assert problem.startswith("model.attention: got 'flash_attention_2'")
    assert "needs a CUDA GPU" in problem
    assert "model.attention=auto" in problem


def test_flash_attention_in_float32_names_the_dtype_and_the_option() -> None:
    assert "torch.float32" in choose_kernel("auto", CUDA, torch.float32).reason
    with pytest.raises(ConfigError, match=r"float32; set model\.dtype=bfloat16"):
        choose_kernel("flash_attention_2", CUDA, torch.float32)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Pretend that flash_attn is installed (param True) or not (False)."""
    spec = importlib.machinery.ModuleSpec("flash_attn", None) if request.param else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.9")


@pytest.mark.parametrize("flash_attn", [False], indirect=True)
@pytest.mark.usefixtures("flash_attn")
def test_a_gpu_without_flash_attn_falls_back_on_auto_and_says_what_to_install() -> None:
    kernel = choose_kernel("auto", CUDA, torch.bfloat16)
    assert kernel.name == "sdpa"
    assert "pip install 'yarn-train[flash]'" in kernel.reason
    with pytest.raises(ConfigError, match="flash_attn package is not installed"):
        choose_kernel("flash_attention_2", CUDA, torch.bfloat16)


@pytest.mark.parametrize("flash_attn", [True], indirect=True)
@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("requested", ["auto", "flash_attention_2"])
def test_a_gpu_with_flash_attn_takes_it_in_half_precision(requested: str) -> None:
    kernel = choose_kernel(requested, CUDA, torch.bfloat16)
    assert (kernel.name, kernel.implementation) == ("flash_attention_2", "flash_attention_2")
    assert "flash_attn 2.9.9" in kernel.reason
