"""The mover: what it is given comes back bit for bit, in the right order, from buffers that are used again."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from yarn_train.parallel.activation import apply
from yarn_train.parallel.offload import MIN_PIECE, Handle, Mover, piece_sizes

SIZE = 4 * 6 * 8  # bytes of one small tensor below


def numbers(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def handle(packed: Tensor | Handle) -> Handle:
    assert isinstance(packed, Handle)
    return packed


@given(st.integers(1, 2**36))
def test_pieces_are_different_powers_of_two_that_hold_the_bytes_and_little_more(nbytes: int) -> None:
    sizes = piece_sizes(nbytes)
    assert 0 <= sum(sizes) - nbytes < MIN_PIECE
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(size.bit_count() == 1 for size in sizes)


@pytest.mark.parametrize(
    "tensor",
    [
        numbers(3, 5),
        numbers(3, 5).t(),
        numbers(2, 7, 4, 8).transpose(1, 2),  # attention's output: [B, H, S, D] stored as [B, S, H, D]
        numbers(6, 5)[2:],
        numbers(6, 5)[:, 1:3],  # not dense: its copy is
        numbers(5).expand(4, 5),
        numbers(3, 5).bfloat16(),
        numbers(()),
        torch.arange(7),
        numbers(3 * MIN_PIECE // 4 - 1000),  # several pieces, the last one not full
    ],
)
def test_a_tensor_comes_back_bit_for_bit_with_its_layout(tensor: Tensor) -> None:
    mover = Mover(min_bytes=1)
    layer = mover.open()
    packed = handle(layer.pack(tensor))
    mover.open()
    assert packed.resident is None  # it has left
    back = layer.unpack(packed)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    assert back.data_ptr() != tensor.data_ptr()
    dense = torch.empty_like(tensor).stride() == tensor.stride()
    assert back.stride() == (tensor.stride() if dense else tensor.contiguous().stride())


def test_what_is_small_or_still_here_is_not_copied() -> None:
    mover = Mover(min_bytes=SIZE + 1)
    small = numbers(6, 8)
    assert mover.open().pack(small) is not small  # an alias without its graph
    assert mover.host_bytes == mover.pool_bytes == 0
    large = numbers(7, 8)
    layer = mover.open()
    assert layer.unpack(layer.pack(large)).data_ptr() == large.data_ptr()  # the newest layer has not left yet


def test_the_block_before_is_fetched_ahead_and_no_other() -> None:
    mover = Mover(min_bytes=1)
    packed = [handle(mover.open().pack(numbers(6, 8, seed=number))) for number in range(4)]
    assert [h.resident is not None for h in packed] == [False, False, False, True]
    for number in (3, 2, 1, 0):
        tensor = packed[number].take()
        assert torch.equal(tensor, numbers(6, 8, seed=number))
        assert [i for i, h in enumerate(packed) if h.resident is not None] == ([number - 1] if number else [])
    assert mover.device.peak == 2 * SIZE  # one block's in use by the mover, one ahead
    assert mover.host.peak == 4 * SIZE


def test_host_buffers_are_used_again_in_every_step() -> None:
    mover = Mover(min_bytes=1)
    for step in range(3):
        packed = [handle(mover.open().pack(numbers(6, 8, seed=10 * step + number))) for number in range(4)]
        for number in (3, 2, 1, 0):
            assert torch.equal(packed.pop().take(), numbers(6, 8, seed=10 * step + number))
        assert mover.host_bytes == mover.device.now == 0
    assert mover.pool_bytes == 4 * MIN_PIECE


def test_a_dropped_graph_gives_its_memory_back_at_once() -> None:
    mover = Mover(min_bytes=1)
    gc.disable()
    try:
        packed = [mover.open().pack(numbers(6, 8)) for _ in range(3)]
        assert mover.host_bytes == 3 * SIZE
        handle(packed[1]).take()  # the first one is on its way back
        packed.clear()
        assert mover.host_bytes == mover.device.now == 0
    finally:
        gc.enable()


def test_checkpoint_saves_its_input_through_hooks_around_it_and_nothing_else() -> None:
    """The mechanism that offloading stands on, by torch alone."""
    weight = nn.Parameter(numbers(8, 8))
    table = numbers(6, 8)
    hidden = numbers(6, 8).requires_grad_() * 2
    seen: list[Tensor] = []

    def block(x: Tensor) -> Tensor:
        return torch.sin(x @ weight) * table

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor.clone()

    with saved_tensors_hooks(pack, lambda packed: packed):
        out = checkpoint(block, hidden, use_reentrant=False)
    out.sum().backward()
    assert [t.data_ptr() for t in seen if t.numel()] == [hidden.data_ptr()]  # older versions save an empty one too


class Block(nn.Module):
    """Takes the tables as transformers gives them: by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        return hidden_states + torch.sin(self.linear(hidden_states * tables[0] + tables[1]))


@pytest.mark.parametrize("by_name", [False, True])
def test_only_the_hidden_states_of_each_block_move(by_name: bool) -> None:
    torch.manual_seed(0)
    blocks, mover = [Block() for _ in range(5)], Mover(min_bytes=1)
    apply(blocks, "full", mover)
    tables = (numbers(6, 8, seed=1), numbers(6, 8, seed=2))
    hidden = numbers(6, 8).requires_grad_()
    for block in blocks:
        hidden = block(hidden_states=hidden, tables=tables) if by_name else block(hidden, tables)
        assert mover.device.now == SIZE  # the block's own input, on its way; earlier ones have left
    assert mover.host_bytes == 5 * SIZE
    hidden.sum().backward()
    assert mover.host_bytes == mover.device.now == 0
    assert mover.device.peak == 2 * SIZE


def test_a_kept_graph_can_be_run_backward_twice() -> None:
    torch.manual_seed(0)
    blocks, mover = [Block() for _ in range(3)], Mover(min_bytes=1)
    apply(blocks, "full", mover)
    start = numbers(6, 8).requires_grad_()
    hidden = start
    for block in blocks:
        hidden = block(hidden, (numbers(6, 8), numbers(6, 8)))
    once = torch.autograd.grad(hidden.sum(), start, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(hidden.sum(), start)[0], once)
