"""The files of a prepared folder: writing packed segments with bounded memory, reading them memory-mapped.

The format is that of ``datasets.Dataset.save_to_disk``: one column ``input_ids``, a fixed-length list of uint16 or
int32, so ``datasets.load_from_disk`` opens it too. ``manifest.json`` beside it is ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..errors import DataError, problem

MANIFEST = "manifest.json"
COLUMN = "input_ids"
TOKENS_PER_WRITE = 2**20  # tokens buffered before they are written


class Segments:
    """Packed segments on disk, memory-mapped: only the pages that are read take memory.

    Picklable, so loader processes can receive it; they map the files again.
    """

    def __init__(self, folder: Path, parts: Sequence[np.ndarray]):
        self.folder = folder
        self._parts = parts  # each [n_i, seq_len], read-only
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def seq_len(self) -> int:
        """Tokens per segment."""
        return int(self._parts[0].shape[1])

    def __getitem__(self, indices: int | Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Segments [n, seq_len] int64 in the order of ``indices`` [n]; one integer counts as one index.

        Raises:
            IndexError: if an index is negative or not below ``len(self)``.
        """
        wanted = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"segment ids {wanted.tolist()} are not all in [0, {len(self)}) of {self.folder}")
        out = np.empty((len(wanted), self.seq_len), dtype=np.int64)
        parts = np.searchsorted(self._starts, wanted, side="right") - 1
        for row, (part, index) in enumerate(zip(parts, wanted, strict=True)):
            out[row] = self._parts[part][index - self._starts[part]]
        return torch.from_numpy(out)

    def __reduce__(self) -> tuple[Callable[[Path], Segments], tuple[Path]]:
        return open_segments, (self.folder,)


def open_segments(folder: str | Path) -> Segments:
    """Map the segments of a prepared folder.

    Raises:
        DataError: if the folder is not complete.
    """
    from datasets import load_from_disk

    folder = Path(folder)
    described = manifest(folder)
    try:
        column = load_from_disk(str(folder)).data.column(COLUMN)
    except (OSError, ValueError, KeyError) as error:
        raise _broken(folder, f"its files cannot be opened: {error}") from error
    # flatten() respects the offset of a chunk, and nothing here copies
    flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
    segments = Segments(folder, [part.reshape(-1, described["seq_len"]) for part in flat if len(part)])
    if len(segments) != described["segments"]:
        raise _broken(folder, f"{MANIFEST} says {described['segments']} segments, the files hold {len(segments)}")
    return segments


def manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        DataError: if the folder has none, or one that cannot be read.
    """
    file = Path(folder) / MANIFEST
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise _broken(folder, f"{file} is missing, so it is half-written or something else") from error
    except (OSError, ValueError) as error:
        raise _broken(folder, f"{file}: {error}") from error


def write_manifest(folder: Path, described: dict[str, Any]) -> None:
    """Write ``manifest.json``."""
    (folder / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


class SegmentWriter:
    """Writes segments of ids below ``folder`` as they come; :meth:`finish` makes them a ``datasets`` folder."""

    def __init__(self, folder: Path, seq_len: int, dtype: np.dtype):
        from datasets import Features, List, Value

        self.folder = folder
        self.seq_len = seq_len
        self._schema = Features({COLUMN: List(Value(dtype.name), length=seq_len)}).arrow_schema
        self._stream = folder / "stream" / "packed.arrow"  # in a folder: datasets refuses to write beside its input
        self._stream.parent.mkdir()
        self._writer = pa.ipc.new_stream(str(self._stream), self._schema)
        self._waiting: list[np.ndarray] = []
        self._rows = 0

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()

    def write(self, block: np.ndarray) -> None:
        """Append ``block`` [n, seq_len]."""
        if len(block):
            self._waiting.append(block)
            self._rows += len(block)
        if self._rows * self.seq_len >= TOKENS_PER_WRITE:
            self._flush()

    def finish(self) -> None:
        """Write what is buffered and give the files their final form."""
        from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        self._flush()
        self._writer.close()
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            # from_file maps the stream, so this copies from disk to disk
            Dataset.from_file(str(self._stream)).save_to_disk(str(self.folder))
        finally:
            if shown:
                enable_progress_bars()
        shutil.rmtree(self._stream.parent)

    def _flush(self) -> None:
        if not self._waiting:
            return
        flat = pa.array(np.concatenate(self._waiting).reshape(-1))
        rows = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field(COLUMN).type)
        self._writer.write_batch(pa.record_batch([rows], schema=self._schema))
        self._waiting, self._rows = [], 0


def _broken(folder: str | Path, why: str) -> DataError:
    fix = f"{why}; delete the folder and run data/prepare.py"
    return DataError(problem("data.cache", str(folder), "a folder that data/prepare.py completed", fix))
