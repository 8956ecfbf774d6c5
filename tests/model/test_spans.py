"""Rectangles against the mask they stand for, built densely."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yarn_train.model.spans import Rectangle, check_documents, cuts, disjoint, rectangles, stacked


def dense(queries: list[int], keys: list[int], starts: list[int]) -> torch.Tensor:
    """How often each pair must be computed: 1 below the diagonal inside a document, else 0."""

    def document(position: int) -> int:
        return sum(start <= position for start in starts)

    return torch.tensor([[int(k <= q and document(q) == document(k)) for k in keys] for q in queries])


def painted(spans: list[Rectangle], rows: int, columns: int) -> torch.Tensor:
    counts = torch.zeros(rows, columns, dtype=torch.long)
    for s in spans:
        ones = torch.ones(s.q1 - s.q0, s.k1 - s.k0, dtype=torch.long)
        counts[s.q0 : s.q1, s.k0 : s.k1] += ones.tril() if s.causal else ones
    return counts


runs = st.lists(st.integers(0, 24), min_size=2, max_size=6, unique=True).map(
    lambda cuts: list(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
)


@given(runs, runs, st.sets(st.integers(1, 23), max_size=5))
def test_every_visible_pair_is_covered_once_and_no_other(queries, keys, cuts) -> None:
    starts = [0, *sorted(cuts)]
    spans = rectangles(queries, keys, starts)
    rows, columns = ([p for a, b in runs for p in range(a, b)] for runs in (queries, keys))
    assert torch.equal(painted(spans, len(rows), len(columns)), dense(rows, columns, starts))
    assert all(s.q1 - s.q0 == s.k1 - s.k0 for s in spans if s.causal)


def test_one_document_is_one_causal_square_and_several_are_one_each() -> None:
    assert rectangles([(0, 9)], [(0, 9)]) == [Rectangle(0, 9, 0, 9, True)]
    assert rectangles([(0, 9)], [(0, 9)], (0, 2)) == [Rectangle(0, 2, 0, 2, True), Rectangle(2, 9, 2, 9, True)]


def test_a_zigzag_rank_needs_one_kernel_call_per_source() -> None:
    """Chunks r and 5 - r of 6, three tokens each."""

    def held(rank: int) -> list[tuple[int, int]]:
        return [(3 * rank, 3 * rank + 3), (15 - 3 * rank, 18 - 3 * rank)]

    assert rectangles(held(1), held(1)) == [Rectangle(0, 6, 0, 6, True)]
    assert rectangles(held(1), held(0)) == [Rectangle(0, 6, 0, 3, False)]
    assert rectangles(held(1), held(2)) == [Rectangle(3, 6, 0, 6, False)]


def test_sequences_end_to_end_have_their_rectangles_one_after_the_other() -> None:
    run = [(0, 9)]
    spans = stacked([rectangles(run, run, (0, 2)), rectangles(run, run)], 9)
    assert spans == rectangles([(0, 18)], [(0, 18)], (0, 2, 9))


@given(st.sets(st.integers(1, 23), max_size=5), st.sets(st.integers(1, 23), max_size=5))
def test_documents_that_fill_the_diagonal_are_cut_where_they_begin(first, second) -> None:
    run, starts = [(0, 24)], [[0, *sorted(cut)] for cut in (first, second)]
    spans = stacked([rectangles(run, run, one) for one in starts], 24)
    assert cuts(spans, 48) == (*starts[0], *(24 + start for start in starts[1]), 48)


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [Rectangle(0, 4, 0, 4, False), Rectangle(4, 9, 4, 9, True)],  # not causal
        [Rectangle(0, 4, 0, 4, True)],  # rows without keys
        [Rectangle(4, 9, 4, 9, True)],
        [Rectangle(0, 4, 0, 4, True), Rectangle(5, 9, 5, 9, True)],
        [Rectangle(0, 4, 5, 9, True), Rectangle(4, 9, 0, 5, True)],  # not on the diagonal
        [Rectangle(0, 4, 0, 4, True), Rectangle(4, 9, 0, 4, False), Rectangle(4, 9, 4, 9, True)],
    ],
)
def test_other_rectangles_are_not_taken_for_documents(spans) -> None:
    assert cuts(spans, 9) is None


def test_disjoint() -> None:
    assert disjoint([(3, 5), (0, 3)])
    assert not disjoint([(0, 4), (3, 5)])


@pytest.mark.parametrize("documents", [((0,),), ((0,), (1, 2)), ((0,), (0, 9)), ((0,), (0, 3, 3)), ((0,), ())])
def test_starts_must_fit_the_sequences(documents) -> None:
    with pytest.raises(ValueError, match="documents"):
        check_documents(documents, rows=2, length=9)
