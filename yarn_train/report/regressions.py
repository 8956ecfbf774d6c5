"""Benchmarks of an extended model against its base: what changed by more than chance. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .figures.looks import is_base
from .rows import Score

BEYOND = 2.0  # combined standard errors
COSTS = ("perplexity", "bits_per_byte", "brier", "mse")


@dataclass(frozen=True)
class Regression:
    """One result of a model beside the base's.

    Attributes:
        difference: value less the base's.
        stderr: of the difference, the root of both squared; NaN where one of them is not known.
    """

    base: Score
    score: Score

    @property
    def difference(self) -> float:
        return self.score.value - self.base.value

    @property
    def stderr(self) -> float:
        return math.hypot(self.score.stderr, self.base.stderr)

    @property
    def verdict(self) -> str:
        """worse or better where the difference is beyond 2 standard errors, else empty."""
        if not abs(self.difference) > BEYOND * self.stderr:  # with a NaN too
            return ""
        return "better" if (self.difference > 0) != is_cost(self.score) else "worse"


def is_cost(score: Score) -> bool:
    """Whether lower is better, which is no share of right answers either."""
    return any(name in score.metric for name in COSTS)


def regressions(scores: Sequence[Score]) -> list[Regression]:
    """Every result that the base has too (same task, group, metric and shots), in the order of the rows.

    The same questions are asked of both, so their errors are correlated and the true error of the difference is
    smaller: beyond 2 of these is a cautious rule.
    """
    finite = [score for score in scores if math.isfinite(score.value)]
    base = {_asked(score): score for score in finite if is_base(score)}
    pairs = [(base.get(_asked(score)), score) for score in finite if not is_base(score)]
    return [Regression(first, score) for first, score in pairs if first is not None]


def _asked(score: Score) -> tuple[object, ...]:
    return score.task, score.group, score.metric, score.shots


def by_model(found: Sequence[Regression]) -> dict[str, list[Regression]]:
    """The results of each label, in the order of the labels."""
    labels = dict.fromkeys(pair.score.label for pair in found)
    return {label: [pair for pair in found if pair.score.label == label] for label in labels}
