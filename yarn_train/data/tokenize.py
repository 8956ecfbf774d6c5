"""Text to token ids: one document at a time, bracketed by exactly one BOS and one EOS, in document order.

Special tokens are never added by the tokenizer and never recognised inside a document: a web page or a Python file that
contains ``</s>`` is text, not an end of document. A tokenizer that has an EOS but no BOS (GPT style) uses the EOS
for both ends; one without an EOS is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .. import model_revision, remote_code
from ..errors import DataError, problem
from .documents import Document, UndecodableError
from .encode import Encoder, Recipe, recipe_of
from .pool import Pool


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a local folder or hub id; code that comes with it is run only where that is allowed and needed.

    Raises:
        DataError: if there is none, or none that the ``tokenizers`` library can run.
    """
    from transformers import AutoTokenizer  # here, so that tokenising processes start without it

    allowed = "a Hugging Face folder or hub id with a tokenizer.json"
    revision = model_revision.of(str(path)) or "main"
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False, revision=revision)
        except ValueError:
            if not remote_code.may_run():
                raise
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=True, revision=revision)
    except Exception as error:  # of a damaged file the libraries raise anything, a bare Exception included
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(path).is_dir() and not (Path(path) / "tokenizer.json").is_file():
            reason = "it has no tokenizer.json; copy the file from where the model was published"
        elif "custom code" in reason:
            reason = "it needs its own code: read it, and if you trust it, set model.trust_remote_code=true"
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
        return Encoder(backend, *bracket_ids(tokenizer), id_dtype(len(tokenizer))).encode(text)
    finally:
        backend.encode_special_tokens = before


def cutting(tokenizer: Any) -> str:
    """One line that says whether a tokenizer's documents are tokenised in pieces or whole, and why."""
    return _recipe(tokenizer).cutting.reason


def tokenize_documents(
    documents: Iterable[Document], tokenizer_path: str | Path, workers: int = 0, skipped: list[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Read and tokenise documents as (name, ids [n + 2] with BOS and EOS), in the order given, whatever ``workers``.

    Args:
        documents: read lazily in this process, at most a few tasks of ``encode.CHUNK`` characters per worker ahead of
            the consumer.
        tokenizer_path: local folder or hub id.
        workers: processes; 0 is one per available CPU core, 1 runs in this process.
        skipped: names of documents that are not UTF-8 are added to it; they are not yielded.

    Raises:
        DataError: if the tokenizer or a document cannot be read, or a worker process dies.
    """
    recipe = _recipe(load_tokenizer(tokenizer_path))
    workers = resolve_workers(workers)
    for document, found in _alone(documents, recipe) if workers == 1 else Pool(recipe, workers).tokenize(documents):
        if isinstance(found, np.ndarray):
            yield document.name, recipe.bracketed(found)
        elif not isinstance(found, UndecodableError):
            raise found
        elif skipped is not None:
            skipped.append(document.name)


def _recipe(tokenizer: Any) -> Recipe:
    return recipe_of(tokenizer.backend_tokenizer.to_str(), *bracket_ids(tokenizer), id_dtype(len(tokenizer)))


def _alone(documents: Iterable[Document], recipe: Recipe) -> Iterator[tuple[Document, np.ndarray | DataError]]:
    """Documents tokenised in this process."""
    encoder = recipe.encoder()
    for document in documents:
        try:
            text = document.read()
        except UndecodableError as error:
            yield document, error
        else:
            yield document, encoder.encode(text)


def resolve_workers(workers: int) -> int:
    """``workers``, or the number of CPU cores this process may use if it is 0."""
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
