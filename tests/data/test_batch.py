from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.data.batch import IGNORE_INDEX, make_batch


def test_labels_are_shifted_and_positions_explicit():
    batch = make_batch(torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]))
    assert batch.labels.tolist() == [[6, 7, 8, IGNORE_INDEX], [2, 3, 4, IGNORE_INDEX]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.num_valid == 6 == int((batch.labels != IGNORE_INDEX).sum())
    assert batch.labels.dtype == batch.position_ids.dtype == torch.int64


def test_a_shifted_label_is_not_shifted_again_by_sharding():
    # every shard of the sequence keeps the target of its own last position
    batch = make_batch(torch.arange(8)[None])
    shards = batch.labels.chunk(2, dim=1)
    assert shards[0].tolist() == [[1, 2, 3, 4]]


def test_batches_do_not_share_memory_with_the_segments():
    segments = torch.arange(4)[None]
    batch = make_batch(segments)
    batch.labels.zero_()
    batch.position_ids.zero_()
    assert segments.tolist() == [[0, 1, 2, 3]]


def test_moving_and_freezing():
    batch = make_batch(torch.arange(4)[None]).to("meta")
    assert batch.input_ids.is_meta
    assert batch.labels.is_meta
    assert batch.position_ids.is_meta
    assert batch.num_valid == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.num_valid = 0  # type: ignore[misc]


def test_documents_have_positions_of_their_own_and_no_target_in_the_next_one() -> None:
    segments = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]])
    batch = make_batch(segments, ((0, 2, 3), (0,)))
    none = IGNORE_INDEX
    assert batch.labels.tolist() == [[6, none, none, 9, none], [2, 3, 4, 5, none]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.num_valid == 6
    assert batch.documents == ((0, 2, 3), (0,))
    assert batch.labels.dtype == batch.position_ids.dtype == torch.int64


@given(st.lists(st.sets(st.integers(1, 11), max_size=11), min_size=1, max_size=3))
def test_a_row_of_documents_is_each_document_alone(cuts: list[set[int]]) -> None:
    length = 12
    segments = torch.randint(0, 99, (len(cuts), length), generator=torch.Generator().manual_seed(0))
    documents = tuple((0, *sorted(cut)) for cut in cuts)
    batch = make_batch(segments, documents)
    parts = [
        make_batch(segments[row : row + 1, start:end])
        for row, starts in enumerate(documents)
        for start, end in pairwise((*starts, length))
    ]
    for name in ("input_ids", "labels", "position_ids"):
        alone = torch.cat([getattr(part, name)[0] for part in parts])
        assert torch.equal(getattr(batch, name).flatten(), alone), name
    assert batch.num_valid == sum(part.num_valid for part in parts)


def test_one_document_per_row_is_the_batch_without_documents() -> None:
    segments = torch.arange(8).view(2, 4)
    given, plain = make_batch(segments, ((0,), (0,))), make_batch(segments)
    assert given.num_valid == plain.num_valid
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(getattr(given, name), getattr(plain, name))
    assert plain.documents is None


@pytest.mark.parametrize("documents", [((0,),), ((0, 4), (0,)), ((1,), (0,)), ((0, 2, 2), (0,))])
def test_documents_that_do_not_fit_the_segments_are_refused(documents: Any) -> None:
    with pytest.raises(ValueError, match="documents: "):
        make_batch(torch.arange(8).view(2, 4), documents)
