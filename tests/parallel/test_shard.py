"""Index maps of context parallelism: a partition, its inverse, its balance."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yarn_train.parallel.shard import Layout

layouts = st.builds(Layout, st.integers(1, 5), st.integers(1, 5))
lengths = st.integers(1, 300)


@given(layouts, lengths)
def test_every_position_is_held_once_and_all_ranks_hold_equally_many(layout: Layout, length: int) -> None:
    padded = layout.padded(length)
    held = [layout.positions(padded, rank) for rank in range(layout.size)]
    assert sorted(p for part in held for p in part) == list(range(padded))
    assert {len(part) for part in held} == {padded // layout.size}


@given(layouts, lengths)
def test_order_is_the_inverse_of_sharding(layout: Layout, length: int) -> None:
    padded = layout.padded(length)
    stored = [p for rank in range(layout.size) for p in layout.positions(padded, rank)]
    assert [stored[place] for place in layout.order(padded)] == list(range(padded))


@given(layouts, lengths)
def test_ulysses_parts_joined_in_rank_order_are_the_ring_rank(layout: Layout, length: int) -> None:
    padded = layout.padded(length)
    for ring in range(layout.ring):
        ranks = range(ring * layout.ulysses, (ring + 1) * layout.ulysses)
        joined = [p for rank in ranks for p in layout.positions(padded, rank)]
        assert joined == [p for start, end in layout.ring_runs(padded, ring) for p in range(start, end)]


@given(layouts, lengths)
def test_padding_is_the_least_that_divides(layout: Layout, length: int) -> None:
    padded = layout.padded(length)
    assert 0 <= padded - length < 2 * layout.size
    assert layout.padded(padded) == padded


@given(st.integers(2, 5), st.integers(1, 40))
def test_zigzag_gives_every_ring_rank_the_same_number_of_visible_keys(ring: int, chunk: int) -> None:
    layout, length = Layout(ring, 1), 2 * ring * chunk
    assert len({sum(layout.positions(length, rank)) for rank in range(ring)}) == 1


def test_an_example_by_hand() -> None:
    layout = Layout(ring=2, ulysses=2)
    assert layout.padded(14) == 16
    assert [layout.runs(16, rank) for rank in range(4)] == [[(0, 4)], [(12, 16)], [(4, 8)], [(8, 12)]]
    assert Layout(ring=2, ulysses=3).runs(24, 1) == [(4, 6), (18, 20)]
    assert Layout(ring=1, ulysses=3).padded(14) == 15
