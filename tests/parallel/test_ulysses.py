"""How key/value heads are shared out; the exchange itself runs on several ranks in test_context."""

from __future__ import annotations

import pytest

from yarn_train.parallel.ulysses import kv_repeats


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "repeats"),
    [
        (32, 8, 8, 1),  # divide: split
        (32, 8, 2, 1),
        (32, 8, 16, 2),  # fewer than ranks: two ranks per head, not four copies
        (32, 1, 4, 4),
        (6, 3, 2, 2),  # do not divide: one per query head
        (24, 6, 4, 2),  # do not divide, but pairs of query heads stay together
        (32, 32, 8, 1),
    ],
)
def test_key_value_heads_are_repeated_no_more_than_an_even_split_needs(heads, kv_heads, ranks, repeats) -> None:
    assert kv_repeats(heads, kv_heads, ranks) == repeats


@pytest.mark.parametrize("heads", range(1, 33))
def test_each_rank_gets_the_key_value_heads_of_its_query_heads(heads: int) -> None:
    """Whole numbers per rank, and query head i meets the key/value head it belongs to."""
    for kv_heads in (n for n in range(1, heads + 1) if heads % n == 0):
        for ranks in (n for n in range(1, heads + 1) if heads % n == 0):
            repeats = kv_repeats(heads, kv_heads, ranks)
            sent = [kv for kv in range(kv_heads) for _ in range(repeats)]
            assert len(sent) % ranks == 0
            mine, theirs = heads // ranks, len(sent) // ranks
            assert mine % theirs == 0
            for head in range(heads):
                rank, local = divmod(head, mine)
                assert sent[rank * theirs + local // (mine // theirs)] == head // (heads // kv_heads)
