"""The kinds of prompts, and documents that a model can be trained with to answer the plain one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ...config import PasskeyConfig
from .book import Book
from .keys import NAMES, chance_of, draw_key
from .prompts import Placed, Prompt, Repeated, assemble, needle, shortest
from .tokens import Tokens


@dataclass(frozen=True)
class Cell:
    """One question: its prompt's length in tokens, the key's depth, and which of several tries it is."""

    length: int
    depth: float
    trial: int

    def chance(self, seed: int) -> random.Random:
        """Random numbers of this question, whatever the tokenizer and the model."""
        return chance_of(seed, self.length, f"{self.depth:.6f}", self.trial)


def cells(options: PasskeyConfig, length: int) -> list[Cell]:
    """All questions at one length, by depth."""
    last = max(1, options.depths - 1)
    return [Cell(length, d / last, trial) for d in range(options.depths) for trial in range(options.trials)]


def plain(tokens: Tokens, cell: Cell, seed: int) -> Prompt:
    """The paper's prompt: one key in repeated filler."""
    key = draw_key(cell.chance(seed))
    ids, (depth,) = assemble(tokens, cell.length, [Placed(needle(key), cell.depth)], Repeated())
    return Prompt(ids, key, depth)


def in_book(tokens: Tokens, cell: Cell, seed: int, books: Sequence[Book]) -> Prompt:
    """A key between sentences of a held-out document that does not contain it."""
    chance = cell.chance(seed)
    key, book = draw_key(chance), chance.choice(books)
    text = book.part(tokens, cell.length, chance)
    while key in text:
        key = draw_key(chance)
    ids, (depth,) = assemble(tokens, cell.length, [Placed(needle(key), cell.depth)], text)
    return Prompt(ids, key, depth)


def many_keys(tokens: Tokens, cell: Cell, options: PasskeyConfig) -> Prompt:
    """Several named keys, of which the one at the wanted depth is asked for; the others stand anywhere."""
    chance = cell.chance(options.seed)
    placed, key, question = _named(cell, options, chance)
    ids, depths = assemble(tokens, cell.length, placed, Repeated(), question)
    return Prompt(ids, key, depths[0])


def shortest_of(tokens: Tokens, cell: Cell, options: PasskeyConfig) -> int:
    """The length that is surely enough for a question's sentences."""
    chance = cell.chance(options.seed)
    if options.variant == "many_keys":
        placed, _, question = _named(cell, options, chance)
        return shortest(tokens, [p.line for p in placed], question)
    return shortest(tokens, [needle(draw_key(chance))])


def training_text(tokens: Tokens, seed: int, least: int, most: int, number: int) -> str:
    """A plain document with its answer, of `least` to `most` tokens, BOS and EOS included.

    Its key is none of those that plain, many_keys and book prompts hide, whatever their seeds.
    """
    chance = chance_of("training", seed, number)
    key = draw_key(chance, trained=True)
    answer = f" {key}."
    outside = 2 - len(tokens.bos) + len(tokens.more(answer))
    length = chance.randint(least, most) - outside
    ids, _ = assemble(tokens, length, [Placed(needle(key), chance.random())], Repeated())
    return tokens.text(ids) + answer


def _named(cell: Cell, options: PasskeyConfig, chance: random.Random) -> tuple[list[Placed], str, str]:
    """The lines, the key that is asked for (the first line's), and the question."""
    names = chance.sample(NAMES, options.keys)
    keys: list[str] = []
    while len(keys) < options.keys:
        key = draw_key(chance)
        keys += [key] if key not in keys else []
    depths = [cell.depth, *(chance.random() for _ in names[1:])]
    placed = [
        Placed(f"The pass key of the {name} is {key}. Remember it. {key} is the pass key of the {name}.", depth)
        for name, key, depth in zip(names, keys, depths, strict=True)
    ]
    return placed, keys[0], f"What is the pass key of the {names[0]}? The pass key of the {names[0]} is"
