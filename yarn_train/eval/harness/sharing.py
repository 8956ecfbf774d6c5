"""One rank asks, all ranks answer.

The main rank alone reads data sets, makes prompts and computes metrics, so that no number depends on how many ranks
there are and only one machine needs the data. The others wait for batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ...console.work import Work
from ...dist.collectives import from_all, on_main
from ...dist.heartbeat import heartbeat
from ...errors import YarnTrainError
from ..generate import greedy
from ..loading import Ranks
from ..perplexity.head import check_head
from .requests import Answer, Question, batches, questions
from .score import answers

T = TypeVar("T")
ROUND = 8  # batches per rank between two meetings: enough to hide one, few enough for a line that moves


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length to be continued greedily.

    Attributes:
        tokens: ``[prompts, positions]`` int64.
        slots: of each prompt its place in the list of answers.
        stop: ids that end a continuation.
    """

    tokens: np.ndarray
    slots: tuple[int, ...]
    new_tokens: int
    stop: frozenset[int]


Batch = list[Question] | Prompts


class Sharing:
    """A model that all ranks hold, asked by the main one."""

    def __init__(self, model: Any, ranks: Ranks, batch_tokens: int):
        """
        Args:
            batch_tokens: positions per forward pass.

        Raises:
            ConfigError: the model does more after its output head than is known here.
        """
        self.model, self.ranks, self.batch_tokens = model, ranks, batch_tokens
        with torch.inference_mode():
            check_head(model, ranks.runtime.device)
        self.work: Work | None = None  # the line about what is asked now

    def ask_from(self, work: Callable[[], T]) -> T | None:
        """Run `work` on the main rank, which may ask; the others answer until it ends and get None; collective.

        Raises:
            YarnTrainError: what `work` raised, on every rank.
        """
        if not self.ranks.runtime.is_main:
            while self._meet(None) is not None:
                pass
            return None
        result, failed = None, None
        try:
            result = work()
        except YarnTrainError as error:
            failed = error
        on_main(lambda: _end(failed))
        return result

    def log_probabilities(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
    ) -> tuple[list[Answer], int]:
        """An answer to each (context, continuation), and how many of them lost their beginning. Main rank only."""
        asked, cut = questions(pairs, max_length)
        found = self._ask(batches(asked, self.batch_tokens))
        return [found[slot] for slot in range(len(pairs))], cut

    def continuations(self, prompts: Sequence[Prompts]) -> dict[int, list[int]]:
        """New tokens by slot. Main rank only."""
        return self._ask(prompts)

    def _ask(self, work: Sequence[Batch]) -> dict[int, Any]:
        world = self.ranks.runtime.world_size
        found: dict[int, Any] = {}
        if self.work is not None:
            asked = sum(len(batch.slots) if isinstance(batch, Prompts) else _answers(batch) for batch in work)
            self.work.total = asked + self.work.done
        for first in range(0, len(work), ROUND * world):
            part = work[first : first + ROUND * world]
            came = self._meet([list(part[rank::world]) for rank in range(world)])
            assert came is not None
            new = {slot: answer for answers_of_rank in came for slot, answer in answers_of_rank}
            found |= new
            if self.work is not None:
                self.work.add(len(new))
        return found

    def _meet(self, shares: list[list[Batch]] | None) -> list[list[tuple[int, Any]]] | None:
        """Everyone's answers to the main rank's shares; None where it has no more."""
        told: list[list[Batch]] | None = on_main(lambda: shares)
        if told is None:
            return None
        heartbeat.at("evaluate: harness")
        mine: list[tuple[int, Any]] = []
        own = told[self.ranks.runtime.rank]
        turns = max(map(len, told)) if self.ranks.lockstep else len(own)
        for turn in range(turns):
            if turn < len(own):
                mine += self._answer(own[turn])
            if self.ranks.lockstep:
                passes = [self._passes(share[turn]) if turn < len(share) else 0 for share in told]
                self.ranks.join(self.model, max(passes) - passes[self.ranks.runtime.rank])
        return from_all(mine)

    def _answer(self, batch: Batch) -> Sequence[tuple[int, Any]]:
        if not isinstance(batch, Prompts):
            return answers(self.model, batch)
        stop = frozenset[int]() if self.ranks.lockstep else batch.stop  # the others count on every pass
        tokens, chunk = torch.from_numpy(batch.tokens), self._chunk(batch)
        new = greedy(self.model, tokens, batch.new_tokens, stop=stop, chunk=chunk)
        return list(zip(batch.slots, new.tolist(), strict=True))

    def _passes(self, batch: Batch) -> int:
        """Forward passes that a batch takes."""
        if not isinstance(batch, Prompts):
            return 1
        return math.ceil(batch.tokens.shape[1] / self._chunk(batch)) + batch.new_tokens - 1

    def _chunk(self, batch: Prompts) -> int:
        """Positions of each prompt per forward pass."""
        return max(1, self.batch_tokens // len(batch.tokens))


def _answers(batch: Sequence[Question]) -> int:
    return sum(len(question.slots) for question in batch)


def _end(failed: YarnTrainError | None) -> None:
    if failed is not None:
        raise failed
