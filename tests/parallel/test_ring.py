"""What each step of the ring computes, and the operator on a ring of one; several ranks run in test_context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import library

from yarn_train.model.attention import attention
from yarn_train.model.documents import table
from yarn_train.model.spans import Rectangle
from yarn_train.parallel.ring import ring_attention, spans_for


def pairs(spans: list[Rectangle]) -> float:
    """Query-key pairs a kernel works on, half of the square for causal ones."""
    return sum((s.q1 - s.q0) * (s.k1 - s.k0) * (0.5 if s.causal else 1) for s in spans)


@pytest.mark.parametrize("ring", [2, 3, 4, 8])
def test_every_rank_has_one_kernel_call_of_the_same_size_at_every_step(ring: int) -> None:
    local = 64
    for rank in range(ring):
        for source in range(ring):
            spans = spans_for(rank, source, ring, local, ((0,),))
            assert len(spans) == 1
            assert spans[0].causal == (rank == source)
            assert pairs(spans) == local * local / 2


def test_shards_of_other_documents_are_not_computed_at_all() -> None:
    """Four chunks of 8; rank 0 holds the first and the last, which are documents of their own."""
    assert spans_for(0, 1, 2, 16, ((0, 8, 24),)) == []
    assert spans_for(0, 0, 2, 16, ((0, 8, 24),)) == [Rectangle(0, 8, 0, 8, True), Rectangle(8, 16, 8, 16, True)]


@pytest.fixture
def group() -> Any:
    """The name of a process group of one."""
    alone = not dist.is_initialized()
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD.group_name
    if alone:
        dist.destroy_process_group()


def arguments(group: str) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 12, heads, 8, generator=g).transpose(1, 2).requires_grad_() for heads in (4, 2, 2))
    return q, k, v, "cpu", 0.3, table(((0, 5), (0, 3, 7))), group


def test_a_ring_of_one_is_the_plain_operator(group: str) -> None:
    given = arguments(group)
    q, k, v = given[:3]
    ours, plain = ring_attention(*given), attention(*given[:-1])
    upstream = torch.linspace(-1, 1, ours[0].numel()).view(ours[0].shape)
    mine, theirs = (torch.autograd.grad(out, (q, k, v), upstream) for out in (ours[0], plain[0]))
    for got, right in zip((*ours, *mine), (*plain, *theirs), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def test_the_operator_keeps_what_torch_asks_of_operators(group: str) -> None:
    library.opcheck(ring_attention, arguments(group))


def test_the_log_sum_exp_has_no_gradient_so_none_can_be_lost(group: str) -> None:
    assert [t.requires_grad for t in ring_attention(*arguments(group))] == [True, False]
