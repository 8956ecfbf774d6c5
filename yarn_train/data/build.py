"""From tokenised documents, or from rows that were tokenised elsewhere, to a prepared folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, problem
from .job import ORDER_SEED, Job, shuffled
from .manifest import write_manifest
from .pack import Packer
from .pretokenized import Rows
from .spool import SKIPPED, Spool
from .writer import SegmentWriter

NAMES_KEPT = 1000  # of skipped documents in the manifest
PERCENTILES = (10, 50, 90)


def build_packed(folder: Path, job: Job, spool: Spool, content: dict[str, Any]) -> None:
    """Pack the documents of a complete spool, in the job's order, into ``folder``.

    Raises:
        DataError: if they are less than one segment, or a unit is damaged.
    """
    units = [spool.read(number) for number in range(len(spool.units))]
    lengths = np.concatenate([unit.lengths for unit in units]) if units else np.empty(0, np.int64)
    names = [job.listed.name(i) for i in range(len(lengths))]
    order = shuffled(names, ORDER_SEED)
    used = order[lengths[order] != SKIPPED]
    tokens_in, seq_len = int(lengths[used].sum()), job.data.seq_len
    segments = tokens_in // seq_len
    if segments == 0:
        has = f"at most the {tokens_in} tokens in the {len(used)} documents of {job.data.source}, split {job.split}"
        raise DataError(problem("data.seq_len", seq_len, has, "use shorter segments or more documents"))

    kept = np.maximum(lengths, 0)
    place = np.concatenate([np.cumsum(np.maximum(unit.lengths, 0)) for unit in units]) - kept  # within its unit
    unit_of = np.repeat(np.arange(len(units)), [len(unit.lengths) for unit in units])
    packer = Packer(seq_len)
    with SegmentWriter(folder, segments, seq_len, job.dtype) as out:
        for i in used:
            out.write(packer.feed(units[unit_of[i]].ids[place[i] : place[i] + kept[i]]))
        starts = np.cumsum(kept[used]) - kept[used]
        documents_sha256 = out.finish(starts)
    skipped = [names[i] for i in np.flatnonzero(lengths == SKIPPED)]
    sizes = job.listed.sizes()
    write_manifest(
        folder,
        {
            **content,
            "documents": len(used),
            "skipped": len(skipped),
            "skipped_names": skipped[:NAMES_KEPT],
            "bytes_in": int(sizes[used].sum()),
            "tokens_in": packer.tokens_in,
            "segments": packer.segments,
            "remainder": packer.remainder,
            "content_sha256": out.content.hexdigest(),
            "documents_sha256": documents_sha256,
            "tokens_per_document": statistics(kept[used]),
            "vocab_size": len(job.tokenizer),
            "dtype": job.dtype.name,
        },
    )


def build_rows(folder: Path, job: Job, rows: Rows) -> None:
    """Write rows that are segments already into ``folder``; documents in them start at BOS, or after EOS without one.

    Raises:
        DataError: if a row or an id is not what this job can use.
    """
    seq_len, segments = job.data.seq_len, len(rows)
    found = job.identity()
    begins = _starts_in(found["bos_token_id"], found["eos_token_id"])
    starts: list[np.ndarray] = []
    at, last = 0, found["eos_token_id"]
    with SegmentWriter(folder, segments, seq_len, job.dtype) as out:
        for block in rows.blocks():
            flat = block.reshape(-1)
            starts.append(begins(np.concatenate([[last], flat])) + at)
            at, last = at + flat.size, flat[-1]
            out.write(block.astype(job.dtype))
        everything = np.union1d([0], np.concatenate(starts))
        documents_sha256 = out.finish(everything)
    lengths = np.diff([*everything, at])
    write_manifest(
        folder,
        {
            **found,
            "origin": rows.identity(),
            "documents": len(lengths),
            "skipped": 0,
            "skipped_names": [],
            "bytes_in": None,
            "tokens_in": at,
            "segments": segments,
            "remainder": 0,
            "content_sha256": out.content.hexdigest(),
            "documents_sha256": documents_sha256,
            "tokens_per_document": statistics(lengths),
            "vocab_size": len(job.tokenizer),
            "dtype": job.dtype.name,
        },
    )


def statistics(lengths: np.ndarray) -> dict[str, Any]:
    """Tokens per document, BOS and EOS included: smallest, percentiles, largest, mean."""
    percentiles = {f"p{p}": int(np.percentile(lengths, p)) for p in PERCENTILES}
    return {
        "min": int(lengths.min()),
        **percentiles,
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 1),
    }


def _starts_in(bos: int, eos: int) -> Callable[[np.ndarray], np.ndarray]:
    """From one id more than a stream, [1 + n], the positions [k] in the stream at which a document starts.

    Where one id marks both ends a document starts after each run of it.
    """
    if bos != eos:
        return lambda ids: np.flatnonzero(ids[1:] == bos)
    return lambda ids: np.flatnonzero((ids[:-1] == eos) & (ids[1:] != eos))
