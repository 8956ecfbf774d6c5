"""Reading a prepared folder: packed segments and where documents start in them, memory-mapped.

The format is that of ``datasets.Dataset.save_to_disk``: one column ``input_ids``, a fixed-length list of uint16 or
int32, so ``datasets.load_from_disk`` opens it too. ``manifest.json`` and ``documents.npy`` beside it are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .inside import escapes
from .manifest import MANIFEST, OF_ITSELF, broken, digest, manifest
from .writer import COLUMN, STARTS

if TYPE_CHECKING:
    from torch import Tensor

Starts = tuple[tuple[int, ...], ...]  # per segment, the positions at which its documents start, 0 first


class Segments:
    """Packed segments on disk, memory-mapped: only the pages that are read take memory.

    Picklable, so other processes can receive it; they map the files again.

    Attributes:
        described: the folder's manifest.
        starts: where each document starts in the stream of all tokens, int64 [documents], rising.
    """

    def __init__(self, folder: Path, described: dict[str, Any], parts: Sequence[np.ndarray], starts: np.ndarray):
        self.folder, self.described, self.starts = folder, described, starts
        self._parts = parts  # each [n_i, seq_len], read-only
        self._first = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def seq_len(self) -> int:
        """Tokens per segment."""
        return int(self._parts[0].shape[1])

    @property
    def content_sha256(self) -> str:
        """SHA-256 of all ids, as the manifest gives it."""
        return str(self.described["content_sha256"])

    @property
    def documents_sha256(self) -> str:
        """SHA-256 of where documents start, as the manifest gives it."""
        return str(self.described["documents_sha256"])

    def __getitem__(self, indices: int | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Segments [n, seq_len] int64 in the order of ``indices`` [n]; one integer counts as one index.

        Raises:
            IndexError: if an index is negative or not below ``len(self)``.
        """
        import torch  # here, so that preparing data does not load it

        wanted = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"segment ids {wanted.tolist()} are not all in [0, {len(self)}) of {self.folder}")
        out = np.empty((len(wanted), self.seq_len), dtype=np.int64)
        for row, index in enumerate(wanted):
            out[row] = self.ids(int(index))
        return torch.from_numpy(out)

    def ids(self, index: int) -> np.ndarray:
        """One segment as it is stored, [seq_len], read-only."""
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._parts[part][index - self._first[part]]

    def blocks(self) -> Iterable[np.ndarray]:
        """All segments in order, as they are stored, in arrays [n, seq_len]."""
        return iter(self._parts)

    def documents(self, indices: Iterable[int]) -> Starts:
        """Where documents start in each of the segments; position 0 counts as a start wherever the segment begins."""
        found = []
        for index in indices:
            begin, end = index * self.seq_len, (index + 1) * self.seq_len
            first, last = np.searchsorted(self.starts, [begin + 1, end])
            found.append((0, *(self.starts[first:last] - begin).tolist()))
        return tuple(found)

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
        if outside := escapes(folder):
            raise ValueError(f"state.json names {outside[0]!r}, which is no file of this folder")
        column = load_from_disk(str(folder)).data.column(COLUMN)
        # flatten() respects the offset of a chunk, and nothing here copies
        flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
        parts = [part.reshape(-1, described["seq_len"]) for part in flat if len(part)]
        starts = np.load(folder / STARTS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise broken(folder, f"its files cannot be opened: {error}") from error
    segments = Segments(folder, described, parts, starts)
    for key, held in (("segments", len(segments)), ("documents", len(starts))):
        if held != described.get(key):
            raise broken(folder, f"{MANIFEST} says {described.get(key)} {key}, the files hold {held}")
    return segments


def check(folder: str | Path) -> Segments:
    """Read a prepared folder whole and compare it with its manifest.

    Raises:
        DataError: naming the first thing that differs.
    """
    segments = open_segments(folder)
    described, content, largest = segments.described, hashlib.sha256(), -1
    for block in segments.blocks():
        content.update(block.data)
        largest = max(largest, int(block.max()))
    starts = np.asarray(segments.starts)
    found = {
        "content_sha256": content.hexdigest(),
        "documents_sha256": hashlib.sha256(starts.data).hexdigest(),
        "tokens_in": len(segments) * segments.seq_len + described["remainder"],
        OF_ITSELF: digest(described),
    }
    for key, value in found.items():
        if value != described.get(key):
            raise broken(folder, f"{key} is {value}, {MANIFEST} says {described.get(key)}")
    if largest >= described["vocab_size"]:
        raise broken(folder, f"it holds the id {largest}, and the vocabulary has {described['vocab_size']}")
    return segments
