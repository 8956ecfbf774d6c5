"""The tokeniser of one process: text to ids, through pieces and a cache of the pieces seen.

Books and code repeat their words, so after a few megabytes nearly every piece is in the cache, and looking one up costs
a fraction of tokenising it. Cutting is exact (see `cuts`), so the cache changes the speed and nothing else.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..errors import DataError, problem
from .cuts import SPACE, Cutting, cutting

CHUNK = 2**19  # characters tokenised at once: bounds the list of pieces, and is the unit of work of a process
CACHED = 2**18  # pieces; as many of the generation before are kept. Both full take about 90 MB, see _Cache
LONGEST = 24  # characters of a piece that is kept; longer ones hardly ever come again


@dataclass(frozen=True)
class Recipe:
    """What an :class:`Encoder` is made of, in a form that can be sent to another process.

    Attributes:
        cutting: the tokenizer and how its texts are cut.
        bos, eos: ids put before and after a document.
        dtype: of the ids, as ``numpy.dtype.str``.
    """

    cutting: Cutting
    bos: int
    eos: int
    dtype: str

    def encoder(self) -> Encoder:
        """A new encoder with an empty cache."""
        backend = Tokenizer.from_str(self.cutting.serialized)
        return Encoder(backend, self.bos, self.eos, np.dtype(self.dtype), self.cutting)

    def bracketed(self, ids: np.ndarray) -> np.ndarray:
        """``ids`` [n] between BOS and EOS, [n + 2]."""
        out = np.empty(len(ids) + 2, dtype=self.dtype)
        out[0], out[1:-1], out[-1] = self.bos, ids, self.eos
        return out


def recipe_of(serialized: str, bos: int, eos: int, dtype: np.dtype) -> Recipe:
    """The recipe for a tokenizer given as the JSON of its backend."""
    return Recipe(cutting(serialized), bos, eos, dtype.str)


def without_prefix(serialized: str) -> str:
    """The JSON of the same backend that puts neither a space nor ▁ before a text."""

    def bare(part: dict[str, Any]) -> dict[str, Any]:
        match part.get("type"):
            case "Prepend":
                return {"type": "Sequence", "normalizers": []}
            case "Metaspace":
                return {**part, "prepend_scheme": "never"}
            case "ByteLevel":
                return {**part, "add_prefix_space": False}
        return part

    return json.dumps(json.loads(serialized, object_hook=bare))


class Encoder:
    """A backend set up for documents: no truncation, no padding, special tokens in the text are plain text.

    Args:
        backend: changed to be so. With ``cutting`` it must be the one that ``cutting`` names.
        bos, eos: ids that no text may produce.
        dtype: uint16 or int32.
        cutting: None tokenises every text whole.
    """

    def __init__(self, backend: Tokenizer, bos: int, eos: int, dtype: np.dtype, cutting: Cutting | None = None):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend, self.bos, self.eos, self.dtype = backend, bos, eos, dtype
        self.cutting = cutting or Cutting("whole", "")
        self._typecode = {2: "H", 4: "i"}[dtype.itemsize]
        self._cache = _Cache(self._piece)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a document, [n], without BOS and EOS.

        Raises:
            DataError: if plain text produces the id of BOS or EOS, or an id does not fit the dtype.
        """
        ids = self._document(text)
        if self.has_marker(ids):
            pieces = self._without_markers(text)
            ids = np.concatenate([self._document(piece, first=i == 0) for i, piece in enumerate(pieces)])
        if self.has_marker(ids):
            raise DataError(
                problem(
                    "tokenizer",
                    "ids of BOS or EOS from plain text",
                    "special tokens that ordinary text cannot produce",
                    "give the tokenizer a bos_token and eos_token of their own",
                )
            )
        return ids

    def encode_part(self, text: str, first: bool) -> np.ndarray:
        """Ids of a part of a document that begins and ends at cuts, [n]; they may contain the id of a marker."""
        if self.cutting.pieces is None:
            return np.frombuffer(self._ids(text, self.backend if first else self._bare), dtype=self.dtype)
        pieces = self.cutting.pieces.findall(text)
        if first and pieces:
            pieces[0] = self.cutting.prefixed(pieces[0])
        return np.frombuffer(b"".join(map(self._cache.__getitem__, pieces)), dtype=self.dtype)

    def has_marker(self, ids: np.ndarray) -> bool:
        """Whether ``ids`` contain BOS or EOS, which only its own marks may be."""
        return bool(((ids == self.bos) | (ids == self.eos)).any())

    @cached_property
    def _bare(self) -> Tokenizer:
        """The backend for what follows the start of a document."""
        backend = Tokenizer.from_str(without_prefix(self.backend.to_str()))
        backend.encode_special_tokens = True
        return backend

    def _document(self, text: str, first: bool = True) -> np.ndarray:
        edges = self.cutting.edges(text, CHUNK)
        return np.concatenate([self.encode_part(text[a:b], first=first and a == 0) for a, b in pairwise(edges)])

    def _piece(self, text: str) -> bytes:
        return self._ids(text, self.backend)

    def _ids(self, text: str, backend: Tokenizer) -> bytes:
        # encode_batch_fast keeps no character offsets: three times as fast on a book. A batch of one text stays on
        # this thread, so the library's own thread pool never starts and needs no environment variable to forbid it.
        written = text.replace(" ", SPACE) if self.cutting.spaces else text
        (encoded,) = backend.encode_batch_fast([written], add_special_tokens=False)
        try:
            return array(self._typecode, encoded.ids).tobytes()
        except OverflowError as error:
            fix = "its vocabulary has gaps: number its tokens without"
            size = f"ids up to {np.iinfo(self.dtype).max}"
            raise DataError(problem("tokenizer", f"id {max(encoded.ids)}", size, fix)) from error

    def _without_markers(self, text: str) -> list[str]:
        """Cut inside every marker written in the text, where its merges (or a non-special flag) made it one token."""
        markers = {self.backend.id_to_token(i) or "" for i in (self.bos, self.eos)}
        cuts = {m.start() + 1 for marker in markers - {""} for m in re.finditer(re.escape(marker), text)}
        edges = [0, *sorted(cuts), len(text)]
        return [text[a:b] for a, b in pairwise(edges)]


class _Cache(dict[str, bytes]):
    """Piece -> its ids as bytes, filled by ``make``.

    When it is full it becomes the generation before, from which pieces still in use come back: what a corpus no longer
    uses goes, at the price of one look-up. An entry takes about 170 bytes.
    """

    def __init__(self, make: Callable[[str], bytes]):
        super().__init__()
        self._make = make
        self._before: dict[str, bytes] = {}

    def __missing__(self, piece: str) -> bytes:
        ids = self._before.get(piece)
        if ids is None:
            ids = self._make(piece)
        if len(piece) <= LONGEST:
            if len(self) >= CACHED:
                self._before = dict(self)
                self.clear()
            self[piece] = ids
        return ids
