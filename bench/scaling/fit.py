"""Power laws by least squares in logarithms. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """y = factor * x ** exponent.

    Attributes:
        error: the exponent's standard error; None where two points leave nothing to judge it by.
    """

    exponent: float
    error: float | None
    factor: float

    def __str__(self) -> str:
        return f"{self.exponent:.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def power_law(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The least-squares line through (log x, log y).

    Raises:
        ValueError: fewer than two different x, or a number that has no logarithm.
    """
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"a power law needs positive numbers at two places at least, got {list(x)} and {list(y)}")
    u, v = [math.log(n) for n in x], [math.log(n) for n in y]
    mean_u, mean_v = math.fsum(u) / len(u), math.fsum(v) / len(v)
    spread = math.fsum((a - mean_u) ** 2 for a in u)
    slope = math.fsum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / spread
    left = math.fsum((b - mean_v - slope * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    error = math.sqrt(left / (len(u) - 2) / spread) if len(u) > 2 else None
    return Fit(slope, error, math.exp(mean_v - slope * mean_u))
