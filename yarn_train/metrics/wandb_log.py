"""Reads wandb's transaction logs (``run-<id>.wandb``) as far as they are whole: LevelDB's log format.

wandb writes to them every 15 s, so what a killed process had logged may not be there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

MARK = b":W&B"
BLOCK, HEADER = 32 * 1024, 7  # bytes; the file begins with a header as long as that of a chunk
FULL, LAST = 1, 4  # kinds of chunks that complete a record


def payloads(path: Path) -> Iterator[bytes]:
    """Records of a log in their order, each a serialised ``wandb_internal.Record``; up to the first that is torn."""
    return (payload for payload, _ in _records(path.read_bytes()))


def cut_torn(path: Path) -> None:
    """Cut a torn record off a log's end: ``wandb sync`` goes no further than it, not even with later starts."""
    data = path.read_bytes()
    whole = max((end for _, end in _records(data)), default=0)
    if 0 < whole < len(data):
        os.truncate(path, whole)


def _records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each record and where it ends."""
    at, parts = HEADER, []
    while data.startswith(MARK) and at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too little for a chunk: filled with zeros
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        end = at + HEADER + length
        if not FULL <= kind <= LAST or end > len(data):
            return
        parts.append(data[at + HEADER : end])
        at = end
        if kind in (FULL, LAST):
            yield b"".join(parts), at
            parts = []


def offline_logs(folder: Path, run_id: str) -> list[Path]:
    """The logs that offline starts of a run left in ``folder``, in their order."""
    return sorted(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
