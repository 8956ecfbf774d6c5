"""Kernels for many documents in one call: what can be seen of them without a GPU, and their use by the operator."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yarn_train.model import primitives
from yarn_train.model.attention import attention
from yarn_train.model.backends import efficient
from yarn_train.model.backends.efficient import LSE_ALIGNMENT, little_padding, padded, unpadded
from yarn_train.model.documents import table
from yarn_train.model.primitives import PRIMITIVES, Primitive
from yarn_train.model.varlen import Varlen, always, longest, on_device

SCALE = 0.3
CPU = PRIMITIVES["cpu"]
DOCUMENTS = ((0, 4, 5), (0, 1, 9), (0,))  # of 13 positions
CUTS = (0, 4, 5, 13, 14, 22, 26, 39)


def qkv(rows: int = 3, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 13, heads, 8, generator=g).to(dtype).transpose(1, 2) for heads in (4, kv_heads, kv_heads)]


def squares(cuts: tuple[int, ...]) -> Iterator[slice]:
    return (slice(start, end) for start, end in pairwise(cuts))


def loop_forward(q: Tensor, k: Tensor, v: Tensor, cuts: tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
    """By the CPU kernel, [T, H, D] -> [T, H, D] and [H, T]."""
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    parts = [CPU.forward(q[:, :, at], k[:, :, at], v[:, :, at], True, scale) for at in squares(cuts)]
    return torch.cat([p[0] for p in parts], 2)[0].transpose(0, 1), torch.cat([p[1] for p in parts], 2)[0]


def loop_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cuts: tuple[int, ...], scale: float
) -> Any:
    assert lse.is_contiguous()
    given = [t.transpose(0, 1).unsqueeze(0) for t in (dout, q, k, v, out)]
    parts = [CPU.backward(*(t[:, :, at] for t in given), lse[None, :, at], True, scale) for at in squares(cuts)]
    return tuple(torch.cat(part, 2)[0].transpose(0, 1) for part in zip(*parts, strict=True))


def forward_and_gradients(kernel: str, inputs: list[Tensor], documents: Any) -> list[Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    out, lse = attention(*leaves, kernel, SCALE, None if documents is None else table(documents))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), lse, *torch.autograd.grad(out, leaves, upstream)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What the kernel "looped" was called with: a CPU kernel that takes many documents at once."""
    seen = []

    def forward(q: Tensor, k: Tensor, v: Tensor, cuts: tuple[int, ...], scale: float) -> Any:
        seen.append(cuts)
        return loop_forward(q, k, v, cuts, scale)

    looped = Primitive(CPU.forward, CPU.backward, Varlen(forward, loop_backward))
    monkeypatch.setitem(primitives.PRIMITIVES, "looped", looped)
    return seen


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("documents", [DOCUMENTS, ((0, 4, 5),) * 3, ((0, 1, 9),)])
def test_one_call_for_all_documents_of_a_batch_is_the_loop_over_them(calls: Any, documents: Any, kv_heads: int) -> None:
    inputs = qkv(len(documents), kv_heads)
    ours = forward_and_gradients("looped", inputs, documents)
    for got, right in zip(ours, forward_and_gradients("cpu", inputs, documents), strict=True):
        assert torch.equal(got, right)
        assert got.stride() == right.stride()
    assert len(calls) == 1
    if documents is DOCUMENTS:
        assert calls == [CUTS]


def test_one_document_needs_no_cuts(calls: Any) -> None:
    forward_and_gradients("looped", qkv(), None)
    forward_and_gradients("looped", qkv(1), ((0,),))
    assert calls == []


def test_documents_that_do_not_suit_a_kernel_are_taken_one_by_one(calls: Any, monkeypatch: Any) -> None:
    varlen = PRIMITIVES["looped"].varlen
    assert varlen is not None
    picky = Primitive(CPU.forward, CPU.backward, Varlen(varlen.forward, varlen.backward, lambda cuts: False))
    monkeypatch.setitem(primitives.PRIMITIVES, "looped", picky)
    ours, right = (forward_and_gradients(kernel, qkv(), DOCUMENTS) for kernel in ("looped", "cpu"))
    assert calls == []
    assert all(map(torch.equal, ours, right))


def test_cuts_are_int32_and_copied_once() -> None:
    ends = on_device(CUTS, torch.device("cpu"))
    assert ends.dtype == torch.int32
    assert ends.tolist() == list(CUTS)
    assert on_device(CUTS, torch.device("cpu")) is ends
    assert longest(CUTS) == 13


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6))
def test_the_padded_log_sum_exp_has_one_row_per_document(lengths: list[int]) -> None:
    cuts = tuple(sum(lengths[:i]) for i in range(len(lengths) + 1))
    lse = torch.randn(2, cuts[-1])
    made = padded(lse, cuts)
    assert made.is_contiguous()
    assert made.shape[2] % LSE_ALIGNMENT == 0
    assert longest(cuts) <= made.shape[2] < longest(cuts) + LSE_ALIGNMENT
    for row, at, length in zip(made, squares(cuts), lengths, strict=True):
        assert torch.equal(row[:, :length], lse[:, at])
        assert bool((row[:, length:] == torch.inf).all())
    assert torch.equal(unpadded(made, cuts), lse)


def test_a_long_and_many_short_documents_are_not_padded() -> None:
    assert little_padding((0, 3))
    assert little_padding(tuple(range(0, 6401, 64)))
    assert little_padding((*range(0, 6400, 640), 12800))
    assert not little_padding((*range(640), 6400))


def heads_first(t: Tensor) -> Tensor:
    """[1, T, H, D] -> [T, H, D]."""
    return t.squeeze(0)


class Cuda:
    """torch's operators by the names and order of their arguments, computed by the CPU kernel."""

    @staticmethod
    def _flash_attention_forward(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, scale=None,
        window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None, block_table=None,
        num_splits=None,
    ):  # fmt: skip
        assert (max_q, max_k, dropout_p, is_causal, return_debug_mask) == (13, 13, 0.0, True, False)
        assert torch.equal(cum_seq_q, cum_seq_k)
        out, lse = loop_forward(query, key, value, tuple(cum_seq_q.tolist()), scale)
        return out, lse, None, None, None

    @staticmethod
    def _flash_attention_backward(
        grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
        rng_state, unused, scale=None, window_size_left=None, window_size_right=None,
    ):  # fmt: skip
        assert (max_q, max_k, dropout_p, is_causal) == (13, 13, 0.0, True)
        assert rng_state.dtype == torch.uint64
        return loop_backward(grad_out, query, key, value, out, logsumexp, tuple(cum_seq_q.tolist()), scale)

    @staticmethod
    def _efficient_attention_forward(
        query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type,
        compute_log_sumexp=False, scale=None, seqlen_k=None, window_size=None,
    ):  # fmt: skip
        assert (max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type, compute_log_sumexp) == (13, 13, 0.0, 1, True)
        assert query.shape[:3] == key.shape[:3] == value.shape[:3]  # no grouped heads
        cuts = tuple(cu_seqlens_q.tolist())
        out, lse = loop_forward(*map(heads_first, (query, key, value)), cuts, scale)
        return out.unsqueeze(0), padded(lse, cuts), None, None, max_seqlen_q, max_seqlen_k

    @staticmethod
    def _efficient_attention_backward(
        grad_out_, query, key, value, bias, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, logsumexp,
        dropout_p, philox_seed, philox_offset, custom_mask_type, bias_requires_grad, scale=None, num_splits_key=None,
        window_size=None, shared_storage_dqdkdv=False,
    ):  # fmt: skip
        assert (max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type, bias_requires_grad) == (13, 13, 0.0, 1, False)
        assert logsumexp.shape == (7, 4, 32)
        assert grad_out_.is_contiguous()
        assert out.is_contiguous()  # there is no stride of its rows among the kernel's parameters
        cuts = tuple(cu_seqlens_q.tolist())
        given = (*map(heads_first, (grad_out_, query, key, value, out)), unpadded(logsumexp, cuts))
        return *(t.unsqueeze(0) for t in loop_backward(*given, cuts, scale)), None


OPERATORS = [name for name in vars(Cuda) if "attention" in name]


@pytest.mark.parametrize("name", OPERATORS)
def test_torchs_operators_have_these_arguments(name: str) -> None:
    arguments = [a.name for a in getattr(torch.ops.aten, name).default._schema.arguments]
    assert list(inspect.signature(getattr(Cuda, name)).parameters) == arguments


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_torchs_kernels_are_called_once_by_their_signatures(kernel: str, kv_heads: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(f"yarn_train.model.backends.{'sdpa' if kernel == 'flash' else kernel}.aten", Cuda)
    run = PRIMITIVES[kernel]
    assert run.varlen is not None
    varlen = dataclasses.replace(run.varlen, suits=always)
    monkeypatch.setitem(primitives.PRIMITIVES, kernel, dataclasses.replace(run, varlen=varlen))
    inputs = qkv(kv_heads=kv_heads)
    ours = forward_and_gradients(kernel, inputs, DOCUMENTS)
    for got, right in zip(ours, forward_and_gradients("cpu", inputs, DOCUMENTS), strict=True):
        torch.testing.assert_close(got, right)  # heads that share keys are summed elsewhere
        assert got.stride() == right.stride()


def test_the_memory_efficient_backward_gets_rows_end_to_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(efficient, "aten", Cuda)
    q, k, v, dout = (torch.randn(4, 39, 8).transpose(0, 1) for _ in range(4))
    out, lse = loop_forward(q, k, v, CUTS, SCALE)
    out_of_order = out.transpose(0, 1).contiguous().transpose(0, 1)
    ours = efficient.varlen_backward(dout, q, k, v, out_of_order, lse, CUTS, SCALE)
    for got, right in zip(ours, loop_backward(dout, q, k, v, out, lse, CUTS, SCALE), strict=True):
        torch.testing.assert_close(got, right)


def test_so_does_the_one_for_whole_sequences(monkeypatch: Any) -> None:
    def backward(
        grad_out_, query, key, value, attn_bias, out, logsumexp, philox_seed, philox_offset, dropout_p,
        grad_input_mask, is_causal=False, scale=None,
    ):  # fmt: skip
        assert all(t.transpose(1, 2).is_contiguous() for t in (grad_out_, out))
        return query, key, value, None

    name = "_scaled_dot_product_efficient_attention_backward"
    arguments = [a.name for a in getattr(torch.ops.aten, name).default._schema.arguments]
    assert list(inspect.signature(backward).parameters) == arguments
    monkeypatch.setattr(efficient, "aten", types.SimpleNamespace(**{name: backward}))
    q, k, v, dout, out = (torch.randn(2, 4, 13, 8) for _ in range(5))
    PRIMITIVES["efficient"].backward(dout, q, k, v, out, torch.zeros(2, 4, 13), True, SCALE)


@pytest.mark.parametrize("most", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_more_documents_than_a_call_takes_are_several_calls(
    calls: list[tuple[int, ...]], kv_heads: int, most: int, monkeypatch: Any
) -> None:
    """Seven documents, as if a call took fewer."""
    monkeypatch.setattr("yarn_train.model.varlen.MAX_DOCUMENTS", most)
    inputs = qkv(kv_heads=kv_heads)
    ours = forward_and_gradients("looped", inputs, DOCUMENTS)
    for got, right in zip(ours, forward_and_gradients("cpu", inputs, DOCUMENTS), strict=True):
        assert torch.equal(got, right)
        assert got.stride() == right.stride()
    assert len(calls) == -(-7 // most)
    assert all(cuts[0] == 0 and len(cuts) - 1 <= most for cuts in calls)


@pytest.mark.parametrize(("kernel", "dtype"), [("flash", torch.bfloat16), ("efficient", torch.float32)])
def test_the_layout_of_the_log_sum_exp_is_torchs(kernel: str, dtype: torch.dtype) -> None:
    """By torch's own shape functions."""
    q, k, v = (torch.empty(39, heads, 8, device="meta", dtype=dtype) for heads in (4, 2, 2))
    run = PRIMITIVES[kernel].varlen
    assert run is not None
    out, lse = run.forward(q, k, v, CUTS, SCALE)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (4, 39), torch.float32)
    if kernel == "flash":  # the other's backward has no shape function that takes its arguments
        gradients = run.backward(out, q, k, v, out, lse, CUTS, SCALE)
        assert [t.shape for t in gradients] == [t.shape for t in (q, k, v)]


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """flash_attn 2.8's two varlen functions by their published signatures, computed by the CPU kernel."""
    seen = []

    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right, softcap) == (0.0, True, -1, -1, 0.0)
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert (max_seqlen_q, max_seqlen_k) == (13, 13)
        seen.append("forward")
        out, lse = loop_forward(q, k, v, tuple(cu_seqlens_q.tolist()), softmax_scale)
        return out, lse, torch.empty(0), torch.empty(2)

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
        rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right, softcap) == (0.0, True, -1, -1, 0.0)
        assert all(t.is_contiguous() for t in (softmax_lse, dq, dk, dv))
        seen.append("backward")
        parts = loop_backward(dout, q, k, v, out, softmax_lse, tuple(cu_seqlens_q.tolist()), softmax_scale)
        for total, part in zip((dq, dk, dv), parts, strict=True):
            total.copy_(part)
        return torch.empty(0)

    module = types.ModuleType("flash_attn.flash_attn_interface")
    module.__dict__.update(_flash_attn_varlen_forward=forward, _flash_attn_varlen_backward=backward)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    return seen


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_flash_attention_2_is_called_once_by_its_published_signature(flash_attn: list[str], kv_heads: int) -> None:
    inputs = qkv(kv_heads=kv_heads)
    ours = forward_and_gradients("flash_attention_2", inputs, DOCUMENTS)
    for got, right in zip(ours, forward_and_gradients("cpu", inputs, DOCUMENTS), strict=True):
        assert torch.equal(got, right)
    assert flash_attn == ["forward", "backward"]
