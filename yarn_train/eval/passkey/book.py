"""Filler from real text: the sentences of held-out documents."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

from ...config import Config, DataConfig
from ...data.documents import read_all
from ...data.sources import open_documents
from ...errors import DataError, problem
from ..documents import in_order
from .tokens import Tokens

END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+")
WORDS = 24  # of a piece at most: a key needs places to stand, and tables and code have no ends of sentences


@dataclass(frozen=True)
class Book:
    """A document's sentences."""

    name: str
    sentences: list[str]

    def part(self, tokens: Tokens, length: int, chance: random.Random) -> Part:
        """Sentences before a random place that surely fill `length` tokens."""
        first = total = 0
        while total < length and first < len(self.sentences):
            total += tokens.count(self.sentences[first])
            first += 1
        return Part(self.sentences[: chance.randint(first, len(self.sentences))])


@dataclass(frozen=True)
class Part:
    """See ``prompts.Filler``."""

    sentences: list[str]

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> str:
        return self.sentences[-1 - index]

    def __contains__(self, key: str) -> bool:
        return any(key in sentence for sentence in self.sentences)


def sentences_of(text: str) -> list[str]:
    """A text's sentences with single spaces, those of more than 24 words in pieces."""
    found = []
    begin = 0
    for end in [*(match.end() for match in END.finditer(text)), len(text)]:
        words = text[begin:end].split()
        found += [" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]
        begin = end
    return found


def read_books(cfg: Config, data: DataConfig, tokens: Tokens, longest: int) -> list[Book]:
    """The first ``eval.documents`` documents, in ``eval.order``, that fill the longest prompt.

    Raises:
        DataError: none does.
    """
    found: list[Book] = []
    listed = in_order(open_documents(data, cfg.eval.split), cfg.eval.order)
    for name, text in read_all(listed):
        book = Book(name, sentences_of(text))
        if _fills(book, tokens, longest):
            found.append(book)
        if len(found) == cfg.eval.documents:
            break
    if not found:
        fix = "ask for shorter prompts, or take longer documents: eval.source, eval.path"
        raise DataError(problem("passkey.lengths", longest, "tokens that some held-out document has", fix))
    return found


def content(books: list[Book]) -> dict[str, str]:
    """Names of documents and the SHA-256 of what is used of them."""
    return {book.name: hashlib.sha256(" ".join(book.sentences).encode()).hexdigest() for book in books}


def _fills(book: Book, tokens: Tokens, longest: int) -> bool:
    total = 0
    for sentence in book.sentences:
        total += tokens.count(sentence)
        if total >= longest:
            return True
    return False
