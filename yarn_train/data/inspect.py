"""What is in a prepared folder, for people: statistics, and readable windows around document boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .segments import Segments

CONTEXT = 48  # tokens shown on either side of a boundary
LINE_END = "⏎"


@dataclass(frozen=True)
class Window:
    """The tokens around the start of a document, where it is the first token of ``after``.

    Attributes:
        position: of that token in the stream of all tokens.
        segment, offset: the segment it lies in, and where.
        before, after: ids; ``before`` is empty at the start of the stream.
    """

    position: int
    segment: int
    offset: int
    before: np.ndarray
    after: np.ndarray


def windows(segments: Segments, count: int, context: int = CONTEXT) -> Iterator[Window]:
    """Windows around ``count`` document starts (or all, where there are fewer), spread evenly over the folder."""
    total = len(segments) * segments.seq_len
    starts = np.asarray(segments.starts)
    starts = starts[(starts > 0) & (starts < total)]
    if not len(starts):
        starts = np.array([0])
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int))]
    for position in chosen.tolist():
        segment, offset = divmod(position, segments.seq_len)
        before = tokens(segments, max(0, position - context), position)
        after = tokens(segments, position, min(total, position + context))
        yield Window(position, segment, offset, before, after)


def tokens(segments: Segments, begin: int, end: int) -> np.ndarray:
    """Ids [end - begin] of the stream of all tokens."""
    size = segments.seq_len
    pieces = []
    for index in range(begin // size, -(-end // size)):
        first = index * size
        pieces.append(segments.ids(index)[max(0, begin - first) : max(0, end - first)])
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def render(window: Window, tokenizer: Any) -> str:
    """A window in three lines: where it is, the end of one document, the start of the next, special tokens visible."""
    where = f"token {window.position:,}, segment {window.segment}, position {window.offset:,}"
    return "\n".join([where, f"  … {_text(window.before, tokenizer)}", f"  {_text(window.after, tokenizer)} …"])


def _text(ids: np.ndarray, tokenizer: Any) -> str:
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    lines = str(text).replace("\r", "␍").replace("\n", LINE_END).replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in lines)


def tokens_per_document(segments: Segments) -> np.ndarray:
    """Tokens of each document in the order of the stream, BOS and EOS included, int64 [documents]."""
    return np.diff(np.append(segments.starts, segments.described["tokens_in"]))


def boundaries_per_segment(segments: Segments) -> float:
    """Documents that begin inside a segment, on average."""
    return float(np.count_nonzero(np.asarray(segments.starts) % segments.seq_len)) / len(segments)


def share_lost(segments: Segments) -> float:
    """Share of the tokens that are in no segment because they do not fill one."""
    return float(segments.described["remainder"] / segments.described["tokens_in"])
