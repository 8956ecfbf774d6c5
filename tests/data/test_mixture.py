"""The schedule of a mixture: exact shares in every period-long window, balanced prefixes, counts in closed form."""

from __future__ import annotations

import math
import time
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


def scanned(numbers: list[int]) -> list[int]:
    """The rule read off the definition: of the draws whose window has begun, the one whose window ends first."""
    total, drawn, order = sum(numbers), [0] * len(numbers), []
    for slot in range(total):
        ends = {i: -(-(d + 1) * total // n) for i, (d, n) in enumerate(zip(drawn, numbers, strict=True))}
        begun = [i for i, n in enumerate(numbers) if drawn[i] * total // n <= slot]
        order.append(min(begun, key=ends.__getitem__))
        drawn[order[-1]] += 1
    return order


@SLOW
@given(numbers=shares)
@example(numbers=HARD[0])
@example(numbers=HARD[1])
def test_the_order_is_the_rules(numbers: list[int]) -> None:
    """Checkpoints count draws of this order, so it must never change."""
    mixed = schedule(numbers)
    divisor = math.gcd(*numbers)
    assert [mixed.source(position) for position in range(mixed.period)] == scanned([n // divisor for n in numbers])


def test_ten_thousand_sources_are_ordered_at_once() -> None:
    began = time.process_time()
    mixed = schedule([1] * 10_000)
    assert [mixed.source(position) for position in range(10_000)] == list(range(10_000))
    assert set(mixed.drawn(25_000)) == {2, 3}
    assert time.process_time() - began < 2.0


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
