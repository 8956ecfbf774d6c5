"""lr_at: closed-form values, and what holds for every schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yarn_train.config import ScheduleConfig
from yarn_train.optim.schedule import lr_at

NAMES = ScheduleConfig.__dataclass_fields__["name"].metadata["choices"]
PAPER = {"name": "linear", "peak": 2e-5, "warmup_steps": 20, "total_steps": 400}


@st.composite
def schedules(draw: st.DrawFn) -> dict:
    total = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, total))
    peak = draw(st.floats(1e-7, 1.0))
    return {"name": draw(st.sampled_from(NAMES)), "peak": peak, "warmup_steps": warmup, "total_steps": total}


def course(schedule: dict) -> list[float]:
    return [lr_at(step, **schedule) for step in range(schedule["total_steps"])]


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("linear", 0, 1 / 4),
        ("linear", 3, 1.0),
        ("linear", 4, 1.0),
        ("linear", 5, 5 / 6),
        ("linear", 9, 1 / 6),
        ("cosine", 1, 2 / 4),
        ("cosine", 4, 1.0),
        ("cosine", 6, 0.75),
        ("cosine", 7, 0.5),
        ("cosine", 9, (1 - math.sqrt(3) / 2) / 2),
        ("constant", 2, 3 / 4),
        ("constant", 4, 1.0),
        ("constant", 9, 1.0),
    ],
)
def test_values_with_4_of_10_steps_of_warmup(name: str, step: int, expected: float) -> None:
    assert lr_at(step, name=name, peak=1.0, warmup_steps=4, total_steps=10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 1e-6), (19, 2e-5), (20, 2e-5), (210, 1e-5), (399, 2e-5 / 380)])
def test_values_of_the_paper(step: int, expected: float) -> None:
    assert lr_at(step, **PAPER) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(schedules())
def test_every_step_is_above_zero_and_at_most_the_peak(schedule: dict) -> None:
    assert all(0.0 < lr <= schedule["peak"] * (1 + 1e-12) for lr in course(schedule))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(schedules())
def test_warmup_rises_to_the_peak_and_what_follows_never_rises(schedule: dict) -> None:
    lrs, warmup = course(schedule), schedule["warmup_steps"]
    assert all(a < b for a, b in pairwise(lrs[:warmup]))
    assert all(a >= b for a, b in pairwise(lrs[warmup:]))
    assert lrs[max(warmup - 1, 0)] == pytest.approx(schedule["peak"])
    assert lrs[min(warmup, len(lrs) - 1)] == pytest.approx(schedule["peak"])


@settings(deadline=None, max_examples=100, derandomize=True)
@given(schedules())
def test_the_last_linear_step_is_one_step_above_zero(schedule: dict) -> None:
    schedule |= {"name": "linear", "warmup_steps": min(schedule["warmup_steps"], schedule["total_steps"] - 1)}
    after = schedule["total_steps"] - schedule["warmup_steps"]
    assert course(schedule)[-1] == pytest.approx(schedule["peak"] / after)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(schedules())
def test_there_is_no_jump(schedule: dict) -> None:
    """No step moves by more than the steepest slope of the warmup or of half a cosine."""
    peak, warmup, total = schedule["peak"], schedule["warmup_steps"], schedule["total_steps"]
    largest = max(1 / max(warmup, 1) if warmup > 1 else 0.0, math.pi / 2 / max(total - warmup, 1)) * peak
    assert all(abs(a - b) <= largest * (1 + 1e-9) for a, b in pairwise(course(schedule)))


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_a_step_outside_the_schedule_is_an_error(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is outside the schedule of 10 steps"):
        lr_at(step, name="linear", peak=1.0, warmup_steps=4, total_steps=10)


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'linaer'"):
        lr_at(5, name="linaer", peak=1.0, warmup_steps=4, total_steps=10)
