"""Our attention inside transformers against an explicit softmax in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from yarn_train.model.attention import attention, attention_function, local_attend
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.documents import table
from yarn_train.model.kept import active_store
from yarn_train.model.registry import SDPA

causal_attention = attention_function(local_attend("sdpa"))


def oracle(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, documents: Any = None) -> Tensor:
    """softmax(scaling * q k + causal mask inside documents) v, [batch, tokens, heads, head_dim]."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[3]) if scaling is None else scaling)
    numbers = torch.zeros(query.shape[0], tokens, dtype=torch.long)
    for row, starts in zip(numbers, documents or (), strict=False):
        row[list(starts)] = 1
    numbers = numbers.cumsum(1)
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) | (
        numbers[:, None, :, None] != numbers[:, None, None]
    )
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def qkv(kv_heads: int, tokens: int = 11, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, tokens, 8, generator=g).to(dtype) for heads in (4, kv_heads, kv_heads)]


def run(attend: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Output and the three gradients under one fixed upstream gradient."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    output = attend(*leaves)
    upstream = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output, *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


DOCUMENTS = [None, ((0, 4, 9), (0, 4, 9)), ((0, 1, 7), (0,))]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_the_explicit_softmax_forward_and_backward(
    kv_heads: int, scaling: float | None, documents: Any, dtype: torch.dtype
) -> None:
    inputs = qkv(kv_heads, dtype=dtype)
    options = {"scaling": scaling, "documents": documents}
    ours = run(lambda q, k, v: causal_attention(nn.Module(), q, k, v, None, **options)[0], inputs)
    right = run(lambda q, k, v: oracle(q, k, v, scaling, documents), [t.double() for t in inputs])
    for got, expected in zip(ours, right, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_attention_returns_no_weights_and_a_contiguous_output() -> None:
    output, weights = causal_attention(nn.Module(), *qkv(2), None)
    assert weights is None
    assert output.shape == (2, 11, 4, 8)
    assert output.is_contiguous()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "sinks"),
        ({"attention_mask": torch.ones(1, 1, 11, 11, dtype=torch.bool)}, "mask"),
    ],
)
def test_attention_refuses_what_it_would_ignore(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        causal_attention(nn.Module(), *qkv(2), **{"attention_mask": None, **given})


def test_attention_refuses_dropout() -> None:
    with pytest.raises(ValueError, match=r"dropout 0\.1"):
        causal_attention(nn.Module(), *qkv(2), None, dropout=0.1)


@pytest.mark.parametrize("documents", [((0, 5),), ((0, 5), (1, 5)), ((0, 5), (0, 11)), ((0, 5), (0, 5, 5)), ((0,), ())])
def test_attention_refuses_documents_that_are_not_starts_of_these_sequences(documents: Any) -> None:
    with pytest.raises(ValueError, match="documents: "):
        causal_attention(nn.Module(), *qkv(2), None, documents=documents)


def test_attention_refuses_cached_keys() -> None:
    query, key, value = qkv(2)
    with pytest.raises(ValueError, match="cached keys"):
        causal_attention(nn.Module(), query[:, :, -1:], key, value, None)


def test_a_window_that_covers_all_keys_and_options_that_are_off_are_accepted() -> None:
    causal_attention(nn.Module(), *qkv(2), None, softcap=None, s_aux=None, sliding_window=11)
    causal_attention(nn.Module(), *qkv(2), None, sliding_window=None)


def llama(implementation: str, yarn: dict[str, Any] | None = None) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
    )
    if yarn:
        given = {key: value for key, value in yarn.items() if value is not None}
        config.rope_parameters = {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 4,
            **given,
        }
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
        return causal_attention(module, q, k, v, mask, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, SDPA, spy)
    llama(SDPA)(torch.zeros(1, 40, dtype=torch.long), position_ids=torch.arange(40)[None])
    assert masks == [None, None]  # one per layer
    assert SDPA not in AttentionMaskInterface().valid_keys()  # there a mask is built as soon as transformers likes


ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gpt_neox"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_reach_the_kernel_in(architecture: str) -> None:
    """A document's logits are those of the document alone, whatever stands before it."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 50}
    config = AutoConfig.for_model(architecture, **sizes, num_hidden_layers=2, pad_token_id=0)
    for name, value in (("num_key_value_heads", 2), ("head_dim", 8), ("sliding_window", None)):
        if hasattr(config, name):
            setattr(config, name, value)
    if architecture == "gemma2":
        config.attn_logit_softcapping = None
    torch.manual_seed(0)
    model = CausalLM(AutoModelForCausalLM.from_config(config, attn_implementation=SDPA).eval())
    ids = torch.randint(1, 50, (2, 13), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(13).expand(2, 13)
    with torch.no_grad():
        alone = model(ids[:, 8:], positions[:, 8:])
        logits = model(ids, positions, documents=((0, 8), (0, 3, 8)))
        whole = model(ids, positions)
        ids[:, 2] = 0
        perturbed = model(ids, positions, documents=((0, 8), (0, 3, 8)))
    assert torch.equal(perturbed[:, 8:], logits[:, 8:])  # to the bit
    assert not torch.equal(perturbed[:, :8], logits[:, :8])
    torch.testing.assert_close(logits[:, 8:], alone, rtol=1e-5, atol=1e-5)
    assert (whole[:, 8:] - alone).abs().max() > 1e-4


def test_the_attention_factor_of_yarn_is_seen_through_the_kernel() -> None:
    """cos and sin carry it, so that a model with the kernel equals eager attention, and differs from factor 1."""
    logits = {}
    for name, factor in (("ours", None), ("eager", None), ("off", 1.0)):
        model = llama("eager" if name == "eager" else SDPA, {"factor": 16.0, "attention_factor": factor})
        with torch.no_grad():
            logits[name] = model(torch.arange(40)[None]).logits
    torch.testing.assert_close(logits["ours"], logits["eager"], rtol=1e-5, atol=1e-5)
    assert (logits["ours"] - logits["off"]).abs().max() > 1e-4


def operator_arguments() -> tuple[Any, ...]:
    inputs = (t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in qkv(2))
    return (*inputs, "cpu", 0.3, table(((0, 4), (0, 3, 9))))


def test_the_operator_keeps_what_torch_asks_of_operators() -> None:
    library.opcheck(attention, operator_arguments())


def test_the_log_sum_exp_has_no_gradient_so_none_can_be_lost() -> None:
    output, lse = attention(*operator_arguments())
    assert (output.requires_grad, lse.requires_grad) == (True, False)


class Recording:
    """Keeps results as they come; `replay` gives them back."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.replay = False

    def through(self, compute: Any) -> Any:
        if self.replay:
            return self.kept.pop(0)
        self.kept.append(compute())
        return self.kept[-1]


def test_a_kept_result_is_used_again_instead_of_the_kernel_and_gives_the_same_gradients(monkeypatch) -> None:
    arguments, store = operator_arguments(), Recording()
    with active_store(store):
        first = attention(*arguments)[0]
    assert store.kept[0][0].grad_fn is None  # else the store would hold the graph it is kept for
    store.replay = True
    with active_store(store), monkeypatch.context() as patch:
        patch.setattr("yarn_train.model.kernels.attend", None)
        second = attention(*arguments)[0]
    upstream = torch.linspace(-1, 1, first.numel()).view(first.shape)
    for a, b in zip(*(torch.autograd.grad(o, arguments[:3], upstream) for o in (first, second)), strict=True):
        assert torch.equal(a, b)


def test_a_trace_under_fake_tensors_sees_one_operator_and_what_the_store_keeps() -> None:
    store = Recording()
    with FakeTensorMode(), active_store(store):
        leaves = [torch.empty(2, heads, 11, 8).requires_grad_() for heads in (4, 2, 2)]
        output, _ = attention(*leaves, *operator_arguments()[3:])
        output.sum().backward()
    assert [tuple(t.shape) for t in store.kept[0]] == [(2, 4, 11, 8), (2, 4, 11)]
    assert [t.grad.shape for t in leaves] == [t.shape for t in leaves]


def test_a_compiled_graph_has_the_operator_once_and_the_store_gets_real_results() -> None:
    arguments, store = operator_arguments(), Recording()
    expected = torch.autograd.grad(attention(*arguments)[0].square().sum(), arguments[:3])
    compiled = torch.compile(lambda *a: attention(*a)[0].square().sum(), fullgraph=True, backend="aot_eager")
    with active_store(store):
        loss = compiled(*arguments)
    assert len(store.kept) == 1
    assert type(store.kept[0][0]) is Tensor
    for got, right in zip(torch.autograd.grad(loss, arguments[:3]), expected, strict=True):
        torch.testing.assert_close(got, right)
