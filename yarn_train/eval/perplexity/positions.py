"""The loss against how many tokens came before: where a model stops gaining from its context, and where it breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...intervals import interval
from .scores import Scores, finite


def edges(window: int) -> list[int]:
    """Bounds of the bins of positions ``[1, window)``: powers of two and their middles (1, 2, 3, 4, 6, 8, 12 ...).

    A position is the number of tokens before the predicted one. The last bin ends at the window; where it would be less
    than half as long as it should be, the one before it takes it in.
    """
    found, step = [1], 1
    while found[-1] + step < window:
        found.append(found[-1] + step)
        step = 2 ** max(0, math.floor(math.log2(found[-1])) - 1)
    if len(found) > 1 and 2 * (window - found[-1]) < step:
        found.pop()
    return [*found, window]


def position_rows(scores: Scores, resamples: int) -> list[dict[str, Any]]:
    """Entries of ``eval/positions.json``, without the model's names: the mean loss in each bin, every token alike.

    All bins are over the same documents, those that fill the window; ``low`` and ``high`` are the 95 % interval by
    bootstrap over them. No rows where there is no such document.

    Args:
        scores: made with ``curves``.
    """
    length = scores.window - 1  # where strides are as long as windows, a window reaches one token further
    full = [curve[:length] for curve in scores.curves if len(curve) >= length]
    return binned(full, scores.window, resamples) if full else []


def binned(curves: Sequence[np.ndarray], window: int, resamples: int) -> list[dict[str, Any]]:
    """The rows of curves ``[window - 1]``, one per document."""
    found = []
    for begin, end in pairwise(edges(window)):
        sums = [curve[begin - 1 : end - 1].sum(dtype=np.float64).item() for curve in curves]
        weights = [end - begin] * len(curves)
        between = interval(sums, weights, resamples)
        found.append(
            {
                "window": window,
                "begin": begin,
                "end": end,
                "loss": finite(math.fsum(sums) / sum(weights)),
                "tokens": sum(weights),
                "low": between.low if between else None,
                "high": between.high if between else None,
            }
        )
    return found
