"""Prompts as jquesnelle/yarn makes them (eval/passkey.py), written from what it does.

A key from 1 to 50000, a random place, filler cut at characters before and after it, and as many characters of filler as
a multiple of 128 keeps just under the wanted tokens: prompts of one length differ by some tokens. Unlike there, answers
are always greedy, and random numbers are seeded.
"""

from __future__ import annotations

import random
from bisect import bisect_left

from .keys import chance_of
from .prompts import FILLER, QUESTION, TASK, Prompt, needle
from .tokens import Tokens

STEP = 128  # characters
LARGEST_KEY = 50_000
BLOCK = " ".join(FILLER)


def filler(characters: int) -> str:
    """The beginning of the repeated sentences."""
    return " ".join([BLOCK] * (characters // len(BLOCK) + 1))[:characters]


def prompt(tokens: Tokens, characters: int, chance: random.Random) -> Prompt:
    """A prompt with so many characters of filler."""
    before = chance.randint(0, characters)
    key = str(chance.randint(1, LARGEST_KEY))
    text = "\n".join([TASK, filler(before), needle(key), filler(characters - before), QUESTION])
    return Prompt(tokens.begin(text), key, before / max(1, characters))


def characters_for(tokens: Tokens, length: int, seed: int) -> int:
    """Characters of filler: the last multiple of 128 before a prompt reaches `length` tokens; 0 where the first does.

    Found by bisection: a prompt of one key grows with its filler.
    """

    def reaches(steps: int) -> bool:
        return len(prompt(tokens, steps * STEP, chance_of("length", seed, length)).ids) >= length

    most = 1
    while not reaches(most):
        most *= 2
    return max(0, bisect_left(range(most + 1), True, lo=1, key=reaches) - 1) * STEP


def reference(tokens: Tokens, length: int, seed: int, trials: int) -> list[Prompt]:
    """The prompts of one length."""
    characters = characters_for(tokens, length, seed)
    return [prompt(tokens, characters, chance_of(seed, length, "reference", trial)) for trial in range(trials)]
