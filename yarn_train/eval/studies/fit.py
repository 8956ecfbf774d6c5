"""Where a curve of perplexities has its minimum, and the line through the minima; pure numpy.

The YaRN paper (Appendix A.2) finds the best temperature of each s and fits sqrt(1/t) = a ln s + b to them; it got
a = 0.1 and b = 1. All in x = sqrt(1/t), the factor on cos and sin, in which the curves are nearly parabolas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...intervals import LEVEL, counts


@dataclass(frozen=True)
class Minimum:
    """Where one curve is lowest.

    Attributes:
        x: of the parabola through the lowest point and its neighbours.
        edge: "low" or "high" where the lowest point is the grid's first or last that is finite, so that the minimum may
            lie outside; else "".
        drawn: x in every resample of the documents ``[resamples]``; empty without resamples.
    """

    x: float
    edge: str
    drawn: np.ndarray

    def interval(self) -> tuple[float, float] | None:
        """95 % of the resamples; None without them, and at an edge, where all of them find the edge."""
        return _ends(self.drawn) if len(self.drawn) and not self.edge else None


@dataclass(frozen=True)
class Line:
    """y = a u + b with the 95 % intervals of both; None without resamples."""

    a: float
    b: float
    a_interval: tuple[float, float] | None
    b_interval: tuple[float, float] | None


def minimum(x: Sequence[float], nll: np.ndarray, tokens: Sequence[int], resamples: int, seed: int = 0) -> Minimum:
    """The minimum of the mean loss over x, and of every resample of the documents.

    A value of x at which any document's loss is not finite is left out: a resample without that document would find
    its minimum there. Where fewer than three are left there is nothing to see, and the result is at an edge, NaN.

    Args:
        x: ascending, three or more.
        nll: summed loss ``[len(x), documents]``.
        tokens: of each document.

    Raises:
        ValueError: x is not ascending or too short.
    """
    grid = np.asarray(x, dtype=np.float64)
    if len(grid) < 3 or not (np.diff(grid) > 0).all():
        raise ValueError(f"three or more ascending values are needed, got {list(x)}")
    whole = np.isfinite(nll).all(axis=1)
    grid, nll = grid[whole], nll[whole]
    if len(grid) < 3:
        return Minimum(float("nan"), "low", np.zeros(0))
    weights = np.asarray(tokens, dtype=np.float64)
    mean = nll.sum(axis=1) / weights.sum()
    drawn = np.zeros(0)
    if resamples and len(weights) > 1:
        times = counts(len(weights), resamples, seed)
        drawn = _vertices(grid, (times @ nll.T) / (times @ weights)[:, None])
    lowest = int(mean.argmin())
    edge = {0: "low", len(grid) - 1: "high"}.get(lowest, "")
    return Minimum(float(_vertices(grid, mean[None])[0]), edge, drawn)


def line(u: Sequence[float], minima: Sequence[Minimum]) -> Line | None:
    """Least squares through the minima over u (ln s) that lie inside their grids; None for fewer than two.

    One at an edge is a bound of the grid and no minimum.
    """
    inside = [(at, m) for at, m in zip(u, minima, strict=True) if not m.edge]
    u, minima = [at for at, _ in inside], [m for _, m in inside]
    if len(u) < 2:
        return None
    a, b = _least_squares(np.asarray(u), np.array([[m.x for m in minima]]))
    drawn = [m.drawn for m in minima]
    if not all(len(d) for d in drawn):
        return Line(float(a[0]), float(b[0]), None, None)
    a_drawn, b_drawn = _least_squares(np.asarray(u), np.stack(drawn, axis=1))
    return Line(float(a[0]), float(b[0]), _ends(a_drawn), _ends(b_drawn))


def _least_squares(u: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and constants of the rows of y ``[n, len(u)]``."""
    middle = u - u.mean()
    a = (y * middle).sum(axis=1) / (middle**2).sum()
    return a, y.mean(axis=1) - a * u.mean()


def _vertices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Per row of y ``[n, len(x)]``: the vertex of the parabola through the lowest point and its two neighbours.

    At an edge, or where three points lie on no parabola that opens upwards, it is the lowest point itself.
    """
    lowest = y.argmin(axis=1)
    inner = np.clip(lowest, 1, len(x) - 2)
    rows = np.arange(len(y))
    x0, x1, x2 = x[inner - 1], x[inner], x[inner + 1]
    y0, y1, y2 = y[rows, inner - 1], y[rows, inner], y[rows, inner + 1]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    at_edge = lowest != inner
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = (x0 + x1) / 2 - left / (2 * bend)
    return np.where(at_edge | ~(bend > 0), x[lowest], vertex)


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
