"""Which curves the dynamic study draws, and at which scale each window is read."""

from __future__ import annotations

import pytest

from yarn_train.config import RopeConfig
from yarn_train.eval.dynamic.curves import curves, needed, windows_of

L = 256
WINDOWS = [128, 256, 512, 1024]
FACTORS = [2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("listed", "factors", "expected"),
    [
        ([], FACTORS, [128, 256, 512, 1024, 2048]),
        ([], [3.0], [128, 256, 512, 768]),
        ([512, 300, 512], FACTORS, [300, 512]),
        ([], [1.0], [128, 256]),
    ],
)
def test_windows_begin_below_the_original_length(listed: list[int], factors: list[float], expected: list[int]):
    assert windows_of(listed, L, factors) == expected


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(256, [2.0]), (512, [2.0]), (513, [2.0, 4.0]), (1024, [2.0, 4.0]), (4096, [2.0, 4.0, 8.0])],
)
def test_no_fixed_scale_beyond_the_first_that_reaches_the_largest_window(largest: int, expected: list[float]):
    assert needed([8.0, 2.0, 1.0, 4.0, 2.0], largest, L) == expected


def test_the_base_then_each_method_fixed_and_dynamic():
    found = curves(RopeConfig(), ["pi", "yarn"], FACTORS, WINDOWS, L)
    assert [(c.label, c.method, c.ramp, c.factor) for c in found] == [
        ("base", "none", None, 1.0),
        ("PI s=2", "pi", None, 2.0),
        ("PI s=4", "pi", None, 4.0),
        ("Dynamic PI", "dynamic pi", None, 4.0),
        ("YaRN s=2", "yarn", "by_index", 2.0),
        ("YaRN s=4", "yarn", "by_index", 4.0),
        ("Dynamic YaRN", "dynamic yarn", "by_index", 4.0),
    ]


def test_a_dynamic_curve_reads_each_window_at_its_own_scale_and_a_fixed_one_at_one():
    rope = RopeConfig(alpha=2.0, beta=16.0, ramp="by_rotations")
    fixed, dynamic = curves(rope, ["yarn"], [4.0], WINDOWS, L)[1:]
    assert {w: r.factor for w, r in dynamic.ropes.items()} == {128: 1.0, 256: 1.0, 512: 2.0, 1024: 4.0}
    assert {r.factor for r in fixed.ropes.values()} == {4.0}
    assert {(r.method, r.alpha, r.beta, r.ramp) for r in (*fixed.ropes.values(), *dynamic.ropes.values())} == {
        ("yarn", 2.0, 16.0, "by_rotations")
    }
    assert dynamic.label == "Dynamic YaRN, Eq. 18 ramp"
