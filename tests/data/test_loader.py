"""What a rank reads for a step: no split over ranks, micro-batches, steps or threads can change the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import stream

from yarn_train.data.batch import Batch, make_batch
from yarn_train.data.loader import Loader, local_ids, pinned
from yarn_train.data.prefetch import Ahead

SLOW = settings(deadline=None, max_examples=100, derandomize=True)


def loader(count: int = 16, batch: int = 8, micro: int = 2, **more: Any) -> Loader:
    return Loader(stream((1, count)), global_batch_size=batch, micro_batch_size=micro, **more)


def same(batch: Batch) -> Batch:
    return batch


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """A step's ids (which may repeat across epochs), a world size and a micro-batch size that divide their number."""
    world, micro, passes = draw(st.integers(1, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    order = stream((1, draw(st.integers(1, 80))), seed=7)
    return order.ids(draw(st.integers(0, 50)), world * micro * passes), world, micro


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


@st.composite
def courses(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Pieces of a run of global batch 12 as (steps, ranks, micro-batch size): each resumes the one before."""
    split = st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6, 12]))
    return draw(st.lists(split.filter(lambda s: 12 % (s[1] * s[2]) == 0), min_size=1, max_size=4))


@SLOW
@given(parts=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=3), pieces=courses())
def test_however_a_run_is_split_and_resumed_the_same_rows_are_read_in_the_same_order(
    parts: list[tuple[int, int]], pieces: list[tuple[int, int, int]]
) -> None:
    samples, rows = 0, []
    for steps, ranks, micro in pieces:
        loaders = [
            Loader(stream(*parts), global_batch_size=12, micro_batch_size=micro, rank=rank, ranks=ranks)
            for rank in range(ranks)
        ]
        with_depth = [Ahead(each.steps(samples, steps, same), rank % 3) for rank, each in enumerate(loaders)]
        for read in zip(*with_depth, strict=True):
            assert len({tuple(step.ids) for step in read}) == 1
            for one_pass in zip(*(step.batches for step in read), strict=True):
                rows += [row for batch in one_pass for row in batch.input_ids[:, 0].tolist()]
        for ahead in with_depth:
            ahead.close()
        samples += 12 * steps
    assert rows == stream(*parts).ids(0, samples)


def test_steps_walk_through_the_stream_and_across_epochs() -> None:
    walked = [i for step in loader(count=12).steps(0, 3, same) for i in step.ids]
    assert walked == stream((1, 12)).ids(0, 24)
    assert sorted(walked) == sorted([*range(12)] * 2)
    assert walked[:12] != walked[12:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_reads_its_own_rows_and_no_others(ranks: int) -> None:
    read = []
    for rank in range(ranks):
        mine = loader(rank=rank, ranks=ranks)
        step = mine.step(8)
        assert all(b.input_ids.shape == (2, 6) and b.num_valid == 10 for b in step.batches)
        touched = mine.stream.sources[0].segments.read  # type: ignore[attr-defined]
        assert touched == [int(i) for b in step.batches for i in b.input_ids[:, 0]]
        assert len(touched) == 8 // ranks
        read += touched
    assert sorted(read) == sorted(loader().step(8).ids)


def test_batches_know_their_documents_only_under_a_document_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def recording(rows: torch.Tensor, documents: Any = None) -> Batch:
        given.append(documents)
        return make_batch(rows)

    monkeypatch.setattr("yarn_train.data.loader.make_batch", recording)
    ids = loader().step(0).ids
    masked = loader(document_mask=True)
    masked.step(0)
    wanted = [masked.stream.documents(ids[i : i + 2]) for i in range(0, 8, 2)]
    assert given == [None] * 4 + wanted


def test_every_batch_is_finished_where_it_is_read() -> None:
    (step,) = loader().steps(0, 1, lambda batch: batch.to("meta"))
    assert {batch.labels.device.type for batch in step.batches} == {"meta"}


@pytest.mark.gpu
def test_batches_for_a_gpu_lie_in_pinned_memory_on_any_thread() -> None:
    device = torch.device("cuda", 0)
    with Ahead(loader().steps(0, 2, lambda batch: pinned(batch, device)), 1) as steps:
        for step, plain in zip(steps, loader().steps(0, 2, same), strict=True):
            for ours, theirs in zip(step.batches, plain.batches, strict=True):
                assert ours.input_ids.is_pinned()
                assert ours.labels.is_pinned()
                assert torch.equal(ours.to(device, non_blocking=True).input_ids.cpu(), theirs.input_ids)
