"""The ids of a prompt's parts, as they are inside of one text."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...data.encode import Encoder
from ...data.tokenize import bracket_ids


class Tokens:
    """A tokenizer that adds nothing but BOS, and that only where a prompt begins.

    Args:
        tokenizer: a Hugging Face tokenizer with a backend of the tokenizers library; it is not changed.
        bos: begin prompts with BOS, where the tokenizer has one.
    """

    def __init__(self, tokenizer: Any, bos: bool = True):
        self.tokenizer = tokenizer
        first = tokenizer.bos_token_id if bos else None
        self.bos: list[int] = [] if first is None else [first]
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder = Encoder(backend, *bracket_ids(tokenizer), np.dtype(np.int32))
        self.count = cache(self._count)

    def begin(self, text: str) -> list[int]:
        """Ids of a prompt's beginning: BOS, and the space that some tokenizers put before a text."""
        return [*self.bos, *self._encoder.encode_part(text, first=True).tolist()]

    def more(self, text: str) -> list[int]:
        """Ids of what follows a line break: nothing is put before it."""
        return list(self._encoder.encode_part(text, first=False).tolist())

    def text(self, ids: list[int]) -> str:
        """What ids say, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _count(self, sentence: str) -> int:
        return len(self.more(f" {sentence}"))
