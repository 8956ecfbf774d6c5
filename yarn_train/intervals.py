"""How sure a mean over documents is: percentile bootstrap over whole documents, paired where two models are compared.

Tokens of one document are alike, so documents are what is drawn, not tokens. Every statistic here is a ratio of sums
over documents (summed loss by tokens, or a sum of means by their number), and the ratio is taken of each resample's own
sums (Efron and Tibshirani, An Introduction to the Bootstrap, chapters 6 and 13). The draws depend on the number of
documents and the seed alone: all models and all windows of an evaluation are resampled alike.

Over few documents such intervals are too short: of 95 % ones over 10 documents about 90 % hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float

    def exp(self) -> Interval:
        """The same of the exponential: a perplexity of a loss, a ratio of perplexities of a difference of losses."""
        return Interval(*(math.inf if end >= 700 else math.exp(end) for end in self))


@lru_cache(maxsize=4)
def counts(documents: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each document is in each resample: float64 ``[resamples, documents]``, rows sum to `documents`."""
    draws = np.random.default_rng(seed)
    found = np.zeros((resamples, documents))
    for row in found:
        row += np.bincount(draws.integers(documents, size=documents), minlength=documents)
    found.setflags(write=False)
    return found


def interval(
    sums: Sequence[float], weights: Sequence[float], resamples: int, seed: int = 0, level: float = LEVEL
) -> Interval | None:
    """Interval of ``sum(sums) / sum(weights)``: of a mean loss in nats, from losses and tokens per document.

    Args:
        sums, weights: one of each per document; a document without weight (a bin it does not reach) is left out.
        resamples: of the documents; 0: no interval.

    Returns:
        None where there is none: fewer than two documents, no resamples, a sum that is not finite.
    """
    values = np.array([sums, weights], dtype=np.float64).T
    values = values[values[:, 1] > 0]
    if resamples < 1 or len(values) < 2 or not np.isfinite(values).all():
        return None
    drawn = counts(len(values), resamples, seed) @ values
    whole = values.sum(axis=0)
    return _percentiles(whole[0] / whole[1], drawn[:, 0] / drawn[:, 1], level)


def difference(
    one: Sequence[tuple[float, float]],
    other: Sequence[tuple[float, float]],
    resamples: int,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval | None:
    """Paired interval of the loss of `one` minus the loss of `other`, in nats per token: of the same documents.

    What makes a document hard is hard for both models and cancels, so this is far shorter than what the two intervals
    suggest. Its ``exp()`` is the ratio of perplexities. With zero outside of it they differ beyond the noise of the
    choice of documents.

    Args:
        one, other: (summed loss, tokens) of each document, in the same order.

    Returns:
        None as :func:`interval`.

    Raises:
        ValueError: not the same number of documents.
    """
    if len(one) != len(other):
        raise ValueError(f"paired documents: {len(one)} and {len(other)}")
    values = np.array([(*a, *b) for a, b in zip(one, other, strict=True)], dtype=np.float64).reshape(-1, 4)
    if resamples < 1 or len(values) < 2 or not np.isfinite(values).all():
        return None
    drawn = np.vstack([values.sum(axis=0), counts(len(values), resamples, seed) @ values])
    found = drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    return _percentiles(found[0], found[1:], level)


def compared(
    rows: Iterable[Mapping[str, Any]], one: str, other: str, window: int, resamples: int = 1000
) -> Interval | None:
    """:func:`difference` of two labels at a window, from rows of ``perplexity_documents.json``, matched by document.

    Documents that only one of them has are left out.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {one: {}, other: {}}
    for row in rows:
        if row["window"] == window and row["label"] in found:
            loss = math.nan if row["nll"] is None else row["nll"]
            found[row["label"]][row["document"]] = (loss, row["tokens"])
    both = [name for name in found[one] if name in found[other]]
    return difference([found[one][name] for name in both], [found[other][name] for name in both], resamples)


def _percentiles(value: float, drawn: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def wilson(found: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share, `found` of `of` independent trials (Wilson 1927); it has a width for 0 and all too.

    Returns:
        (low, high), from 0 to 1.
    """
    share, square = found / of, z * z / of
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)
