"""metrics.jsonl of two stages, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .numbers import Gap, gap, is_number, same

# In the order in which one follows from the other; never timings. What only one of the runs records is not compared.
KEYS = ("segments", "tokens", "step_tokens", "epoch", "lr", "skipped", "loss", "grad_norm")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """The first value of a stage that differs.

    Attributes:
        gap: of numbers; None of segments.
    """

    step: int
    key: str
    a: Any
    b: Any
    gap: Gap | None


@dataclass(frozen=True)
class Steps:
    """Two stages' steps.

    Attributes:
        compared: steps that both have.
        only: how many others each of the two has.
        worst: the largest relative gap of the losses, and its step.
        last: the relative gap of the losses of the last common step.
    """

    compared: int
    only: tuple[int, int]
    first: Difference | None
    worst: tuple[float, int]
    last: float


def compare_rows(a: Sequence[Row], b: Sequence[Row], tolerance: float) -> Steps:
    """Compare the steps that both have, in order."""
    ours, theirs = ({int(row["step"]): row for row in rows} for rows in (a, b))
    steps = sorted(ours.keys() & theirs.keys())
    first = next((found for s in steps if (found := _first(s, ours[s], theirs[s], tolerance))), None)
    gaps = [(g, s) for s in steps if (g := _loss_gap(ours[s], theirs[s])) is not None]
    worst = max(gaps, key=lambda pair: pair[0], default=(0.0, 0))
    only = len(ours) - len(steps), len(theirs) - len(steps)
    return Steps(len(steps), only, first, worst, gaps[-1][0] if gaps else 0.0)


def _first(step: int, a: Row, b: Row, tolerance: float) -> Difference | None:
    for key in KEYS:
        if key in a and key in b and not same(a[key], b[key], tolerance):
            numbers = is_number(a[key]) and is_number(b[key])
            return Difference(step, key, a[key], b[key], gap(a[key], b[key]) if numbers else None)
    return None


def _loss_gap(a: Row, b: Row) -> float | None:
    x, y = a.get("loss"), b.get("loss")
    return gap(x, y).relative if is_number(x) and is_number(y) else None  # type: ignore[arg-type]
