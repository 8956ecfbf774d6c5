"""Attention with a sliding window against an explicit mask, and models with windows against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import Gemma3TextConfig, MistralConfig, Phi3Config, Qwen2Config

from yarn_train.config import RopeConfig
from yarn_train.model import flops
from yarn_train.model.attention import attention, attention_function, local_attend
from yarn_train.model.cached import attend_cached
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.documents import table
from yarn_train.model.load import build_model, run_config
from yarn_train.model.local import window_problems, windows, with_window
from yarn_train.model.registry import choose_kernel
from yarn_train.model.windows import band

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def mask(rows: int, length: int, window: int, documents: Any) -> Tensor:
    """[B, 1, S, S], whether a query sees a key: written as the definition says it."""
    seen = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for row in range(rows):
        starts = documents[row] if documents else (0,)
        for i in range(length):
            first = max(start for start in starts if start <= i)
            seen[row, 0, i, max(first, i - window + 1 if window else 0) : i + 1] = True
    return seen


def oracle(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor) -> Tensor:
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


def tensors(rows: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = torch.Generator().manual_seed(length)
    shapes = [(rows, heads, length, 8) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, Any]:
    rows, length = draw(st.integers(1, 2)), draw(st.integers(1, 40))
    window = draw(st.integers(1, length + 2))
    starts = st.sets(st.integers(1, max(1, length - 1)), max_size=4).map(
        lambda s: (0, *sorted(n for n in s if n < length))
    )
    documents = draw(st.none() | st.tuples(*[starts] * rows))
    return rows, length, window, documents


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_window_is_the_explicit_mask_forward_and_backward(case: tuple[int, int, int, Any]) -> None:
    rows, length, window, documents = case
    q, k, v = tensors(rows, length)
    right = oracle(q, k, v, 0.4, mask(rows, length, window, documents))
    weights = torch.linspace(-1, 1, right.numel(), dtype=torch.float64).view_as(right)
    wanted = torch.autograd.grad((right * weights).sum(), [q, k, v])
    starts = None if documents is None else table(documents)
    got = attention(q, k, v, "eager", 0.4, starts, window)[0]
    torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad((got * weights).sum(), [q, k, v])
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_band_has_each_pair_once_and_no_other(case: tuple[int, int, int, Any]) -> None:
    rows, length, window, documents = case
    made = band(documents or ((0,),) * rows, length, window)
    count = torch.zeros(rows * length, rows * length, dtype=torch.int64)
    for s in (*made.blocks, *made.before):
        square = torch.ones(s.q1 - s.q0, s.k1 - s.k0, dtype=torch.int64)
        count[s.q0 : s.q1, s.k0 : s.k1] += square.tril() if s.causal else square
    for s in made.squares:
        for i in range(s.q0, s.q1):
            for j in range(s.k0, i + 1):
                count[made.queries[i], made.keys[j]] += 1
    wanted = torch.block_diag(*mask(rows, length, window, documents)[:, 0].long())
    assert torch.equal(count, wanted)
    assert len(set(made.queries)) == len(made.queries)  # each row at most once, which Merger.add_rows needs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_kernel_computes_windows(dtype: torch.dtype) -> None:
    inputs = tensors(2, 150, dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    out = attention(*inputs, "cpu", 8**-0.5, None, 33)[0]
    right = oracle(*exact, 8**-0.5, mask(2, 150, 33, None))
    limit = 2e-6 if dtype == torch.float32 else 1e-2
    weights = torch.linspace(-1, 1, right.numel(), dtype=torch.float64).view_as(right)
    ours = torch.autograd.grad((out * weights.to(dtype)).sum(), inputs)
    wanted = torch.autograd.grad((right * weights).sum(), exact)
    for got, expected in [(out, right), *zip(ours, wanted, strict=True)]:
        assert (got.double() - expected).norm() <= limit * expected.norm()


@pytest.mark.parametrize("new", [1, 3, 20])
@pytest.mark.parametrize("window", [1, 4, 19, 40])
def test_cached_keys_are_seen_through_the_window(new: int, window: int) -> None:
    q, k, v = (t.detach() for t in tensors(2, 37, torch.float32))
    right = oracle(q, k, v, 0.3, mask(2, 37, window, None))[:, :, -new:]
    got = attend_cached("eager", q[:, :, -new:], k, v, 0.3, window)
    torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def test_a_layer_that_asks_for_a_window_gets_it() -> None:
    q, k, v = tensors(1, 12, torch.float32)
    function = attention_function(local_attend("eager"))
    got = function(nn.Module(), q, k, v, None, scaling=0.3, sliding_window=5)[0]
    right = oracle(q, k, v, 0.3, mask(1, 12, 5, None)).transpose(1, 2)
    torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


GEMMA = {"sliding_window": 7, "num_hidden_layers": 3, "head_dim": 8, "sliding_window_pattern": 3}
MODELS = {
    "mistral": (MistralConfig, {"sliding_window": 7}),
    "phi3": (Phi3Config, {"sliding_window": 7}),
    "qwen2": (Qwen2Config, {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}),
    "gemma3": (Gemma3TextConfig, GEMMA),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_with_windows_have_the_logits_and_gradients_of_transformers(name: str) -> None:
    """transformers' own eager attention with its own masks is the judge; the sequence is longer than the window."""
    config_class, extra = MODELS[name]
    rope = RopeConfig(factor=4.0, sliding_window="keep")
    torch.manual_seed(0)
    model = build_model(None, config_class(**SIZES | extra), rope, choose_kernel("eager", CPU, torch.float32))
    ids = torch.randint(0, 64, (2, 30), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(30).expand(2, -1)

    def run(module: Any) -> tuple[Tensor, list[Tensor]]:
        logits = module(ids, positions) if isinstance(module, CausalLM) else module(ids, position_ids=positions).logits
        grads = torch.autograd.grad((logits * torch.linspace(-1, 1, 64)).sum(), list(model.parameters()))
        return logits, list(grads)

    ours = run(CausalLM(model).eval())
    model.set_attn_implementation("eager")
    theirs = run(model.eval())
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    for got, wanted in zip(ours[1], theirs[1], strict=True):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()


def test_windows_of_a_config_by_layer() -> None:
    assert windows(MistralConfig(**SIZES, sliding_window=7)) == (7, 7)
    assert windows(MistralConfig(**SIZES, sliding_window=None)) == (0, 0)
    assert windows(Gemma3TextConfig(**SIZES | GEMMA)) == (7, 7, 0)
    assert windows(Qwen2Config(**SIZES, sliding_window=7, use_sliding_window=False)) == (0, 0)


def test_each_stage_may_have_its_own_window() -> None:
    base = MistralConfig(**SIZES, sliding_window=7)
    for asked, found in ((9, (9, 9)), ("off", (0, 0)), ("keep", (7, 7))):
        assert windows(run_config(base, RopeConfig(factor=2.0, sliding_window=asked))) == found
    assert windows(base) == (7, 7)
    mixed = Qwen2Config(**SIZES, sliding_window=7, use_sliding_window=True, max_window_layers=1)
    assert windows(with_window(mixed, "off")) == (0, 0)
    reloaded = Qwen2Config.from_dict(with_window(mixed, "off").to_dict())
    assert windows(reloaded) == (0, 0)


def test_a_window_over_all_layers_needs_an_answer() -> None:
    base = MistralConfig(**SIZES, sliding_window=7)
    (line,) = window_problems(base, None, 32)
    assert "rope.sliding_window" in line
    assert "7 tokens" in line
    assert all(window_problems(base, asked, 32) == [] for asked in ("off", "keep", 9))
    assert window_problems(base, None, 7) == []  # Phi-3 128k names a window of 262,144 tokens
    assert window_problems(base, None, None) == [line]
    gemma = Gemma3TextConfig(**SIZES | GEMMA)
    assert window_problems(gemma, None, 32) == []
    (line,) = window_problems(gemma, "off", 32)
    assert "not extended" in line
    (line,) = window_problems(MistralConfig(**SIZES, sliding_window=None), 9, 32)
    assert "no sliding window" in line


def test_flops_of_a_window_count_its_pairs() -> None:
    def pairs(length: int, window: int) -> int:
        return int(mask(1, length, window, None).sum())

    for length, window in ((40, 7), (40, 40), (40, 50), (8, 1)):
        linear = flops.flops_per_token(0, 1, 1, length, (window,))
        diagonal = 0.5 * min(length, window)  # which the formula leaves out, as it does for whole squares
        assert linear * length / 12 == pytest.approx(pairs(length, window) - diagonal, rel=1e-12)
    assert flops.flops_per_token(5, 3, 8, 40, (0, 7, 0)) == 30 + 48 * (80 + 14 - 49 / 40)
