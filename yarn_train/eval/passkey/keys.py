"""The numbers that are hidden, and the names they have where there are several: the same on every machine. Pure."""

from __future__ import annotations

import hashlib
import random

HELD_OUT = 0.1  # share of all keys that only evaluations ask for
WORDS = """
anchor apple arrow badge barrel basket beacon bell blanket bottle bridge broom bucket button cabin candle carpet castle
chain chair clock cloud coat compass copper cradle curtain desk door drum engine feather fence ferry flag flute forest
garden gate glass hammer harbor harp hill island jacket kettle ladder lamp lantern lemon letter mill mirror needle
orchard paper pencil pillow river saddle silver spoon stone table tower wagon wheel window
"""
NAMES = WORDS.split()


def held_out(key: str) -> bool:
    """Whether only evaluations ask for this key: decided by its SHA-256, so that training texts never show it."""
    return hashlib.sha256(key.encode()).digest()[0] < HELD_OUT * 256


def draw_key(chance: random.Random, trained: bool = False) -> str:
    """A number of exactly five digits, 10000 to 99999; of those held out, or (``trained``) of all others."""
    while True:
        key = str(chance.randrange(10_000, 100_000))
        if held_out(key) != trained:
            return key


def chance_of(*parts: object) -> random.Random:
    """Random numbers that depend on these values alone, not on machine, process or order of calls."""
    return random.Random(" ".join(map(str, parts)))
