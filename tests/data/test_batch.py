from __future__ import annotations

import dataclasses

import pytest
import torch

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
