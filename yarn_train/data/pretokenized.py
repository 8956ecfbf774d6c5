"""Rows of token ids that somebody else made, used as they are: what does not fit the run is refused, not repaired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import DataConfig
from ..errors import DataError, problem
from .local import READABLE, Listing
from .splits import check_split
from .tables import open_source, open_tables

COLUMN = "input_ids"
TOKENS_PER_BLOCK = 2**22  # 32 MB of int64


@dataclass(frozen=True)
class Rows:
    """Rows of one split, memory-mapped; their lengths are checked already.

    Attributes:
        seq_len: tokens of every row.
        origin: JSON values that determine the content.
    """

    column: pa.ChunkedArray
    seq_len: int
    vocab_size: int
    origin: dict[str, Any]

    def __len__(self) -> int:
        return len(self.column)

    def identity(self) -> dict[str, Any]:
        """The hub's repository and commit, or the fingerprint of local files."""
        return self.origin

    def blocks(self, tokens: int = TOKENS_PER_BLOCK) -> Iterator[np.ndarray]:
        """All rows in order, in arrays [n, seq_len] of the stored integer type, read-only, about ``tokens`` in each.

        Raises:
            DataError: at a row with an id that the vocabulary does not have.
        """
        per_block, first = max(1, tokens // self.seq_len), 0
        for chunk in self.column.chunks:
            for start in range(0, len(chunk), per_block):
                block = _block(chunk.slice(start, per_block), self.seq_len, first + start)
                self._check_ids(block, first + start)
                yield block
            first += len(chunk)

    def _check_ids(self, block: np.ndarray, first: int) -> None:
        if block.size and (block.min() < 0 or block.max() >= self.vocab_size):
            row, position = np.argwhere((block < 0) | (block >= self.vocab_size))[0]
            got = f"id {block[row, position]} in row {first + row} at position {position}"
            fix = "set model.path to the model whose tokenizer made these rows"
            raise DataError(problem(COLUMN, got, f"ids in [0, {self.vocab_size}), the tokenizer's", fix))


def open_rows(data: DataConfig, split: str, vocab_size: int) -> Rows:
    """Open one split of tokenised rows: parquet, Arrow or JSON files, a folder of ``save_to_disk``, or a hub id.

    The split is the one that the data set brings; nothing is held out of ``train``, because evaluation reads texts.

    Args:
        data: ``path`` and ``revision`` say where; every row must have ``seq_len`` ids.
        vocab_size: ids must be in [0, vocab_size); checked while reading.

    Raises:
        DataError: if files are missing or unreadable, there is no column of ids, the split is missing or empty, or a
            row has another length.
    """
    check_split(split)
    path = str(data.path)
    source = open_source(data)
    if isinstance(source, Listing) and source.kind == "text":
        raise DataError(problem("data.path", path, f"tables with {COLUMN}, not *.txt", "use data.source=text"))
    tables = open_tables(data, source, COLUMN)
    if split not in tables.splits:
        there = ", ".join(tables.splits)
        raise DataError(problem("data.path", path, f"data with a split {split!r}; it has {there}", f"see {READABLE}"))
    column = tables.splits[split].data.column(COLUMN)
    if not (_is_list(column.type) and pa.types.is_integer(column.type.value_type)):
        got = f"{COLUMN} of type {column.type}"
        raise DataError(problem("data.path", got, "lists of integers", "tokenise it first, or use data.source=text"))
    if not len(column):
        raise DataError(problem("data.path", path, "at least one row", f"split {split} is empty"))
    _check_lengths(column, data.seq_len)
    return Rows(column, data.seq_len, vocab_size, tables.identity)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _check_lengths(column: pa.ChunkedArray, seq_len: int) -> None:
    """Compare all lengths, from the offsets alone."""
    first = 0
    for chunk in column.chunks:
        lengths = pc.fill_null(pc.list_value_length(chunk), -1).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != seq_len)
        if len(wrong):
            length = int(lengths[wrong[0]])
            got = f"row {first + wrong[0]} with {length} ids" if length >= 0 else f"row {first + wrong[0]} without ids"
            fix = "all rows must be equally long"
            if length > 1 and bool((lengths == length).all()):
                fix = f"set data.seq_len={length}"
            raise DataError(problem(COLUMN, got, f"rows of data.seq_len={seq_len} ids", fix))
        first += len(chunk)


def _block(rows: pa.Array, seq_len: int, first: int) -> np.ndarray:
    """Rows of equal length as an array [n, seq_len], without a copy."""
    ids = rows.flatten()  # respects the offset of a slice
    if ids.null_count:
        place = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        got = f"no id in row {first + place // seq_len} at position {place % seq_len}"
        raise DataError(problem(COLUMN, got, "an id at every position", "leave the row out"))
    return ids.to_numpy(zero_copy_only=True).reshape(len(rows), seq_len)
