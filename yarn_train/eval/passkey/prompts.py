"""Prompts of exactly so many tokens, with a key at a wanted place. Pure.

The wording is that of Mohtashami and Jaggi (2023), which the YaRN paper uses: a task, filler, the key in one line,
filler, the question. Text is tokenised in two parts that meet at a line break, and what is too long is taken off the
beginning of the filler, token by token: the filler may begin inside a sentence, nothing else is ever cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from ...errors import ConfigError, problem
from .tokens import Tokens

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there."
)
QUESTION = "What is the pass key? The pass key is"
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)

SLACK = 8  # tokens by which sentences counted alone may differ from the same in one text


def needle(key: str) -> str:
    """The line with the key."""
    return f"The pass key is {key}. Remember it. {key} is the pass key."


class Filler(Protocol):
    """Sentences that end a text; index 0 is the last of them, 1 the one before it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> str: ...


class Repeated:
    """The paper's five sentences, again and again, the last of them at the end."""

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> str:
        return FILLER[-1 - index % len(FILLER)]


@dataclass(frozen=True)
class Prompt:
    """A prompt and what should follow it.

    Attributes:
        ids: BOS and text.
        key: what the first number of the answer must be.
        depth: share of the filler's tokens that stand before the key.
    """

    ids: list[int]
    key: str
    depth: float


@dataclass(frozen=True)
class Placed:
    """A line and the share of the filler that should stand before it."""

    line: str
    depth: float


def fixed_tokens(tokens: Tokens, lines: Sequence[str], question: str = QUESTION) -> int:
    """Tokens of a prompt without filler, BOS included."""
    return len(tokens.begin(TASK + "\n")) + len(tokens.more("\n".join([*lines, question])))


def shortest(tokens: Tokens, lines: Sequence[str], question: str = QUESTION) -> int:
    """The length from which on a prompt surely has filler before or after every one of these lines."""
    return fixed_tokens(tokens, lines, question) + max(map(tokens.count, FILLER))


def assemble(
    tokens: Tokens, length: int, placed: Sequence[Placed], filler: Filler, question: str = QUESTION
) -> tuple[list[int], list[float]]:
    """Ids of a prompt of exactly `length` tokens, and the real depth of each line.

    A line goes to the end of the sentence nearest to its depth, or before all filler.

    Raises:
        ConfigError: the length is too short for the lines, or the filler for the length.
    """
    fixed = fixed_tokens(tokens, [p.line for p in placed], question)
    if fixed > length:
        fix = f"the shortest possible is {shortest(tokens, [p.line for p in placed], question)}"
        raise ConfigError(problem("passkey.lengths", length, f">= {fixed} tokens for its sentences", fix))
    count = _sentences_of(tokens, filler, length - fixed)
    built = _with(tokens, length, placed, filler, count, question)
    while built is None:
        if count == len(filler):
            raise ConfigError(problem("passkey.lengths", length, "what the documents can fill", "use longer documents"))
        count += 1
        built = _with(tokens, length, placed, filler, count, question)
    # the fewest that are enough, so that the cut stays inside the first
    while count and (fewer := _with(tokens, length, placed, filler, count - 1, question)):
        built, count = fewer, count - 1
    return built


def _sentences_of(tokens: Tokens, filler: Filler, wanted: int) -> int:
    """How many of the last sentences have about as many tokens as wanted."""
    found = total = 0
    while total < wanted and found < len(filler):
        total += tokens.count(filler[found])
        found += 1
    return found


def _with(
    tokens: Tokens, length: int, placed: Sequence[Placed], filler: Filler, count: int, question: str
) -> tuple[list[int], list[float]] | None:
    """A prompt made of the last `count` sentences; None where these are too few."""
    sentences = [filler[i] for i in reversed(range(count))]
    ends = [0, *accumulate(map(tokens.count, sentences))]
    cut = max(0, ends[-1] - (length - fixed_tokens(tokens, [p.line for p in placed], question)))
    for _ in range(2):  # what is cut decides the places, and these a little of what is cut
        before = [max(0, end - cut) for end in ends]
        places = [_nearest(before, p.depth) for p in placed]
        first = "".join(f"{p.line}\n" for p, place in zip(placed, places, strict=True) if place == 0)
        begin = tokens.begin(f"{TASK}\n{first}")
        rest = tokens.more("\n".join(_lines(sentences, placed, places, question)))
        over = len(begin) + len(rest) - length
        if over < 0 or (over > 0 and not sentences):
            return None
        if abs(over - cut) <= SLACK // 2:
            break
        cut = over
    return begin + rest[over:], [before[place] / max(1, before[-1]) for place in places]


def _nearest(before: Sequence[int], depth: float) -> int:
    """The sentence whose end is nearest to a depth; not the first where the cut leaves little of it."""
    wanted = depth * before[-1]
    possible = [i for i, tokens in enumerate(before) if i != 1 or tokens >= SLACK]
    return min(possible, key=lambda i: abs(before[i] - wanted))


def _lines(sentences: Sequence[str], placed: Sequence[Placed], places: Sequence[int], question: str) -> Iterator[str]:
    last = 0
    for place in sorted({place for place in places if place}):
        yield " ".join(sentences[last:place])
        yield from (p.line for p, at in zip(placed, places, strict=True) if at == place)
        last = place
    if last < len(sentences):
        yield " ".join(sentences[last:])
    yield question
