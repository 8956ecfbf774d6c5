"""Every attention kernel that runs on this GPU against an explicit softmax in float64; others say what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision import LIMITS, assert_near, scale_of
from torch import Tensor
from transformers import LlamaConfig

from yarn_train.config import RopeConfig
from yarn_train.model.attention import attention
from yarn_train.model.availability import missing, width_limits
from yarn_train.model.documents import table
from yarn_train.model.kernels import attend, attend_backward
from yarn_train.model.load import build_model
from yarn_train.model.primitives import PRIMITIVES, primitive_for
from yarn_train.model.registry import IMPLEMENTATIONS, choose_kernel
from yarn_train.model.spans import Rectangle

pytestmark = pytest.mark.gpu

CASES = [(kernel, torch.bfloat16) for kernel in IMPLEMENTATIONS] + [
    *((kernel, torch.float32) for kernel in ("sdpa", "flex", "eager")),
    *((kernel, torch.float16) for kernel in ("sdpa", "flash_attention_3")),
]
# In place of LIMITS. flex computes products of float32 by TF32 only where torch is told to; its exponentials are base 2
LOOSE = {("flex", torch.float32): 1e-3}


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}")
def case(request: pytest.FixtureRequest) -> tuple[str, torch.dtype, float]:
    """The primitive of a kernel, a dtype, and how far results may be off, see ``precision``."""
    kernel, dtype = request.param
    if why := missing(kernel, torch.device("cuda", 0), dtype):
        pytest.skip(f"{kernel}: {why}")
    return primitive_for(kernel, "cuda", dtype), dtype, LOOSE.get(request.param, LIMITS[dtype])


def qkv(queries: int, keys: int, kv_heads: int, dtype: torch.dtype, dim: int = 64, rows: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((queries, 4), (keys, kv_heads), (keys, kv_heads))
    return [torch.randn(rows, n, heads, dim, generator=g).to(dtype).cuda().transpose(1, 2) for n, heads in shapes]


def oracle(inputs: list[Tensor], upstream: Tensor, seen: Tensor) -> list[Tensor]:
    """Output, log-sum-exp and gradients in float64; `seen` is bool, [B or 1, 1, Sq, Sk]."""
    q, k, v = leaves = [t.detach().double().requires_grad_() for t in inputs]
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = (q @ k.transpose(2, 3) * scale_of(q.shape[3])).masked_fill(~seen, -torch.inf)
    out = scores.softmax(-1) @ v
    return [out.detach(), scores.logsumexp(-1).detach(), *torch.autograd.grad(out, leaves, upstream.double())]


def upstream_of(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(45, 45, True), (192, 192, True), (1000, 1000, True)])
def test_causal_squares(case: Any, queries: int, keys: int, causal: bool, kv_heads: int, dim: int) -> None:
    primitive, dtype, limit = case
    assert width_limits(primitive, dim) is None
    run, inputs, scale = PRIMITIVES[primitive], qkv(queries, keys, kv_heads, dtype, dim), scale_of(dim)
    out, lse = run.forward(*inputs, causal, scale)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    upstream = upstream_of(out)
    gradients = run.backward(upstream, *inputs, out, lse, causal, scale)
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool, device="cuda").tril()
    assert_near((out, lse, *gradients), oracle(inputs, upstream, seen), limit)


@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("cut", [1, 64, 77])
def test_parts_of_the_keys_by_the_log_sum_exp_of_all(case: Any, cut: int, kv_heads: int) -> None:
    """As ring attention asks for gradients: 130 queries, 177 keys in two parts."""
    primitive, dtype, limit = case
    run, inputs, scale = PRIMITIVES[primitive], qkv(130, 177, kv_heads, dtype), scale_of(64)
    spans = [Rectangle(0, 130, 0, cut, False), Rectangle(0, 130, cut, 177, False)]
    out, lse = attend(primitive, *inputs, scale, spans)
    upstream = upstream_of(out)
    gradients = attend_backward(primitive, upstream, *inputs, out, lse, scale, spans)
    right = oracle(inputs, upstream, torch.ones(1, 1, 130, 177, dtype=torch.bool, device="cuda"))
    assert_near((out, lse, *gradients), right, limit)
    whole = run.forward(*inputs, False, scale)
    assert_near(whole, right[:2], limit)


DOCUMENTS = ((0, 90, 91, 200), (0, 150))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_documents_and_their_gradients(case: Any, kv_heads: int) -> None:
    primitive, dtype, limit = case
    inputs = [t.requires_grad_() for t in qkv(300, 300, kv_heads, dtype)]
    out, lse = attention(*inputs, primitive, scale_of(64), table(DOCUMENTS))
    upstream = upstream_of(out)
    gradients = torch.autograd.grad(out, inputs, upstream)
    number = torch.zeros(2, 300, dtype=torch.long, device="cuda")
    for row, starts in zip(number, DOCUMENTS, strict=True):
        row[list(starts)] = 1
    number = number.cumsum(1)
    seen = (number[:, None, :, None] == number[:, None, None]).tril()
    assert_near((out.detach(), lse, *gradients), oracle(inputs, upstream, seen), limit)


@pytest.mark.parametrize("kernel", IMPLEMENTATIONS)
def test_yarns_attention_factor_reaches_the_logits(kernel: str) -> None:
    """Against transformers' own eager attention in float32: far closer than the same model without the factor."""
    place = torch.device("cuda", 0)
    if why := missing(kernel, place, torch.bfloat16):
        pytest.skip(f"{kernel}: {why}")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 100}
    base = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    torch.manual_seed(0)
    model = build_model(
        None, base, RopeConfig(method="yarn", factor=16.0), choose_kernel("sdpa", torch.device("cpu"), torch.float32)
    ).eval()
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 10.0
        weight.data = weight.data.to(torch.bfloat16).float()
    ids = torch.randint(0, 100, (2, 600), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.set_attn_implementation("eager")
        right = model(input_ids=ids, use_cache=False).logits
        rotary: Any = model.get_decoder().rotary_emb
        factor, rotary.attention_scaling = rotary.attention_scaling, 1.0
        lost = model(input_ids=ids, use_cache=False).logits
        rotary.attention_scaling = factor
        model.set_attn_implementation(IMPLEMENTATIONS[kernel])
        model = model.to(place)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        found = model(input_ids=ids.to(place), use_cache=False).logits.float().cpu()
    assert (found - right).norm() < 0.3 * (lost - right).norm()


def test_one_compilation_serves_flex_at_any_documents() -> None:
    """Masks are inputs of the compiled kernel, not part of it."""
    from torch._dynamo.utils import counters

    inputs = qkv(4096, 4096, 2, torch.bfloat16, rows=1)
    made = [table((tuple(range(0, 4096, step)),)) for step in (4096, 512, 300, 64, 2000)]
    attention(*inputs, "flex", scale_of(64), made[1])
    counters.clear()
    for documents in made[2:]:
        attention(*inputs, "flex", scale_of(64), documents)
    assert counters["stats"]["unique_graphs"] == 0
