"""Writing a prepared folder: packed segments as the files that ``datasets.Dataset.save_to_disk`` would write.

Written directly, in one pass and with bounded memory: going through ``save_to_disk`` would copy the whole data set once
more. The files are cut at a fixed number of segments, so they depend on nothing but the segments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

COLUMN = "input_ids"
STARTS = "documents.npy"  # where each document starts in the stream of all tokens, int64 [documents]
BYTES_PER_WRITE = 2**22  # ids buffered before they are written
BYTES_PER_FILE = 2**30


class SegmentWriter:
    """Writes ``segments`` segments of ``seq_len`` ids below ``folder`` as they come.

    Attributes:
        content: SHA-256 of all ids written, little-endian, in order.
    """

    def __init__(self, folder: Path, segments: int, seq_len: int, dtype: np.dtype):
        from datasets import Features, List, Value

        self.folder, self.segments, self.seq_len = folder, segments, seq_len
        self.content = hashlib.sha256()
        self._features = Features({COLUMN: List(Value(dtype.name), length=seq_len)})
        self._schema = self._features.arrow_schema
        per_write = max(1, BYTES_PER_WRITE // (seq_len * dtype.itemsize))
        self._per_file = per_write * max(1, BYTES_PER_FILE // (per_write * seq_len * dtype.itemsize))
        self._names = _file_names(-(-segments // self._per_file))
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._buffer = np.empty((per_write, seq_len), dtype)
        self._filled = self._written = 0

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def write(self, block: np.ndarray) -> None:
        """Append ``block`` [n, seq_len]."""
        while len(block):
            taken = block[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            block = block[len(taken) :]
            if self._filled == len(self._buffer):
                self._flush()

    def finish(self, starts: np.ndarray) -> str:
        """Write what is buffered and the rest of the folder; returns the SHA-256 of the document starts.

        Args:
            starts: int64 [documents], where they start in the stream of all tokens, rising.
        """
        from datasets import DatasetInfo

        self._flush()
        self._close()
        assert self._written == self.segments, f"{self._written} segments written, {self.segments} announced"
        starts = np.ascontiguousarray(starts, dtype=np.int64)
        np.save(self.folder / STARTS, starts)
        DatasetInfo(features=self._features).write_to_directory(str(self.folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in self._names],
            "_fingerprint": self.content.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        return hashlib.sha256(starts.data).hexdigest()

    def _flush(self) -> None:
        """Write the buffer; files are cut between buffers, so what is written does not depend on the blocks."""
        rows = self._buffer[: self._filled]
        if not len(rows):
            return
        if self._written % self._per_file == 0:
            self._close()
            file = self.folder / self._names[self._written // self._per_file]
            self._writer = pa.ipc.new_stream(str(file), self._schema)
        assert self._writer is not None
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=self._schema.field(COLUMN).type)
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self.content.update(rows.data)
        self._written += len(rows)
        self._filled = 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _file_names(count: int) -> Sequence[str]:
    """As ``datasets`` names them."""
    return [f"data-{i:05d}-of-{count:05d}.arrow" for i in range(count)]
