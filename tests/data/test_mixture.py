"""The schedule of a mixture: exact shares in every period-long window, balanced prefixes, counts in closed form."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yarn_train.data.mixture import Schedule

SLOW = settings(deadline=None, max_examples=150, derandomize=True)
HARD = [[1] * 30 + [999, 13], [3, 17, 31, 3, 35, 31]]  # where "largest deficit first" breaks the bound
shares = st.lists(st.integers(1, 40), min_size=1, max_size=7)


def schedule(numbers: list[int]) -> Schedule:
    return Schedule([Fraction(number, sum(numbers)) for number in numbers])


def drawn(mixed: Schedule, start: int, count: int) -> list[int]:
    counts = Counter(mixed.source(position) for position in range(start, start + count))
    return [counts[i] for i in range(len(mixed.weights))]


@SLOW
@given(numbers=shares, start=st.integers(0, 10**12))
def test_every_window_of_one_period_holds_exactly_the_shares(numbers: list[int], start: int) -> None:
    mixed = schedule(numbers)
    assert drawn(mixed, start, mixed.period) == [weight * mixed.period for weight in mixed.weights]


@SLOW
@given(numbers=shares)
@example(numbers=HARD[0])
@example(numbers=HARD[1])
def test_no_prefix_is_a_whole_draw_away_from_its_shares(numbers: list[int]) -> None:
    mixed = schedule(numbers)
    counts = [0] * len(numbers)
    for n in range(1, 2 * mixed.period + 1):
        counts[mixed.source(n - 1)] += 1
        assert all(abs(count - weight * n) < 1 for count, weight in zip(counts, mixed.weights, strict=True))


@SLOW
@given(numbers=shares, count=st.integers(0, 2000))
def test_counts_in_closed_form_equal_counting(numbers: list[int], count: int) -> None:
    mixed = schedule(numbers)
    assert list(mixed.drawn(count)) == drawn(mixed, 0, count)


def test_a_position_far_away_costs_no_walk() -> None:
    mixed = schedule([7, 3])
    assert mixed.drawn(10**15) == (7 * 10**14, 3 * 10**14)


def test_known_orders() -> None:
    assert [schedule([7, 3]).source(p) for p in range(10)] == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert [schedule([5]).source(p) for p in range(3)] == [0, 0, 0]


def test_the_period_is_the_common_denominator() -> None:
    assert Schedule([Fraction(1, 6), Fraction(1, 10), Fraction(11, 15)]).period == 30


@pytest.mark.parametrize("weights", [[], [Fraction(1, 2)], [Fraction(2), Fraction(-1)], [Fraction(0), Fraction(1)]])
def test_other_weights_are_a_bug_of_the_caller(weights: list[Fraction]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Schedule(weights)
