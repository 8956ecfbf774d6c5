"""From tokenised documents, or from rows that were tokenised elsewhere, to a prepared folder."""

from __future__ import annotations

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
        DataError: if they are less than one segment.
    """
    per_unit = [spool.lengths(number) for number in range(len(spool.units))]
    lengths = np.concatenate(per_unit) if per_unit else np.empty(0, np.int64)
    names = [job.listed.name(i) for i in range(len(lengths))]
    order = shuffled(names, ORDER_SEED)
    used = order[lengths[order] != SKIPPED]
    tokens_in, seq_len = int(lengths[used].sum()), job.data.seq_len
    segments = tokens_in // seq_len
    if segments == 0:
        has = f"at most the {tokens_in} tokens in the {len(used)} documents of {job.data.source}, split {job.split}"
        raise DataError(problem("data.seq_len", seq_len, has, "use shorter segments or more documents"))

    kept = np.maximum(lengths, 0)
    place = np.concatenate([np.cumsum(np.maximum(own, 0)) for own in per_unit]) - kept  # within its unit
    unit_of = np.repeat(np.arange(len(per_unit)), [len(own) for own in per_unit])
    packer, ids = Packer(seq_len), spool.reader()
    with SegmentWriter(folder, segments, seq_len, job.dtype) as out:
        for i in used:
            out.write(packer.feed(ids(int(unit_of[i]))[place[i] : place[i] + kept[i]]))
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
    """Write rows that are segments already into ``folder``.

    Documents in them start at BOS, or after EOS where there is no BOS at all.

    Raises:
        DataError: if a row or an id is not what this job can use.
    """
    seq_len, segments = job.data.seq_len, len(rows)
    content = job.content()
    marks: dict[str, list[np.ndarray]] = {"bos_token_id": [], "eos_token_id": []}
    at = 0
    with SegmentWriter(folder, segments, seq_len, job.dtype) as out:
        for block in rows.blocks():
            flat = block.reshape(-1)
            for key, positions in marks.items():
                positions.append(np.flatnonzero(flat == content[key]) + at)
            at += flat.size
            out.write(block.astype(job.dtype))
        bos, eos = (np.concatenate(positions) for positions in marks.values())
        found = after_ends(eos) if content["bos_token_id"] == content["eos_token_id"] or not len(bos) else bos
        everything = np.union1d([0], found[found < at])
        documents_sha256 = out.finish(everything)
    lengths = np.diff([*everything, at])
    write_manifest(
        folder,
        {
            **content,
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


def after_ends(ends: np.ndarray) -> np.ndarray:
    """Where documents start, from the positions of their ends [k], rising.

    After each end; in a run of several the last one is the mark that opens the next document, as this project writes
    them for tokenizers with a single mark.
    """
    if not len(ends):
        return ends
    last = np.append(np.diff(ends) > 1, True)  # of its run
    opens = np.append(False, np.diff(ends) == 1)  # it follows another
    return ends[last] + ~opens[last]
