"""All questions of an evaluation, and their answers from one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from ...config import PasskeyConfig
from ...dist.collectives import from_all
from ...dist.heartbeat import heartbeat
from ...errors import YarnTrainError, problem
from ..generate import greedy
from ..loading import Ranks
from ..rows import Rows
from .answers import is_right
from .book import Book
from .kinds import cells, in_book, many_keys, plain
from .prompts import Prompt
from .reference import reference
from .tokens import Tokens


@dataclass(frozen=True)
class Question:
    """A prompt, the depth that was asked for, and its number among those of one length."""

    prompt: Prompt
    asked_depth: float
    number: int


@dataclass(frozen=True)
class Asker:
    """Asks models for keys.

    Attributes:
        books: of variant=book.
        batch_tokens: positions per forward pass; a longer prompt is read in pieces of as many.
    """

    tokens: Tokens
    options: PasskeyConfig
    batch_tokens: int
    books: Sequence[Book] = field(default_factory=list)

    def questions(self, length: int) -> list[Question]:
        """All prompts of one length, the same on every rank and for every model."""
        options = self.options
        if options.variant == "reference":
            prompts = reference(self.tokens, length, options.seed, options.depths * options.trials)
            return [Question(p, round(p.depth, 3), number) for number, p in enumerate(prompts)]
        make = {
            "plain": lambda cell: plain(self.tokens, cell, options.seed),
            "many_keys": lambda cell: many_keys(self.tokens, cell, options),
            "book": lambda cell: in_book(self.tokens, cell, options.seed, self.books),
        }[options.variant]
        return [Question(make(c), round(c.depth, 6), number) for number, c in enumerate(cells(options, length))]

    def answers(self, model: PreTrainedModel, length: int, ranks: Ranks) -> Rows:
        """The answers to all prompts of one length, in their order; ranks share them, every rank gets all.

        Raises:
            YarnTrainError: a prompt does not fit the device's memory.
        """
        mesh = ranks.mesh
        asked = self.questions(length)
        mine: list[tuple[int, str]] = []
        for number, batch in enumerate(self._batches(asked, mesh.data_size)):
            if number % mesh.data_size == mesh.data_rank:
                heartbeat.at(f"passkeys at {length}")
                mine += self._answered(model, batch)
        said = {number: text for part in from_all(mine) for number, text in part}
        return [self._row(question, length, said[question.number]) for question in asked]

    def _batches(self, asked: Sequence[Question], ranks: int) -> Iterator[list[Question]]:
        """Prompts of one number of tokens each, as many as batch_tokens allows, and something for every rank."""
        ordered = sorted(asked, key=lambda question: len(question.prompt.ids))
        for size, group in groupby(ordered, key=lambda question: len(question.prompt.ids)):
            same = list(group)
            rows = max(1, min(self.batch_tokens // size, -(-len(same) // ranks)))
            yield from (same[i : i + rows] for i in range(0, len(same), rows))

    def _answered(self, model: PreTrainedModel, batch: Sequence[Question]) -> list[tuple[int, str]]:
        ids = torch.tensor([question.prompt.ids for question in batch])
        stop = [i for i in [self.tokens.tokenizer.eos_token_id] if i is not None]
        chunk = self.batch_tokens if ids.shape[1] > self.batch_tokens else None
        try:
            new = greedy(model, ids, self.options.new_tokens, stop=stop, chunk=chunk)
        except torch.OutOfMemoryError as error:
            allowed = f"prompts that fit the device's memory, {len(batch)} at once"
            fix = "lower eval.batch_tokens, leave this length out, or take more memory; what is done is kept"
            raise YarnTrainError(problem("passkey.lengths", ids.shape[1], allowed, fix)) from error
        return [(q.number, self.tokens.text(row)) for q, row in zip(batch, new.tolist(), strict=True)]

    def _row(self, question: Question, length: int, answer: str) -> dict[str, Any]:
        prompt, loose = question.prompt, self.options.variant == "reference"
        return {
            "variant": self.options.variant,
            "length": length,
            "asked_depth": question.asked_depth,
            "depth": round(prompt.depth, 4),
            "tokens": len(prompt.ids),
            "key": prompt.key,
            "answer": answer,
            "right": is_right(answer, prompt.key, as_number=loose),
        }
