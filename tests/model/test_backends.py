"""Kernels whose packages cannot run here: their published signatures, computed by the CPU kernel; and flex's masks."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from support import strides
from torch import Tensor, library
from torch.nn.attention import flex_attention

from yarn_train.model.attention import attention
from yarn_train.model.backends import cudnn, flash_attn3, flex
from yarn_train.model.documents import table
from yarn_train.model.primitives import PRIMITIVES

SCALE = 0.3
CPU = PRIMITIVES["cpu"]
DOCUMENTS = ((0, 4, 5), (0, 1, 9), (0,))  # of 13 positions


def qkv(kv_heads: int, tokens: int = 13, keys: int = 13, rows: int = 3) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((tokens, 4), (keys, kv_heads), (keys, kv_heads))
    return [torch.randn(rows, length, heads, 8, generator=g).transpose(1, 2) for length, heads in shapes]


def whole(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    """The CPU kernel for [B, S, H, D], or [T, H, D] of documents."""
    if ends is None:
        out, lse = CPU.forward(*(t.transpose(1, 2) for t in (q, k, v)), causal, scale)
        return out.transpose(1, 2).contiguous(), lse.contiguous()
    assert ends.dtype == torch.int32
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    parts = [CPU.forward(*(t[:, :, a:b] for t in (q, k, v)), causal, scale) for a, b in pairwise(ends.tolist())]
    out, lse = torch.cat([p[0] for p in parts], 2), torch.cat([p[1] for p in parts], 2)
    return out[0].transpose(0, 1).contiguous(), lse[0].contiguous()


def whole_backward(given: list[Tensor], lse: Tensor, causal: bool, scale: float, ends: Tensor | None) -> list[Tensor]:
    """`given` is dout, q, k, v, out."""
    assert lse.is_contiguous()
    if ends is None:
        found = CPU.backward(*(t.transpose(1, 2) for t in given), lse, causal, scale)
        return [t.transpose(1, 2).contiguous() for t in found]
    mine, lse = [t.transpose(0, 1).unsqueeze(0) for t in given], lse.unsqueeze(0)
    parts = [
        CPU.backward(*(t[:, :, a:b] for t in mine), lse[:, :, a:b], causal, scale) for a, b in pairwise(ends.tolist())
    ]
    return [torch.cat(part, 2)[0].transpose(0, 1).contiguous() for part in zip(*parts, strict=True)]


FWD = (  # hopper/flash_api.cpp
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, Tensor? q_v=None, "
    "Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, "
    "Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, "
    "Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None, "
    "Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? k_descale=None, "
    "Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, "
    "int window_size_right=-1, int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False, "
    "Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, int sm_margin=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
BWD = (
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq=None, "
    "Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
    "Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None, "
    "float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, int window_size_right=-1, "
    "float softcap=0.0, bool deterministic=False, int sm_margin=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def fa3_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Any:
    given = dict(zip((a.name for a in torch.ops.flash_attn_3.fwd.default._schema.arguments[3:]), rest, strict=False))
    given |= named
    ends = given.get("cu_seqlens_q")
    assert given.get("num_splits") == 1
    assert (given.get("cu_seqlens_k") is None) == (ends is None)
    assert ends is None or (given["max_seqlen_q"], given["max_seqlen_k"]) == (13, 13)
    out, lse = whole(q, k, v, given.get("is_causal", False), given["softmax_scale"], ends)
    return out, lse, q.new_empty(0), q.new_empty(0)


def fa3_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any, **named: Any
) -> Any:
    given = dict(zip((a.name for a in torch.ops.flash_attn_3.bwd.default._schema.arguments[6:]), rest, strict=False))
    given |= named
    found = whole_backward(
        [dout, q, k, v, out], lse, given.get("is_causal", False), given["softmax_scale"], given.get("cu_seqlens_q")
    )
    for name, part in zip(("dq", "dk", "dv"), found, strict=True):
        given[name].copy_(part)
    return tuple(q.new_empty(0) for _ in range(5))


def define_fa3() -> library.Library:
    made = library.Library("flash_attn_3", "DEF")
    made.define(FWD)
    made.define(BWD)
    made.impl("fwd", fa3_forward, "CPU")
    made.impl("bwd", fa3_backward, "CPU")
    return made


@pytest.fixture(params=flash_attn3.MODULES)
def fa3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """FlashAttention-3's operators, registered when one of its two modules is imported; the other is not there."""
    made, seen, load = list[library.Library](), list[str](), importlib.import_module

    def imported(name: str) -> Any:
        if name not in flash_attn3.MODULES:
            return load(name)
        seen.append(name)
        if name != request.param:
            raise ImportError(f"No module named {name!r}")
        made.append(define_fa3())

    monkeypatch.setattr(importlib, "import_module", imported)
    yield seen
    for one in made:
        one._destroy()


def fa4_forward(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
    max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None,
    window_size_left=None, window_size_right=None, learnable_sink=None, tile_mn=None, mma_pv_is_rs=None,
    intra_wg_overlap=None, num_threads=384, num_splits=1, pack_gqa=None, _arch=None, score_mod=None, mask_mod=None,
    block_sparse_tensors=None, return_lse=False, out=None, lse=None,
):  # fmt: skip
    assert return_lse
    assert window_size_left is None
    assert window_size_right is None
    assert cu_seqlens_q is None or (max_seqlen_q, max_seqlen_k) == (13, 13)
    return *whole(q, k, v, causal, softmax_scale, cu_seqlens_q), None, None


def fa4_backward(
    q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None,
    window_size_right=None, m_block_size=64, n_block_size=128, num_threads=256, pack_gqa=False, num_stages_Q=2,
    num_stages_dO=2, SdP_swapAB=False, dKV_swapAB=False, dQ_swapAB=False, AtomLayoutMSdP=2, AtomLayoutNdKV=2,
    AtomLayoutMdQ=2, V_in_regs=False, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None,
    deterministic=False,
):  # fmt: skip
    assert window_size_left is None
    return tuple(whole_backward([dout, q, k, v, out], lse, causal, softmax_scale, cu_seqlens_q))


@pytest.fixture
def fa4(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two functions of flash_attn/cute/interface.py."""
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    module = types.ModuleType("flash_attn.cute.interface")
    module.__dict__.update(_flash_attn_fwd=fa4_forward, _flash_attn_bwd=fa4_backward)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", module)


class Cudnn:
    """torch's operators for cuDNN by the names and order of their arguments."""

    @staticmethod
    def _scaled_dot_product_cudnn_attention(
        query, key, value, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, return_debug_mask=False,
        scale=None,
    ):  # fmt: skip
        assert key.shape[2] > 1  # which cuDNN does not take
        assert (attn_bias, compute_log_sumexp, dropout_p, return_debug_mask) == (None, True, 0.0, False)
        out, lse = CPU.forward(query, key, value, is_causal, scale)
        return out, lse.unsqueeze(-1), None, None, 0, 0, None, None, None

    @staticmethod
    def _scaled_dot_product_cudnn_attention_backward(
        grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias, cum_seq_q, cum_seq_k,
        max_q, max_k, dropout_p, is_causal, scale=None,
    ):  # fmt: skip
        assert key.shape[2] > 1
        assert logsumexp.shape == (*query.shape[:3], 1)
        assert logsumexp.is_contiguous()
        assert grad_out.stride() == out.stride()
        assert (attn_bias, cum_seq_q, cum_seq_k, dropout_p) == (None, None, None, 0.0)
        assert (max_q, max_k) == (query.shape[2], key.shape[2])
        return CPU.backward(grad_out, query, key, value, out, logsumexp.squeeze(-1), is_causal, scale)


@pytest.fixture
def with_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "aten", Cudnn)


@pytest.mark.parametrize("name", [name for name in vars(Cudnn) if "attention" in name])
def test_torchs_operators_for_cudnn_have_these_arguments(name: str) -> None:
    arguments = [a.name for a in getattr(torch.ops.aten, name).default._schema.arguments]
    assert list(inspect.signature(getattr(Cudnn, name)).parameters) == arguments


def results(kernel: str, inputs: list[Tensor], documents: Any) -> list[Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    out, lse = attention(*leaves, kernel, SCALE, None if documents is None else table(documents))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), lse, *torch.autograd.grad(out, leaves, upstream)]


def agrees(kernel: str, kv_heads: int) -> None:
    """With the CPU kernel: whole sequences, documents, and rectangles whose log-sum-exp is of more keys."""
    for documents in (None, DOCUMENTS):
        inputs = qkv(kv_heads)
        for got, right in zip(results(kernel, inputs, documents), results("cpu", inputs, documents), strict=True):
            torch.testing.assert_close(got, right)
            assert strides(got) == strides(right)
    q, k, v = qkv(kv_heads, tokens=5)
    out, lse = CPU.forward(q, k, v, False, SCALE)
    for keys in (slice(0, 1), slice(2, 13)):
        part = (torch.ones_like(out), q, k[:, :, keys], v[:, :, keys], out, lse, False, SCALE)
        for got, right in zip(PRIMITIVES[kernel].backward(*part), CPU.backward(*part), strict=True):
            torch.testing.assert_close(got, right)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flash_attention_3_is_called_by_its_published_operators(fa3: list[str], kv_heads: int) -> None:
    agrees("flash_attention_3", kv_heads)
    assert tuple(fa3) == flash_attn3.MODULES[: len(fa3)]  # in order, up to the one that is there, and once


def test_flash_attention_3_that_is_not_there_names_what_was_tried() -> None:
    with pytest.raises(ImportError, match=r"flash_attn_3\._C: No module named .*flash_attn_interface: No module"):
        flash_attn3.operators()


@pytest.mark.usefixtures("fa4")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flash_attention_4_is_called_by_its_published_signature(kv_heads: int) -> None:
    agrees("flash_attention_4", kv_heads)


@pytest.mark.usefixtures("with_cudnn")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_cudnn_is_called_by_the_signatures_of_its_operators(kv_heads: int) -> None:
    agrees("cudnn", kv_heads)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kernel", ["eager", "flex"])
def test_what_runs_here_agrees_too(kernel: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)  # its front door has no backward
    torch._dynamo.reset()
    agrees(kernel, kv_heads)


def test_torch_itself_refuses_flex_gradients_on_the_cpu() -> None:
    """As ``availability`` says; when this fails, flex can train there."""
    q, k, v = qkv(4)
    out, lse = PRIMITIVES["flex"].forward(q, k, v, True, SCALE)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        PRIMITIVES["flex"].backward(out, q, k, v, out, lse, True, SCALE)


@pytest.mark.parametrize("cuts", [(0, 13), (0, 4, 5, 13), (0, 8, 16, 40), (0, 3, 30, 31), (0, 64), (0, 1, 2, 3)])
@pytest.mark.parametrize("size", [4, 8])
def test_blocks_of_a_mask_are_those_of_the_dense_one(cuts: tuple[int, ...], size: int) -> None:
    number = torch.searchsorted(torch.tensor(cuts[:-1]), torch.arange(cuts[-1]), right=True)
    dense = (number[:, None] == number).tril()
    sides = -(-cuts[-1] // size)
    partial, full = flex.blocks(cuts, size)
    for i in range(sides):
        for j in range(sides):
            tile = dense[i * size : (i + 1) * size, j * size : (j + 1) * size]
            if full[i, j]:
                assert bool(tile.all())
            assert bool(tile.any()) == (bool(partial[i, j]) != bool(full[i, j]))


@pytest.mark.parametrize(("tokens", "size"), [(300, 128), (131_072, 128), (131_073, 256), (1_000_000, 1024)])
def test_a_mask_has_no_more_blocks_than_it_may(tokens: int, size: int) -> None:
    made = flex.block_mask((0, tokens), torch.device("cpu"))
    assert (size, size) == made.BLOCK_SIZE
    assert made.shape[-2:] == (tokens, tokens)


def test_gradients_of_flex_need_torchs_autograd_inside_of_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard an operator's own code records nothing: what :func:`agrees` would not survive."""
    seen: list[bool] = []
    real: Callable[..., Any] = flex._attend

    def watched(*args: Any) -> Any:
        found = real(*args)
        seen.append(found[0].requires_grad and found[1].requires_grad)
        return found

    monkeypatch.setattr(flex, "_attend", watched)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    results("flex", qkv(2), None)
    assert seen == [False, True]
