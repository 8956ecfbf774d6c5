"""Context parallelism on four gloo ranks against float64 attention and one-process training, and its checks."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import context_ranks
import pytest
import torch
import torch.multiprocessing as mp
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from yarn_train.config import ParallelConfig
from yarn_train.data.batch import IGNORE_INDEX, make_batch
from yarn_train.model.registry import choose_kernel
from yarn_train.parallel.context import ContextParallel, context_problems


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The error of every case on every rank: one start of processes for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(context_ranks.main, (str(folder),), nprocs=context_ranks.WORLD)
    found = defaultdict(list)
    for file in folder.glob("*.json"):
        for name, error in json.loads(file.read_text()).items():
            found[name].append(error)
    return found


def test_four_ranks_equal_one(errors: dict[str, list[float]]) -> None:
    """Attention and its gradients; losses, parameter gradients and logits under recomputation policies; FSDP2."""
    attention, model = (len(context_ranks.LAYOUTS) * n for n in (3 * 4, 4 + 6))
    windows = sum(ring == 1 for ring, *_ in context_ranks.LAYOUTS.values()) * 3 * 4
    assert len(errors) == attention + windows + model + 1 + 4 + 2
    for name, found in errors.items():
        tolerance = 1e-2 if name.startswith("bfloat16") else 1e-5
        assert len(found) >= 3, name
        assert all(error < tolerance for error in found), (name, found)  # written so that NaN fails


def alone() -> ContextParallel:
    class Alone:
        context = 1

    return ContextParallel(Alone())  # type: ignore[arg-type]


def test_one_rank_per_sequence_changes_nothing() -> None:
    batch, kernel = (
        make_batch(torch.zeros(1, 5, dtype=torch.long)),
        choose_kernel("sdpa", torch.device("cpu"), torch.float32),
    )
    assert alone().shard(batch) is batch
    assert alone().attention(kernel) is kernel
    assert alone().gather(batch.labels, 5) is batch.labels


class Shared:
    """The sizes of a mesh of 2 ring x 1 ulysses ranks, seen from its second rank."""

    class Size(int):
        def size(self) -> int:
            return self

    context, context_rank, ring, ulysses = 2, 1, Size(2), Size(1)


def test_a_shard_has_its_tokens_shifted_labels_rising_positions_and_padding_as_a_document() -> None:
    batch = make_batch(torch.tensor([[10, 11, 12, 13, 14, 15]]))
    batch = type(batch)(batch.input_ids, batch.labels, batch.position_ids + 100, batch.num_valid, ((0, 3),))
    shard = ContextParallel(Shared()).shard(batch).to("cpu")  # type: ignore[arg-type]
    # eight positions in four chunks; the second rank holds the middle ones
    assert shard.input_ids.tolist() == [[12, 13, 14, 15]]
    assert shard.labels.tolist() == [[13, 14, 15, IGNORE_INDEX]]
    assert shard.position_ids.tolist() == [[102, 103, 104, 105]]
    assert (shard.num_valid, shard.documents) == (3, ((0, 3, 6),))
    Shared.context_rank = 0
    shard = ContextParallel(Shared()).shard(batch)  # type: ignore[arg-type]
    Shared.context_rank = 1
    assert shard.input_ids.tolist() == [[10, 11, 0, 0]]
    assert shard.labels.tolist() == [[11, 12, IGNORE_INDEX, IGNORE_INDEX]]
    assert shard.position_ids.tolist() == [[100, 101, 106, 107]]
    assert shard.num_valid == 2


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"context": 1}, 0),
        ({"context": 6}, 0),  # 2 ulysses x 3 ring
        ({"context": 4, "context_method": "ulysses"}, 0),
        ({"context": 6, "context_method": "ulysses"}, 1),
        ({"context": 6, "context_method": "ring"}, 0),
        ({"context": 6, "ulysses": 3}, 1),
    ],
)
def test_heads_must_divide_by_the_ranks_that_exchange_them(given: dict[str, Any], problems: int) -> None:
    found = context_problems(ParallelConfig(**given), LlamaConfig(num_attention_heads=4))
    assert len(found) == problems
    assert all("query heads: 1, 2, 4" in line for line in found)


def test_layers_that_mix_tokens_otherwise_are_refused() -> None:
    config = Qwen2Config(num_hidden_layers=2, layer_types=["full_attention", "linear_attention"])
    (line,) = context_problems(ParallelConfig(context=2), config)
    assert "linear_attention" in line
    assert context_problems(ParallelConfig(context=1), config) == []


def test_windows_need_ranks_that_see_the_whole_sequence() -> None:
    config = MistralConfig(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, sliding_window=8)
    assert context_problems(ParallelConfig(context=2, context_method="ulysses"), config) == []
    (line,) = context_problems(ParallelConfig(context=2, context_method="ring"), config)
    assert "a ring of 2 ranks" in line
    config.sliding_window = None
    assert context_problems(ParallelConfig(context=2, context_method="ring"), config) == []
