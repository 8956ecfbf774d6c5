"""Which segments a step consumes: a pure function of seed and position that no split over ranks can change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_train.data.loader import Loader, epoch_order, local_ids, segment_ids

SLOW = settings(deadline=None, max_examples=100, derandomize=True)


class Numbered:
    """Stands for a prepared folder: every token of segment i is i."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids)[:, None].expand(-1, 6).contiguous()


def loader(count: int = 16, batch: int = 8, micro: int = 2, seed: int = 0) -> Loader:
    return Loader(Numbered(count), seed=seed, global_batch_size=batch, micro_batch_size=micro)  # type: ignore[arg-type]


@SLOW
@given(n=st.integers(1, 60), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_epoch_is_a_permutation_of_all_segments(n: int, seed: int, epoch: int) -> None:
    assert sorted(segment_ids(epoch * n, n, num_segments=n, seed=seed)) == list(range(n))


@SLOW
@given(n=st.integers(1, 30), seed=st.integers(0, 99), start=st.integers(0, 90), cuts=st.lists(st.integers(0, 40)))
def test_the_stream_does_not_depend_on_how_it_is_cut_into_steps(n: int, seed: int, start: int, cuts: list[int]) -> None:
    whole, at = segment_ids(start, sum(cuts), num_segments=n, seed=seed), start
    parts = []
    for count in cuts:
        parts += segment_ids(at, count, num_segments=n, seed=seed)
        at += count
    assert parts == whole


def test_the_order_is_the_same_in_a_new_process_state() -> None:
    before = segment_ids(0, 100, num_segments=40, seed=3)
    epoch_order.cache_clear()
    torch.manual_seed(1)
    assert segment_ids(0, 100, num_segments=40, seed=3) == before


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(64, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(64)) not in orders  # and all are shuffled


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """A step's ids (which may repeat across epochs), a world size and a micro-batch size that divide their number."""
    world, micro, passes = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    count = world * micro * passes
    return segment_ids(draw(st.integers(0, 50)), count, num_segments=draw(st.integers(1, 80)), seed=7), world, micro


@SLOW
@given(splits())
def test_ranks_and_micro_batches_share_a_step_without_loss_or_repetition(split: tuple[list[int], int, int]) -> None:
    ids, world, micro = split
    shares = [local_ids(list(range(len(ids))), rank, world, micro) for rank in range(world)]  # positions in the step
    assert sorted(p for share in shares for batch in share for p in batch) == list(range(len(ids)))
    assert all(len(batch) == micro for share in shares for batch in share)
    assert len({len(share) for share in shares}) == 1  # every rank runs as many passes: no collective can hang
    dealt = [local_ids(ids, rank, world, micro) for rank in range(world)]
    assert [[[ids[p] for p in batch] for batch in share] for share in shares] == dealt


@SLOW
@given(splits())
def test_each_pass_of_all_ranks_takes_the_next_segments_of_the_step(split: tuple[list[int], int, int]) -> None:
    ids, world, micro = split
    shares = [local_ids(ids, rank, world, micro) for rank in range(world)]
    passes = zip(*shares, strict=True)
    assert [p for one_pass in passes for batch in one_pass for p in batch] == ids


def test_steps_walk_through_the_stream_and_across_epochs() -> None:
    eight = loader(count=12, batch=8)
    walked = [p for samples in (0, 8, 16) for p in eight.step_ids(samples)]
    assert walked == segment_ids(0, 24, num_segments=12, seed=0)
    assert sorted(walked) == sorted([*range(12)] * 2)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_micro_batches_hold_the_segments_of_the_rank(world_size: int) -> None:
    ids = loader().step_ids(8)
    rows = []
    for rank in range(world_size):
        batches = loader().micro_batches(ids, rank, world_size)
        assert all(b.input_ids.shape == (2, 6) and b.num_valid == 10 for b in batches)
        rows += [int(i) for b in batches for i in b.input_ids[:, 0]]
    assert sorted(rows) == sorted(ids)
