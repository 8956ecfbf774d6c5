"""What attention operators take inside, against their real code run on real tensors (two ranks in name only)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from yarn_train.model.attention import attention_backward
from yarn_train.parallel.ring import ring_attention, ring_attention_backward
from yarn_train.parallel.ulysses import all_to_all
from yarn_train.plan import hidden
from yarn_train.plan.hidden import hidden_bytes
from yarn_train.plan.ledger import Ledger

TOKENS, HEADS, WIDTH = 1024, 8, 64


@pytest.fixture
def group() -> Iterator[str]:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield torch.distributed.group.WORLD.group_name
    torch.distributed.destroy_process_group()


def heads(count: int) -> Tensor:
    """[1, heads, tokens, width], in memory as kernels want it."""
    return torch.randn(1, TOKENS, count, WIDTH, dtype=torch.bfloat16).transpose(1, 2)


def taken(operator: object, *arguments: object) -> int:
    """The most that the operator's own code held at once, what it was given left out."""
    with Ledger() as ledger, ledger.part("inside"):
        ledger.label([a for a in arguments if isinstance(a, Tensor)], "given")
        results = operator._init_fn(*arguments)  # type: ignore[attr-defined]  # below the dispatcher nothing is seen
    del results
    return max(moment.total(["given"]) for moment in ledger.moments(["given"]))


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_a_ring_passes_keys_values_and_float32_gradients(group: str, kv_heads: int) -> None:
    q, k, v = heads(HEADS), heads(kv_heads), heads(kv_heads)
    forward = (q, k, v, "cpu", 0.125, None, group)
    held, sent = hidden_bytes("yarn_train::ring_attention", forward)
    assert held == pytest.approx(taken(ring_attention, *forward), rel=0.03)
    assert sent == k.nbytes + v.nbytes

    backward = (q, q, k, v, q, torch.zeros(1, HEADS, TOKENS), None, "cpu", 0.125, group)
    held, sent = hidden_bytes("yarn_train::ring_attention_backward", backward)
    kernel, _ = hidden_bytes("yarn_train::attention_backward", backward)  # of a GPU
    measured = taken(ring_attention_backward, *backward)
    assert 0.98 * measured <= held <= 1.06 * (measured + kernel)
    assert sent == k.nbytes + v.nbytes + 2 * (4 * k.numel() + 4 * v.numel())


def test_a_kernel_sums_query_gradients_in_float32_and_expands_grouped_ones() -> None:
    q, lse = heads(HEADS), torch.zeros(1, HEADS, TOKENS)
    assert hidden_bytes("yarn_train::attention_backward", (q, q, heads(8), heads(8), q, lse)) == (4 * q.numel(), 0)
    grouped = hidden_bytes("yarn_train::attention_backward", (q, q, heads(2), heads(2), q, lse))
    assert grouped == (4 * q.numel() + 2 * q.nbytes, 0)


def test_every_operator_is_one_that_exists() -> None:
    exist = {op._qualname for op in (attention_backward, ring_attention, ring_attention_backward, all_to_all)}
    assert set(hidden._COSTS) == exist
    assert hidden_bytes("yarn_train::all_to_all", (heads(2), "group")) == (0, heads(2).nbytes)
    assert hidden_bytes("aten::mm", ()) == (0, 0)
