"""Where documents come from: one split of what the options of `data` name, whatever holds it.

Listing opens no document, so it is cheap for any size; a text is read when it is needed. The same call gives the same
documents in the same order on every machine that holds the same files.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DOCUMENT_SOURCES, DataConfig
from ..errors import DataError, problem
from .documents import Documents
from .files import BOOKS_LAYOUT, book_documents, stdlib_documents, text_documents
from .hub import Found
from .local import Listing
from .splits import SPLITS, check_split
from .tables import open_source, table_documents


class Joined(Documents):
    """Several lists of documents, one after the other."""

    def __init__(self, parts: Sequence[Documents]):
        self._parts = parts
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        """See :meth:`Documents.name`."""
        part, own = self._place(index)
        return part.name(own)

    def sizes(self) -> np.ndarray:
        """See :meth:`Documents.sizes`."""
        return np.concatenate([part.sizes() for part in self._parts])

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`Documents.read_bytes`."""
        part, own = self._place(index)
        return part.read_bytes(own)

    def identity(self) -> dict[str, Any]:
        """Those of all parts; their keys differ."""
        return {key: value for part in self._parts for key, value in part.identity().items()}

    def _place(self, index: int) -> tuple[Documents, int]:
        number = bisect_right(self._starts, index) - 1
        return self._parts[number], index - self._starts[number]


def open_documents(data: DataConfig, split: str) -> Documents:
    """List one split of a source of texts, in a deterministic order.

    Names are ``json/decoder.py`` for the standard library, ``pg19/train/15.txt`` or ``pg19/train/<row>`` for books,
    the path below the folder for other texts and ``train/<row>`` for other tables.

    Args:
        data: ``source`` is ``stdlib``, ``pg19``, ``stdlib+pg19`` (the first, then the second) or ``text``; ``path``,
            ``revision``, ``column`` and ``held_out`` say where and what.
        split: ``train``, ``validation`` or ``test``; a source that brings no splits is divided by hash of the name.

    Raises:
        DataError: if the source or split is unknown, files are missing or unreadable, or the split is empty.
    """
    check_split(split)
    if data.source not in DOCUMENT_SOURCES:
        raise DataError(problem("data.source", data.source, " | ".join(DOCUMENT_SOURCES), "choose one of these"))
    parts = [_part(part, data, split) for part in data.source.split("+")]
    return parts[0] if len(parts) == 1 else Joined(parts)


def pinned(data: DataConfig) -> DataConfig:
    """The same options with the commit in ``revision`` where ``path`` is a hub id, so that a resumed run reads it too.

    Raises:
        DataError: if the path is nothing, or there is no connection and no cache.
    """
    if data.path is None or data.source in ("stdlib", "mixture") or Path(data.path).exists():
        return data
    found = open_source(data)
    return dataclasses.replace(data, revision=found.commit) if isinstance(found, Found) else data


def _part(source: str, data: DataConfig, split: str) -> Documents:
    if source == "stdlib":
        return stdlib_documents(split, data.held_out)
    if data.path is None:
        allowed = f"{BOOKS_LAYOUT}, parquet files, or a hub id" if source == "pg19" else "a folder, file or hub id"
        raise DataError(problem("data.path", None, allowed, "set data.path=..."))
    if source == "pg19" and _in_books_layout(Path(data.path)):
        return book_documents(data.path, split)
    found = open_source(data)
    if isinstance(found, Listing) and found.kind == "text":
        return text_documents(found.root, found.splits, split, data.held_out, data.path)
    return table_documents(data, found, split, "pg19/" if source == "pg19" else "")


def _in_books_layout(path: Path) -> bool:
    """Whether this is a folder of books; one without parquet files is taken for one, for its error's sake."""
    if not path.is_dir():
        return False
    books = any(any((path / split).glob("*.txt")) for split in SPLITS)
    return books or not any(any(path.glob(where)) for where in ("*.parquet", "*/*.parquet", "**/*.parquet"))
