"""All losses against float64 cross-entropy, and the promise that only one chunk of logits ever exists."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import loss_memory
from yarn_train.config import MemoryConfig
from yarn_train.data import batch
from yarn_train.errors import ConfigError
from yarn_train.model import loss as losses
from yarn_train.model.loss import IGNORE_INDEX, LOSSES, MAX_LOGITS, chunked_loss, full_loss, fused_loss, loss_missing

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
both = pytest.mark.parametrize("loss", [full_loss, chunked_loss], ids=["full", "chunked"])


class NewTensors(TorchDispatchMode):
    """Records how many elements each tensor made under it has; views and in-place operations make none."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view and not func._schema.is_mutable:
            self.sizes.append(out.numel())
        return out


def sample(tokens: int, vocab: int, width: int, ignored: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and labels of which about a share `ignored` is IGNORE_INDEX."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, vocab, (tokens,), generator=g)
    labels[torch.rand(tokens, generator=g) < ignored] = IGNORE_INDEX
    return torch.randn(tokens, width, generator=g), torch.randn(vocab, width, generator=g), labels


def with_grads(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Value of loss * scale and its gradients by hidden and weight."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = loss(hidden, weight, labels) * scale
    value.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return value.detach(), hidden.grad, weight.grad


def oracle(hidden: Tensor, weight: Tensor, labels: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    """The same in float64, by torch alone."""

    def cross_entropy(h: Tensor, w: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(h @ w.T, target, ignore_index=-100, reduction="sum")

    return with_grads(cross_entropy, hidden.double(), weight.double(), labels, scale)


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def set_chunk(patch: pytest.MonkeyPatch, tokens: int, vocab: int) -> None:
    patch.setattr(losses, "CPU_CHUNK_LOGITS", tokens * vocab)
    patch.setattr(losses, "MIN_CHUNK_TOKENS", 1)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    tokens=st.integers(1, 24),
    vocab=st.integers(2, 40),
    width=st.integers(1, 12),
    chunk=st.integers(1, 26),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    scale=st.sampled_from([1.0, 1 / 7, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_full_and_chunked_are_float64_cross_entropy_with_both_gradients(
    tokens: int, vocab: int, width: int, chunk: int, ignored: float, scale: float, seed: int
) -> None:
    inputs = sample(tokens, vocab, width, ignored, seed)
    expected = oracle(*inputs, scale)
    assert_same(with_grads(full_loss, *inputs, scale), expected)
    with pytest.MonkeyPatch.context() as patch:
        set_chunk(patch, chunk, vocab)
        assert_same(with_grads(chunked_loss, *inputs, scale), expected)


@both
def test_all_labels_ignored_is_exactly_zero_and_not_nan(loss: Loss) -> None:
    hidden, weight, labels = sample(9, 11, 4)
    value, *grads = with_grads(loss, hidden, weight, torch.full_like(labels, IGNORE_INDEX))
    assert value.item() == 0.0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@both
def test_ignored_tokens_get_no_gradient_even_when_their_hidden_state_is_huge(loss: Loss) -> None:
    hidden, weight, labels = sample(8, 11, 4, ignored=0.0)
    labels[3] = IGNORE_INDEX
    hidden[3] = 1e4
    value, grad_hidden, grad_weight = with_grads(loss, hidden, weight, labels)
    kept = torch.arange(8) != 3
    expected = oracle(hidden[kept], weight, labels[kept])
    assert torch.equal(grad_hidden[3], torch.zeros(4))
    assert_same((value, grad_hidden[kept], grad_weight), expected)


@both
@pytest.mark.parametrize("cuts", [[12], [1, 11], [5, 5, 2], [3] * 4])
def test_sums_and_gradients_add_up_over_any_split_of_the_tokens(loss: Loss, cuts: list[int]) -> None:
    hidden, weight, labels = sample(12, 17, 6)
    valid = int((labels != IGNORE_INDEX).sum())
    whole = with_grads(loss, hidden, weight, labels, 1 / valid)
    pairs = zip(hidden.split(cuts), labels.split(cuts), strict=True)
    parts = [with_grads(loss, h, weight, target, 1 / valid) for h, target in pairs]
    values, by_hidden, by_weight = zip(*parts, strict=True)
    assert_same((sum(values), torch.cat(by_hidden), sum(by_weight)), whole)


def test_large_logits_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = sample(10, 13, 4)
    set_chunk(monkeypatch, 3, 13)
    assert_same(with_grads(chunked_loss, hidden * 100, weight, labels), oracle(hidden * 100, weight, labels))


@both
def test_bfloat16_inputs_give_a_float32_loss_within_bfloat16_rounding(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, labels = sample(64, 50, 32)
    hidden, weight = hidden.bfloat16(), (weight / 6).bfloat16()
    set_chunk(monkeypatch, 7, 50)
    value, *grads = with_grads(loss, hidden, weight, labels)
    exact_value, *exact = oracle(hidden, weight, labels)
    assert value.dtype == torch.float32
    assert [g.dtype for g in grads] == [torch.bfloat16] * 2
    torch.testing.assert_close(value.double(), exact_value, rtol=2e-3, atol=0.0)
    for grad, right in zip(grads, exact, strict=True):
        assert (grad.double() - right).norm() < 1e-2 * right.norm()


def test_weight_gradient_of_many_bfloat16_chunks_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal contributions: a bf16 sum would stop growing after a few hundred."""
    hidden = torch.ones(1200, 4, dtype=torch.bfloat16)
    weight = torch.zeros(4, 4, dtype=torch.bfloat16)
    labels = torch.zeros(1200, dtype=torch.long)
    set_chunk(monkeypatch, 1, 4)
    *_, grad = with_grads(chunked_loss, hidden, weight, labels)
    torch.testing.assert_close(grad[0].float(), torch.full((4,), -900.0), rtol=5e-3, atol=0.0)


@both
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_frozen_input_leaves_the_other_gradient_right(loss: Loss, frozen: str) -> None:
    hidden, weight, labels = sample(10, 13, 4)
    _, grad_hidden, grad_weight = oracle(hidden, weight, labels)
    hidden.requires_grad_(frozen != "hidden")
    weight.requires_grad_(frozen != "weight")
    loss(hidden, weight, labels).backward()
    learned, right = (weight, grad_weight) if frozen == "hidden" else (hidden, grad_hidden)
    still = hidden if frozen == "hidden" else weight
    assert still.grad is None
    assert learned.grad is not None
    assert_same((learned.grad,), (right,))


def test_chunked_never_makes_more_than_one_chunk_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocab, width, chunk = 60, 100, 4, 8
    inputs = sample(tokens, vocab, width)
    set_chunk(monkeypatch, chunk, vocab)
    with NewTensors() as full:
        with_grads(full_loss, *inputs)
    with NewTensors() as chunked:
        with_grads(chunked_loss, *inputs)
    assert max(full.sizes) == tokens * vocab  # the recorder does see logits
    assert max(chunked.sizes) == chunk * vocab
    assert chunked.sizes.count(chunk * vocab) == 1  # whose memory all chunks share


@pytest.mark.parametrize("grad_mode", [True, False])
def test_inference_allocates_no_gradient_buffers(grad_mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without grad mode, or with nothing to learn, one chunk of logits is the largest tensor; the head is larger."""
    vocab, width = 20, 50
    hidden, weight, labels = sample(30, vocab, width)
    weight.requires_grad_(not grad_mode)
    set_chunk(monkeypatch, 5, vocab)
    with torch.set_grad_enabled(grad_mode), NewTensors() as made:
        value = chunked_loss(hidden, weight, labels)
    assert max(made.sizes) == 5 * vocab
    assert not value.requires_grad
    torch.testing.assert_close(value, full_loss(hidden, weight, labels).detach(), rtol=1e-5, atol=1e-5)


def test_a_chunk_fits_the_budget_but_never_falls_below_the_minimum() -> None:
    assert losses.chunk_tokens(torch.empty(32000, 1)) == 2**22 // 32000 == 131
    assert losses.chunk_tokens(torch.empty(256000, 1)) == losses.MIN_CHUNK_TOKENS


def test_the_loss_and_the_batches_agree_on_the_ignored_label() -> None:
    assert losses.IGNORE_INDEX == batch.IGNORE_INDEX == -100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_equals_full(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value to 1e-6 and gradients to 1e-5 of their norm in fp32; within bf16's rounding in bf16."""
    hidden, weight, labels = sample(200, 300, 64)
    hidden, weight = hidden.to(dtype), (weight / 8).to(dtype)
    set_chunk(monkeypatch, 7, 300)
    value, *grads = with_grads(chunked_loss, hidden, weight, labels, 1 / 150)
    right, *right_grads = with_grads(full_loss, hidden, weight, labels, 1 / 150)
    torch.testing.assert_close(value, right, rtol=1e-6, atol=0.0)
    for grad, expected in zip(grads, right_grads, strict=True):
        assert (grad - expected).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * expected.norm()


def test_a_step_at_16k_tokens_and_llama_3s_vocabulary_needs_a_sixth_of_the_memory() -> None:
    """Above weights, gradients and moments; traced with fake tensors, so that 24 GiB need not be there."""
    full, chunked = (loss_memory.measure(name, 16_384, 128_256, 128, traced=True) for name in ("full", "chunked"))
    assert full["above"] == pytest.approx(3 * 4 * 16_384 * 128_256, rel=0.01)  # softmax and two gradients in fp32
    assert chunked["above"] < full["above"] / 6


@pytest.mark.long
def test_chunked_with_more_logits_than_32_bits_can_index() -> None:
    """Two kinds of hidden state, of width 1, so that float64 sums over the vocabulary are all that is needed."""
    vocab, tokens = 128_256, 17_000
    assert tokens * vocab > 2**31
    weight = torch.linspace(-1, 1, vocab).unsqueeze(1)
    kind = torch.arange(tokens) % 3 == 0
    hidden = torch.where(kind, 1.0, -2.0).unsqueeze(1)
    labels = torch.arange(tokens) * 7 % vocab
    labels[::5] = IGNORE_INDEX
    got = with_grads(chunked_loss, hidden, weight, labels)
    valid, target = labels != IGNORE_INDEX, labels.clamp_min(0)
    w, loss = weight.double().squeeze(1), torch.zeros((), dtype=torch.float64)
    by_hidden, by_weight = torch.zeros(tokens, dtype=torch.float64), torch.zeros(vocab, dtype=torch.float64)
    for h, here in ((1.0, valid & kind), (-2.0, valid & ~kind)):
        p = torch.softmax(h * w, 0)
        loss += (torch.logsumexp(h * w, 0) - h * w[target[here]]).sum()
        by_hidden[here] = (p * w).sum() - w[target[here]]
        by_weight += h * here.sum() * p
        by_weight.index_add_(0, target[here], torch.full((int(here.sum()),), -h, dtype=torch.float64))
    torch.testing.assert_close(got[0].double(), loss, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(got[1].double().squeeze(1), by_hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[2].double().squeeze(1), by_weight, rtol=1e-4, atol=1e-3)


def test_full_refuses_more_logits_than_32_bits_can_index() -> None:
    hidden, weight = torch.empty(65_536, 1, device="meta"), torch.empty(32_768, 1, device="meta")
    labels = torch.empty(65_536, dtype=torch.long, device="meta")
    with pytest.raises(ConfigError, match=r"memory\.loss.*2,147,483,648 logits") as error:
        full_loss(hidden, weight, labels)
    assert "chunked" in str(error.value)
    assert loss_missing("full", torch.device("cuda"), MAX_LOGITS) is None
    assert loss_missing("chunked", torch.device("cpu"), MAX_LOGITS + 1) is None


def test_the_fused_loss_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUDA GPU" in str(loss_missing("fused", torch.device("cpu"), 1))
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: None)
    assert "yarn-train[fused]" in str(loss_missing("fused", torch.device("cuda"), 1))
    monkeypatch.setattr(losses.importlib.util, "find_spec", lambda name: name == "liger_kernel")
    assert loss_missing("fused", torch.device("cuda"), 1) is None


def test_every_choice_of_the_option_is_a_loss() -> None:
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(MemoryConfig)}["loss"]
    assert set(LOSSES) == set(choices)


def _liger(  # type: ignore[no-untyped-def]  # liger-kernel 0.8.5's own signature
    _input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
):
    assert (bias, ce_weight, lse_square_scale, softcap, return_z_loss) == (None, None, 0.0, None, False)
    assert accum_dtype == torch.float32
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    return F.cross_entropy(_input @ weight.T, target, **options), None, None, None


def test_fused_asks_liger_for_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which argument is which: its kernels need a GPU."""
    function = types.SimpleNamespace(LigerFusedLinearCrossEntropyFunction=types.SimpleNamespace(apply=_liger))
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", function)
    inputs = sample(20, 30, 8)
    assert_same(with_grads(fused_loss, *inputs, 1 / 7), oracle(*inputs, 1 / 7))
    expected = oracle(*inputs)[0].item()
    hidden, weight, labels = inputs
    with pytest.raises(ValueError, match="chunked_loss"):
        fused_loss(hidden, weight.requires_grad_(), labels)
    with torch.no_grad():
        assert fused_loss(hidden, weight, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_float64_cross_entropy(dtype: torch.dtype) -> None:
    pytest.importorskip("liger_kernel")
    hidden, weight, labels = sample(300, 1000, 64)
    hidden, weight, labels = hidden.to("cuda", dtype), (weight / 8).to("cuda", dtype), labels.cuda()
    value, *grads = with_grads(fused_loss, hidden, weight, labels, 1 / 200)
    right, *right_grads = oracle(hidden, weight, labels, 1 / 200)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(value.double(), right, rtol=tolerance, atol=0.0)
    for grad, expected in zip(grads, right_grads, strict=True):
        assert (grad.double() - expected).norm() < tolerance * expected.norm()
    assert fused_loss(hidden.requires_grad_(), weight, torch.full_like(labels, IGNORE_INDEX)).item() == 0.0
