"""Cut a stream of documents into segments of one length. Pure NumPy; nothing is padded and nothing is lost silently.

Tokens are only ever appended and cut off at the front, so the segments depend on the order of the documents and on
nothing else: not on how many processes produced them, nor on how the stream was cut into arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class Packer:
    """Packs arrays of token ids one after the other; what does not fill a segment waits for the next array.

    At any time ``tokens_in == segments * seq_len + remainder``.

    Attributes:
        seq_len: tokens per segment.
        tokens_in: tokens received.
        segments: segments given out.
    """

    def __init__(self, seq_len: int):
        if seq_len < 1:
            raise ValueError(f"seq_len must be at least 1, got {seq_len}")
        self.seq_len = seq_len
        self.tokens_in = 0
        self.segments = 0
        self._waiting: list[np.ndarray] = []

    @property
    def remainder(self) -> int:
        """Tokens received that are in no segment yet; less than ``seq_len``."""
        return self.tokens_in - self.segments * self.seq_len

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Add ``tokens`` [n] and return every segment that is full now, [k, seq_len] with k >= 0."""
        # Short documents are collected, and joined only when they fill a segment: joining at every document would
        # copy a 64k segment once for each of the hundreds of documents in it.
        self.tokens_in += len(tokens)
        self._waiting.append(tokens)
        full = self.remainder // self.seq_len
        if full == 0:
            return np.empty((0, self.seq_len), dtype=tokens.dtype)
        joined = np.concatenate(self._waiting)
        self._waiting = [joined[full * self.seq_len :].copy()]  # a copy, so that the large array can be freed
        self.segments += full
        return joined[: full * self.seq_len].reshape(full, self.seq_len)


def pack(stream: Iterable[np.ndarray], seq_len: int, packer: Packer | None = None) -> Iterator[np.ndarray]:
    """Yield segments [seq_len] of a stream of arrays [n_i], in order.

    Pass a :class:`Packer` to read ``tokens_in``, ``segments`` and ``remainder`` afterwards.
    """
    packer = packer or Packer(seq_len)
    for tokens in stream:
        yield from packer.feed(tokens)
