"""Many documents in one kernel call on a GPU: numbers, isolation, launches, time."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from precision import LIMITS, assert_near, scale_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.data.batch import make_batch
from yarn_train.model.attention import attention
from yarn_train.model.availability import NEEDS, missing
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.documents import table
from yarn_train.model.registry import IMPLEMENTATIONS, SDPA
from yarn_train.model.spans import Documents
from yarn_train.parallel import activation

pytestmark = pytest.mark.gpu

TOKENS = 300
DOCUMENTS: dict[int, Documents] = {1: ((0, 90, 91, 200),), 2: ((0, 90, 91, 200), (0, 150))}
PACKAGES = ["flash_attention_2", "flash_attention_3", "flash_attention_4"]
KERNELS = [("flash", torch.bfloat16), ("efficient", torch.float32), *((name, torch.bfloat16) for name in PACKAGES)]


@pytest.fixture(autouse=True)
def needs_its_package(request: pytest.FixtureRequest) -> None:
    for kernel in NEEDS.keys() & set(map(str, request.node.callspec.params.values())):
        if why := missing(kernel, torch.device("cuda", 0), torch.bfloat16):
            pytest.skip(f"{kernel}: {why}")


def qkv(rows: int, kv_heads: int, dtype: torch.dtype, tokens: int = TOKENS, dim: int = 64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(rows, tokens, heads, dim) for heads in (4, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=g).to(dtype).cuda().transpose(1, 2).requires_grad_() for shape in shapes]


def oracle(inputs: list[Tensor], documents: Documents, upstream: Tensor) -> list[Tensor]:
    """Output, log-sum-exp and gradients of an explicit softmax in float64."""
    q, k, v = leaves = [t.detach().double().requires_grad_() for t in inputs]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    number = torch.zeros(len(documents), q.shape[2], dtype=torch.long, device="cuda")
    for row, starts in zip(number, documents, strict=True):
        row[list(starts)] = 1
    number = number.cumsum(1)
    seen = (number[:, None, :, None] == number[:, None, None]).tril()
    scores = (q @ k.transpose(2, 3) * scale_of(q.shape[3])).masked_fill(~seen, -torch.inf)
    out = scores.softmax(-1) @ v
    return [out.detach(), scores.logsumexp(-1).detach(), *torch.autograd.grad(out, leaves, upstream.double())]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rows", DOCUMENTS)
@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_one_call_is_the_explicit_softmax(kernel: str, dtype: torch.dtype, rows: int, kv_heads: int) -> None:
    documents, inputs = DOCUMENTS[rows], qkv(rows, kv_heads, dtype)
    out, lse = attention(*inputs, kernel, scale_of(64), table(documents))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    found = [out.detach(), lse, *torch.autograd.grad(out, inputs, upstream)]
    assert_near(found, oracle(inputs, documents, upstream), LIMITS[dtype])


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_more_documents_than_a_grid_has_rows(kernel: str, dtype: torch.dtype) -> None:
    """70,000 documents of two tokens: the second of each is a softmax of two."""
    inputs = qkv(1, 4, dtype, tokens=140_000, dim=16)
    out, lse = attention(*inputs, kernel, scale_of(16), table((tuple(range(0, 140_000, 2)),)))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    found = [out.detach(), lse, *torch.autograd.grad(out, inputs, upstream)]
    pairs = [t.detach().unflatten(2, (-1, 2)).transpose(1, 2).flatten(0, 1) for t in (*inputs, upstream)]
    together = [t.unflatten(2, (-1, 2)).transpose(1, 2).flatten(0, 1) for t in found]
    assert_near(together, oracle(pairs[:3], ((0,),) * 70_000, pairs[3]), LIMITS[dtype])


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_hundreds_of_documents_are_one_launch_of_the_kernel(kernel: str, dtype: torch.dtype) -> None:
    documents = (tuple(range(0, 16384, 64)),) * 2
    inputs, made = qkv(2, 2, dtype, tokens=16384), table(documents)
    attention(*inputs, kernel, scale_of(64), made)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        attention(*inputs, kernel, scale_of(64), made)
        torch.cuda.synchronize()
    assert sum(event.count for event in profile.key_averages()) < 30


def model(implementation: str, dtype: torch.dtype) -> CausalLM:
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        use_cache=False,
    )
    torch.manual_seed(0)
    return CausalLM(LlamaForCausalLM._from_config(config, attn_implementation=implementation, dtype=dtype)).cuda()


CASES = [
    pytest.param(SDPA, torch.bfloat16, "flash", id="flash"),
    pytest.param(SDPA, torch.float32, "efficient", id="efficient"),
    *(pytest.param(IMPLEMENTATIONS[name], torch.bfloat16, name, id=name) for name in PACKAGES),
]


@pytest.mark.parametrize("rows", DOCUMENTS)
@pytest.mark.parametrize(("implementation", "dtype", "kernel"), CASES)
def test_other_documents_change_no_bit_of_a_documents_logits(
    implementation: str, dtype: torch.dtype, kernel: str, rows: int
) -> None:
    module = model(implementation, dtype)
    ids = torch.randint(0, 50, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    other = (ids + 1) % 50
    other[0, 91:200] = ids[0, 91:200]
    found: dict[bool, list[Any]] = {}
    for masked in (True, False):
        batches = [make_batch(t, DOCUMENTS[rows] if masked else None).to("cuda") for t in (ids, other)]
        with torch.no_grad():
            found[masked] = [module(b.input_ids, b.position_ids, None, b.documents)[0, 91:200] for b in batches]
    assert torch.equal(*found[True])
    assert not torch.equal(*found[False])


@pytest.mark.parametrize("policy", ["none", "full", "attention"])
@pytest.mark.parametrize(("implementation", "dtype", "kernel"), CASES)
def test_compiled_and_recomputed_blocks_learn_the_same(
    implementation: str, dtype: torch.dtype, kernel: str, policy: str
) -> None:
    plain, module = model(implementation, dtype), model(implementation, dtype)
    for block in module.blocks:
        block.forward = torch.compile(block.forward)
    activation.apply(list(module.blocks), policy)
    ids = torch.randint(0, 50, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    for documents in (DOCUMENTS[2], ((0, 3), (0, 100, 101, 102)), ((0,), (0, 7))):
        batch = make_batch(ids, documents).to("cuda")
        losses = [m(batch.input_ids, batch.position_ids, batch.labels, batch.documents) for m in (plain, module)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=0)
        for m, loss in zip((plain, module), losses, strict=True):
            m.zero_grad(set_to_none=True)
            (loss / batch.num_valid).backward()
        for ours, right in zip(module.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, right.grad, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize(("kernel", "dtype"), [k for k in KERNELS if k[0] != "efficient"])
def test_short_documents_save_time_at_64k(kernel: str, dtype: torch.dtype, capsys: Any) -> None:
    """600 documents of about 109 tokens have 1/600 of the square."""
    cuts = torch.linspace(0, 65536, 601).long().tolist()
    assert sum((b - a) ** 2 for a, b in pairwise(cuts)) < 65536**2 / 590
    inputs, seconds = qkv(1, 4, dtype, tokens=65536, dim=128), {}
    for name, documents in (("none", None), ("block", table((tuple(cuts[:-1]),)))):
        for _ in range(3):
            torch.cuda.synchronize()
            started = time.perf_counter()
            attention(*inputs, kernel, 0.1, documents)[0].sum().backward()
            torch.cuda.synchronize()
            seconds[name] = time.perf_counter() - started
    with capsys.disabled():
        print(
            f"\n{torch.cuda.get_device_name()} {kernel}: none {seconds['none']:.4f} s, block {seconds['block']:.4f} s"
        )
    assert seconds["block"] < seconds["none"] / 3
