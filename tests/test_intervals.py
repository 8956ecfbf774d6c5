from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from yarn_train.intervals import Interval, compared, counts, difference, interval


def test_every_resample_has_as_many_documents_as_there_are():
    drawn = counts(7, 500)
    assert drawn.shape == (500, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)
    assert np.array_equal(drawn, counts(7, 500))
    assert not np.array_equal(drawn, counts(7, 500, seed=1))


def test_three_documents_by_hand():
    """All 27 resamples of three documents are equally likely, so the percentiles can be counted."""
    nll, tokens = [10.0, 40.0, 90.0], [10, 20, 30]  # means 1, 2, 3
    ratios = sorted(
        sum(nll[i] for i in drawn) / sum(tokens[i] for i in drawn) for drawn in itertools.product(range(3), repeat=3)
    )
    found = interval(nll, tokens, 20_000, level=0.8)
    assert found is not None
    assert found.value == pytest.approx(140 / 60)
    assert (found.low, found.high) == pytest.approx((ratios[2], ratios[24]))  # 10 % of 27 lie below the third
    assert ratios[2] > ratios[0]
    assert ratios[24] < ratios[26]


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Documents of different length and difficulty; the truth is that of the distribution they are drawn from."""
    random = np.random.default_rng(5)
    held = {10: 0, 40: 0}
    for documents in held:
        for _ in range(400):
            tokens = random.integers(500, 1500, size=documents)
            means = random.normal(3.0, 0.4, size=documents)
            found = interval(means * tokens, tokens, 400)
            assert found is not None
            held[documents] += found.low <= 3.0 <= found.high
    assert 0.91 <= held[40] / 400 <= 0.98
    assert 0.85 <= held[10] / 400 <= 0.95  # too short, as its documentation says


def test_a_paired_difference_sees_what_two_intervals_do_not():
    random = np.random.default_rng(6)
    tokens = np.full(20, 1000.0)
    hard = random.normal(3.0, 0.5, size=20)
    one = hard + 0.02 + random.normal(0, 0.005, size=20)
    paired = difference(
        list(zip(one * tokens, tokens, strict=True)), list(zip(hard * tokens, tokens, strict=True)), 1000
    )
    alone = [interval(means * tokens, tokens, 1000) for means in (one, hard)]
    assert paired is not None
    assert alone[0] is not None
    assert alone[1] is not None
    assert paired.value == pytest.approx((one - hard).mean())
    assert 0 < paired.low < 0.02 + 0.005
    assert paired.high - paired.low < (alone[0].high - alone[0].low) / 20
    assert alone[0].low < alone[1].high
    assert paired.exp() == Interval(*map(math.exp, paired))


def test_a_paired_difference_of_constant_means_is_exact():
    """Equal tokens: each resample's difference is the mean of drawn differences; these are all 0.5."""
    one, other = [(15.0, 10), (25.0, 10), (5.0, 10)], [(10.0, 10), (20.0, 10), (0.0, 10)]
    assert difference(one, other, 100) == pytest.approx((0.5, 0.5, 0.5))


def test_where_there_is_no_interval():
    assert interval([1.0], [2], 100) is None
    assert interval([1.0, 2.0], [2, 2], 0) is None
    assert interval([1.0, math.nan], [2, 2], 100) is None
    assert interval([], [], 100) is None
    assert interval([1.0, 5.0], [2, 0], 100) is None  # one document only has tokens there
    assert difference([], [], 100) is None
    assert difference([(math.inf, 1), (1.0, 1)], [(1.0, 1), (1.0, 1)], 100) is None
    with pytest.raises(ValueError, match="2 and 1"):
        difference([(1.0, 1), (1.0, 1)], [(1.0, 1)], 100)


def test_labels_are_compared_on_documents_that_both_have():
    def row(label, document, nll, window=64):
        return {"label": label, "document": document, "nll": nll, "tokens": 10, "window": window}

    rows = [row("a", "x", 30.0), row("a", "y", 20.0), row("b", "y", 15.0), row("b", "x", 25.0), row("a", "z", 999.0)]
    assert compared([*rows, row("b", "x", 1.0, 128)], "a", "b", 64) == pytest.approx((0.5, 0.5, 0.5))
    assert compared([*rows, row("b", "z", None)], "a", "b", 64) is None
    assert compared(rows, "a", "b", 128) is None
