"""Rows of the files below ``eval/``, one dataclass per kind.

All name their model alike: `label`, `method`, `ramp`, `factor` (s), and `stage`, None for weights that no stage
trained. What was not finite or not measured is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One perplexity of ``perplexity.json`` or ``dynamic.json``; `low` and `high` are its 95 % interval.

    `texts` tells the documents of several runs apart; it is in no file.
    """

    label: str
    window: int
    perplexity: float
    mode: str = "token_mean"
    method: str = ""
    ramp: str | None = None
    factor: float = 1.0
    stage: str | None = None
    stride: int = 0
    tokens: int = 0
    documents: int = 0
    score_from: int | None = None
    low: float = math.nan
    high: float = math.nan
    texts: str = ""

    @property
    def scored(self) -> tuple[object, ...]:
        """Which tokens were scored, and how: perplexities at one window compare only where it is the same."""
        return self.stride, self.tokens, self.documents, self.score_from, self.texts


@dataclass(frozen=True)
class Document:
    """One document of ``perplexity_documents.json``: the sum of its negative log-likelihoods, nats, over `tokens`."""

    label: str
    window: int
    document: str
    nll: float
    tokens: int
    method: str = ""
    ramp: str | None = None
    factor: float = 1.0
    stage: str | None = None

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens if self.tokens else math.nan


@dataclass(frozen=True)
class Position:
    """One bin of ``positions.json``: loss, nats per token, of tokens with begin to end - 1 tokens before them."""

    label: str
    begin: int
    end: int
    loss: float
    tokens: int = 0
    window: int = 0
    low: float = math.nan
    high: float = math.nan
    method: str = ""
    ramp: str | None = None
    factor: float = 1.0
    stage: str | None = None


@dataclass(frozen=True)
class Passkey:
    """One cell of ``passkey.json``: how often a model found the key in texts of one length, at one depth.

    Attributes:
        length: tokens of the prompt.
        depth: where the key stands, 0 at the beginning, 1 at the end.
        correct, total: answers.
        variant: how the prompts are made.
    """

    label: str
    length: int
    depth: float
    correct: int
    total: int
    stage: str | None = None
    variant: str = "plain"
    method: str = ""
    ramp: str | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Score:
    """One result of ``harness.json``: `value` from 0 to 1 and its standard error, over `samples` questions.

    `group` is the group of tasks that it is a member of, None of what was asked for by name.
    """

    label: str
    task: str
    metric: str
    value: float
    stderr: float = math.nan
    shots: int | None = None
    samples: int | None = None
    group: str | None = None
    method: str = ""
    ramp: str | None = None
    factor: float = 1.0
    stage: str | None = None


@dataclass(frozen=True)
class Warmth:
    """One point of ``temperature.json``: perplexity of untrained weights at factor s and temperature t."""

    factor: float
    temperature: float
    window: int
    perplexity: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""
    tokens: int = 0
    documents: int = 0


@dataclass(frozen=True)
class Ramp:
    """One point of ``ramp.json``: perplexity of untrained weights at factor s under one ramp, alpha and beta."""

    factor: float
    alpha: float
    beta: float
    window: int
    perplexity: float
    ramp: str = "by_index"
    low: float = math.nan
    high: float = math.nan
    label: str = ""
    tokens: int = 0
    documents: int = 0


@dataclass(frozen=True)
class BestRamp:
    """One row of ``ramp_best.json``: the lowest cell, and its perplexity over the default's, in pairs of documents."""

    factor: float
    alpha: float
    beta: float
    window: int
    perplexity: float
    ramp: str = "by_index"
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Gain:
    """One bin of ``temperature_positions.json``: how many nats per token temperature t is better than t = 1."""

    factor: float
    temperature: float
    begin: int
    end: int
    improvement: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Best:
    """The best temperature at a factor and a window of s * L, its 95 % interval, and what the paper's rule gives there.

    `at_edge`: the lowest perplexity was that of the last temperature tried, so the best may lie beyond.
    """

    factor: float
    temperature: float
    low: float = math.nan
    high: float = math.nan
    rule: float = math.nan
    at_edge: bool = False


@dataclass(frozen=True)
class Line:
    """The fit of sqrt(1/t) = a ln s + b, with 95 % intervals."""

    a: float
    b: float
    a_low: float = math.nan
    a_high: float = math.nan
    b_low: float = math.nan
    b_high: float = math.nan
