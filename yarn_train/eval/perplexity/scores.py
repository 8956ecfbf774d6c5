"""What a model answered, summed per window and document, and the ways of averaging it.

The sums are kept per window, so that all ways found in the literature come from one evaluation. ``token_mean`` weighs
every token the same. ``window_mean`` is what the YaRN reference (jquesnelle/yarn, eval/perplexity.py) prints, where a
first window of 32k tokens weighs as much as one step of 256. ``truncate`` is the same with one window per document,
which is what it ran on Proof-pile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import ConfigError, problem
from ...intervals import interval

MODES = ("token_mean", "window_mean")
TRUNCATED_MODES = ("truncate",)


@dataclass(frozen=True)
class Scores:
    """Negative log-likelihoods of one model at one window size, in nats.

    Attributes:
        nll: sums ``[document][window]``.
        counts: tokens that each sum is over.
        curves: of each document the loss at every position of its first window, float32 ``[positions]``: the first is
            of a token with one token before it. Empty where nobody asked.
    """

    window: int
    stride: int
    nll: list[list[float]]
    counts: list[list[int]]
    score_from: int | None = None
    curves: list[np.ndarray] = field(default_factory=list)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.nll)

    @property
    def nll_per_window(self) -> list[float]:
        """All sums, in document order."""
        return [value for document in self.nll for value in document]

    @property
    def tokens_per_window(self) -> list[int]:
        """What each is over."""
        return [count for document in self.counts for count in document]

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return sum(self.tokens_per_window)

    def per_document(self, mode: str = "token_mean") -> tuple[list[float], list[int]]:
        """Sums and weights of each document, whose ratio over all of them is the mean loss of `mode`.

        Raises:
            ConfigError: an unknown mode.
        """
        if mode == "token_mean":
            return [math.fsum(values) for values in self.nll], [sum(counts) for counts in self.counts]
        if mode not in (*MODES, *TRUNCATED_MODES):
            allowed = " | ".join((*MODES, *TRUNCATED_MODES))
            raise ConfigError(problem("mode", mode, allowed, "token_mean compares models"))
        pairs = zip(self.nll, self.counts, strict=True)
        means = [[value / count for value, count in zip(*pair, strict=True)] for pair in pairs]
        return [math.fsum(values) for values in means], [len(values) for values in means]

    def perplexity(self, mode: str) -> float:
        """The exponential of the mean loss.

        Returns infinity where the exponential overflows, and NaN where the model answered NaN.
        """
        sums, weights = self.per_document(mode)
        try:
            return math.exp(math.fsum(sums) / sum(weights))
        except OverflowError:
            return math.inf


def rows(
    label: str,
    method: str,
    ramp: str | None,
    factor: float,
    stage: str | None,
    scores: Scores,
    modes: Sequence[str] = MODES,
    resamples: int = 0,
) -> list[dict[str, Any]]:
    """Entries of ``eval/perplexity.json`` for one model at one window size: one per mode.

    Args:
        label: name of the curve in tables and plots.
        method, ramp, factor: the RoPE scaling the model was evaluated with.
        stage: folder name of the stage that trained it, or None when it was not trained with this scaling.
        scores: what :func:`score` returned.
        resamples: of the documents, for ``low`` and ``high``, the 95 % interval; 0: both None.

    Returns:
        Rows ready for JSON; ``perplexity`` is None where it is infinite or NaN, which JSON cannot hold.
    """
    same: dict[str, Any] = {"label": label, "method": method, "ramp": ramp, "factor": factor, "stage": stage}
    same |= {"window": scores.window, "stride": scores.stride}
    counts = {"tokens": scores.tokens, "documents": scores.documents, "score_from": scores.score_from}
    found = []
    for mode in modes:
        between = interval(*scores.per_document(mode), resamples)
        low, high = between.exp()[1:] if between else (None, None)
        values = {"perplexity": finite(scores.perplexity(mode)), "low": finite(low), "high": finite(high)}
        found.append({**same, "mode": mode, **values, **counts})
    return found


def document_rows(names: Sequence[str], scores: Scores) -> list[dict[str, Any]]:
    """Entries of ``eval/perplexity_documents.json``, without the model's names: the summed loss of each document."""
    sums = zip(names, *scores.per_document("token_mean"), strict=True)
    return [
        {"window": scores.window, "document": name, "nll": finite(nll), "tokens": tokens} for name, nll, tokens in sums
    ]


def finite(value: float | None) -> float | None:
    """The value, or None where JSON cannot hold it."""
    return value if value is not None and math.isfinite(value) else None
