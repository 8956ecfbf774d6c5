"""Text to token ids: one document at a time, bracketed by exactly one BOS and one EOS, in document order.

Special tokens are never added by the tokenizer and never recognised inside a document: a web page or a Python file that
contains ``</s>`` is text, not an end of document. A tokenizer that has an EOS but no BOS (GPT style) uses the EOS
for both ends; one without an EOS is refused.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..errors import DataError, problem
from .sources import Document, UndecodableError

IN_FLIGHT_PER_WORKER = 4  # documents read ahead: enough to hide one long book, few enough to bound memory


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a local folder or hub id; code that comes with it is never run.

    Raises:
        DataError: if there is none, or none that the ``tokenizers`` library can run.
    """
    from transformers import AutoTokenizer  # here, so that tokenising processes start without it

    allowed = "a Hugging Face folder or hub id with a tokenizer.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(problem("model.path", str(path), allowed, f"no tokenizer could be loaded: {reason}")) from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise DataError(problem("model.path", str(path), allowed, "convert the tokenizer to tokenizer.json first"))
    return tokenizer


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 (hex) of what decides the ids of a text: the serialized backend, without truncation and padding.

    Those two are settings of the last call, not of the tokenizer.
    """
    serialized = json.loads(tokenizer.backend_tokenizer.to_str())
    serialized["truncation"] = serialized["padding"] = None
    canonical = json.dumps(serialized, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def bracket_ids(tokenizer: Any) -> tuple[int, int]:
    """(id put before every document, id put after it).

    Raises:
        DataError: if the tokenizer has no EOS.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            problem(
                "tokenizer",
                f"bos_token={tokenizer.bos_token!r}, eos_token=None",
                "a tokenizer with an eos_token (a missing bos_token is replaced by it)",
                "set eos_token in tokenizer_config.json of model.path",
            )
        )
    return (eos if bos is None else bos), eos


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that is used to hold ids: uint16 up to 65536 tokens, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def encode_document(tokenizer: Any, text: str) -> np.ndarray:
    """Ids of a text, [n] uint16 or int32, without BOS and EOS."""
    # The backend is called directly: it has no model_max_length and hence no warning about it, and it does not add
    # special tokens that a flag of the wrapper may fail to switch off.
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    try:
        return _Encoder(backend, *bracket_ids(tokenizer), id_dtype(len(tokenizer))).encode(text)
    finally:
        backend.encode_special_tokens = before


def tokenize_documents(
    documents: Iterable[Document], tokenizer_path: str | Path, workers: int = 0, skipped: list[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Read and tokenise documents as (name, ids [n + 2] with BOS and EOS), in the order given, whatever ``workers``.

    Args:
        documents: read lazily, at most a few per worker ahead of the consumer.
        tokenizer_path: local folder or hub id.
        workers: processes; 0 is one per available CPU core, 1 runs in this process.
        skipped: names of documents that are not UTF-8 are added to it; they are not yielded.

    Raises:
        DataError: if the tokenizer or a document cannot be read, or a worker process dies.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    settings = (tokenizer.backend_tokenizer.to_str(), *bracket_ids(tokenizer), id_dtype(len(tokenizer)).str)
    workers = resolve_workers(workers)
    if workers == 1:
        encoder = _Encoder.restore(*settings)
        results: Iterable[tuple[str, np.ndarray | None]] = (_bracketed(encoder, d) for d in documents)
    else:
        results = _in_processes(documents, settings, workers)
    for name, ids in results:
        if ids is not None:
            yield name, ids
        elif skipped is not None:
            skipped.append(name)


def resolve_workers(workers: int) -> int:
    """``workers``, or the number of CPU cores this process may use if it is 0."""
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Encoder:
    """A backend set up for documents: no truncation, no padding, special tokens in the text are plain text."""

    def __init__(self, backend: Tokenizer, bos: int, eos: int, dtype: np.dtype):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend, self.bos, self.eos, self.dtype = backend, bos, eos, dtype

    @classmethod
    def restore(cls, serialized: str, bos: int, eos: int, dtype: str) -> _Encoder:
        return cls(Tokenizer.from_str(serialized), bos, eos, np.dtype(dtype))

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids(text)
        if self._has_marker(ids):
            ids = np.concatenate([self._ids(piece) for piece in self._without_markers(text)])
        if self._has_marker(ids):
            raise DataError(
                problem(
                    "tokenizer",
                    "ids of BOS or EOS from plain text",
                    "special tokens that ordinary text cannot produce",
                    "give the tokenizer a bos_token and eos_token of their own",
                )
            )
        return ids

    def _ids(self, text: str) -> np.ndarray:
        # encode_batch_fast keeps no character offsets: three times as fast on a book. A batch of one text stays on
        # this thread, so the library's own thread pool never starts and needs no environment variable to forbid it.
        (encoded,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoded.ids, dtype=self.dtype)

    def _has_marker(self, ids: np.ndarray) -> bool:
        return bool(((ids == self.bos) | (ids == self.eos)).any())

    def _without_markers(self, text: str) -> list[str]:
        """Cut inside every marker written in the text, where its merges (or a non-special flag) made it one token."""
        markers = {self.backend.id_to_token(i) or "" for i in (self.bos, self.eos)}
        cuts = {m.start() + 1 for marker in markers - {""} for m in re.finditer(re.escape(marker), text)}
        edges = [0, *sorted(cuts), len(text)]
        return [text[a:b] for a, b in pairwise(edges)]


def _bracketed(encoder: _Encoder, document: Document) -> tuple[str, np.ndarray | None]:
    """(name, [BOS, ids, EOS]), or (name, None) for a document that is not UTF-8."""
    try:
        ids = encoder.encode(document.read())
    except UndecodableError:
        return document.name, None
    return document.name, np.concatenate([[encoder.bos], ids, [encoder.eos]]).astype(encoder.dtype)


_worker_encoder: _Encoder | None = None  # one per worker process, set by its initializer


def _start_worker(*settings: Any) -> None:
    global _worker_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    # A parent that is killed cannot stop its workers, and they would wait for work for ever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker_encoder = _Encoder.restore(*settings)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(document: Document) -> tuple[str, np.ndarray | None]:
    assert _worker_encoder is not None
    return _bracketed(_worker_encoder, document)


def _in_processes(
    documents: Iterable[Document], settings: tuple[Any, ...], workers: int
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Ordered map over worker processes with a bounded number of documents in flight."""
    # spawn: a forked child of a process with threads (torch, CUDA, NCCL) may deadlock
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=settings)
    try:
        source = iter(documents)
        flight: deque[Future[tuple[str, np.ndarray | None]]] = deque()
        for document in islice(source, workers * IN_FLIGHT_PER_WORKER):
            flight.append(pool.submit(_work, document))
        while flight:
            result = flight.popleft().result()
            for document in islice(source, 1):
                flight.append(pool.submit(_work, document))
            yield result
    except BrokenProcessPool as error:
        raise DataError(
            problem("data.workers", workers, "as many as fit in memory", "a worker process died; try data.workers=1")
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
