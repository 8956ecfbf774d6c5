"""The order of segments over epochs and sources: a pure function of seed and position."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import stream

from yarn_train.data.stream import epoch_order

SLOW = settings(deadline=None, max_examples=100, derandomize=True)
mixtures = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=4)


def test_runs_of_one_source_keep_the_order_they_had_before_there_were_mixtures() -> None:
    assert stream((1, 7)).ids(0, 16) == [2, 4, 3, 6, 5, 0, 1, 1, 3, 6, 0, 4, 2, 5, 5, 2]
    assert stream((1, 50), seed=31337).ids(1000, 6) == [26, 46, 7, 9, 44, 27]


@SLOW
@given(n=st.integers(1, 60), seed=st.integers(0, 2**40), start=st.integers(0, 300))
def test_one_source_is_its_permutations_end_to_end(n: int, seed: int, start: int) -> None:
    def permutation(epoch: int) -> list[int]:
        return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n).tolist()

    wanted = itertools.chain.from_iterable(permutation(epoch) for epoch in range((start + 20) // n + 1))
    assert stream((1, n), seed=seed).ids(start, 20) == list(wanted)[start : start + 20]


@SLOW
@given(n=st.integers(1, 60), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_epoch_covers_every_segment_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(stream((1, n), seed=seed).ids(epoch * n, n)) == list(range(n))


@SLOW
@given(parts=mixtures)
def test_every_source_of_a_mixture_has_epochs_of_its_own(parts: list[tuple[int, int]]) -> None:
    mixed = stream(*parts, seed=5)
    ids = mixed.ids(0, 400)
    first = 0
    for _, count in parts:
        own = [i - first for i in ids if first <= i < first + count]
        whole = own[: len(own) // count * count]
        for at in range(0, len(whole), count):
            assert sorted(whole[at : at + count]) == list(range(count))
        first += count


@SLOW
@given(parts=mixtures, start=st.integers(0, 500), cuts=st.lists(st.integers(0, 40)))
def test_the_stream_does_not_depend_on_how_it_is_cut(parts: list[tuple[int, int]], start: int, cuts: list[int]) -> None:
    whole, at, found = stream(*parts).ids(start, sum(cuts)), start, []
    for count in cuts:
        found += stream(*parts).ids(at, count)  # nothing is remembered from one piece to the next
        at += count
    assert found == whole


def test_epochs_seeds_and_sources_differ() -> None:
    keys = itertools.product(range(3), range(3), range(3))
    orders = {tuple(epoch_order(64, seed, epoch, source)) for seed, epoch, source in keys}
    assert len(orders) == 27
    assert tuple(range(64)) not in orders  # and all are shuffled


def test_equal_sources_of_a_mixture_are_not_read_in_lockstep() -> None:
    ids = stream((1, 30), (1, 30)).ids(0, 60)
    assert [i for i in ids if i < 30] != [i - 30 for i in ids if i >= 30]


def test_shares_are_exact_in_every_window() -> None:
    mixed = stream((7, 4), (3, 50))
    for start in (0, 3, 12345):
        assert sum(i < 4 for i in mixed.ids(start, 10)) == 7


@SLOW
@given(parts=mixtures, start=st.integers(0, 99), count=st.integers(0, 12))
def test_rows_and_documents_belong_to_their_ids(parts: list[tuple[int, int]], start: int, count: int) -> None:
    mixed = stream(*parts)
    ids = mixed.ids(start, count)
    assert torch.equal(mixed.rows(ids), torch.tensor(ids, dtype=torch.int64)[:, None].expand(-1, 6))
    firsts = np.cumsum([0, *(n for _, n in parts)])
    numbers = [i - max(first for first in firsts if first <= i) for i in ids]
    assert mixed.documents(ids) == tuple((0, 1 + number % 5) for number in numbers)


@pytest.mark.parametrize("ids", [[-1], [0, 7]])
def test_an_id_outside_of_the_data_is_refused(ids: list[int]) -> None:
    with pytest.raises(IndexError):
        stream((1, 4), (1, 3)).rows(ids)


def test_epochs_and_positions_say_where_a_run_stands() -> None:
    assert stream((1, 8)).epochs(3) == 0.375
    (one,) = stream((1, 8)).state(19)
    assert (one.epoch, one.position, one.segments, one.weight) == (2, 3, 8, "1")
    mixed = stream((7, 5), (3, 4))
    assert mixed.epochs(10) == {"s0": 1.4, "s1": 0.75}
    assert [(s.epoch, s.position, s.weight) for s in mixed.state(10)] == [(1, 2, "7/10"), (0, 3, "3/10")]


def test_a_state_names_segments_and_document_starts() -> None:
    (state,) = stream((1, 5)).state(7)
    assert (state.content_sha256, state.documents_sha256) == ("sha of 5 from 0", "sha of starts in 5")
    assert (state.epoch, state.position) == (1, 2)
