"""Documents that are rows of a table: one column of texts in anything that ``datasets`` loads, memory-mapped.

A text stays in its file until it is asked for, and is never decoded here: sizes come from the column's offsets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import DataConfig
from ..errors import DataError, problem
from . import hub
from .convert import Tables
from .documents import Documents, UndecodableError
from .local import Listing, list_files, missing_column, open_local
from .splits import chosen, nothing_held_out, split_of


class TableDocuments(Documents):
    """Rows of a column of texts."""

    def __init__(self, column: pa.ChunkedArray, rows: np.ndarray, prefix: str, identity: dict[str, Any]):
        """``rows`` int64 [n] of ``column`` (string or large_string); a name is ``prefix`` and the row's number."""
        self._column, self._rows, self._prefix, self._identity = column, rows, prefix, identity

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """See :meth:`Documents.name`."""
        return f"{self._prefix}{self._rows[index]}"

    def sizes(self) -> np.ndarray:
        """Bytes of every text, int64 [n]; a null has 0."""
        sizes = pc.fill_null(pc.binary_length(self._column).cast(pa.int64()), 0)
        return sizes.to_numpy()[self._rows]

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`Documents.read_bytes`; Arrow does not check that they are UTF-8."""
        value = self._column[int(self._rows[index])]
        if not value.is_valid:
            raise UndecodableError(problem(f"document {self.name(index)}", None, "a text", "leave the row out"))
        return value.as_buffer().to_pybytes()

    def identity(self) -> dict[str, Any]:
        """The hub's repository and commit or the fingerprint of local files, and the column."""
        return self._identity


def open_source(data: DataConfig) -> Listing | hub.Found:
    """What ``data.path`` names: files here if there are any, else a data set of the hub.

    Raises:
        DataError: if it is neither, or a local path has a revision.
    """
    path = str(data.path)
    listing = list_files(path)
    if listing is not None:
        if data.revision is not None:
            fix = f"leave it out: {path} is a folder or file here, no hub id"
            raise DataError(problem("data.revision", data.revision, "null for local files", fix))
        return listing
    if not hub.is_hub_id(path):
        raise DataError(problem("data.path", path, "an existing folder, file or pattern, or a hub id", "correct it"))
    return hub.find(path, data.revision)


def open_tables(data: DataConfig, source: Listing | hub.Found, column: str) -> Tables:
    """Open what :func:`open_source` found; every split has ``column``.

    Raises:
        DataError: if a file cannot be read, or the column is missing.
    """
    path = str(data.path)
    tables = open_local(source, path, column) if isinstance(source, Listing) else hub.open_hub(source)
    for split in tables.splits.values():
        if column not in split.column_names:
            raise missing_column(path, column, split.column_names)
    return tables


def table_documents(data: DataConfig, source: Listing | hub.Found, split: str, prefix: str = "") -> Documents:
    """Documents of one split, named ``<prefix><split of the data set>/<row>``.

    Raises:
        DataError: if a file cannot be read, the column is missing or holds no texts, or the split has no row.
    """
    path = str(data.path)
    tables = open_tables(data, source, data.column)
    given, hashed = chosen(tables.splits, split, path)
    column = tables.splits[given].data.column(data.column)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        fix = f"set data.column to one of {', '.join(tables.splits[given].column_names)}"
        raise DataError(problem("data.column", f"{data.column} of type {column.type}", "a column of strings", fix))
    prefix = f"{prefix}{given}/"
    identity = {**tables.identity, "column": data.column}
    rows = np.arange(len(column))
    if hashed:
        rows = rows[np.fromiter((split_of(f"{prefix}{row}", data.held_out) == split for row in rows), bool, len(rows))]
        identity["held_out"] = data.held_out
    if not len(rows):
        raise nothing_held_out(data.held_out, f"{path} has no document in split {split}")
    return TableDocuments(column, rows, prefix, identity)
