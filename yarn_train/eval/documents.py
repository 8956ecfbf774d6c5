"""Which documents an evaluation reads: the same ones on every machine, and of each only as much as is used."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..config import Config, DataConfig, EvalConfig
from ..data.documents import Document, read_all
from ..data.encode import Encoder, recipe_of
from ..data.sources import open_documents
from ..data.tokenize import bracket_ids, id_dtype
from ..errors import DataError

log = logging.getLogger(__name__)

PIECE = 2**16  # characters tokenised at a time, until a document has the tokens that are used


def held_out(
    options: EvalConfig, data: DataConfig, tokenizer: Any, min_tokens: int, num_tokens: int | None
) -> list[tuple[str, torch.Tensor]]:
    """The documents of an evaluation, ``(name, token ids [tokens] int64)``, without BOS and EOS.

    Args:
        options: split, order and number.
        data: where documents come from: :func:`evaluated`.
        min_tokens: of the shortest document that is taken.
        num_tokens: of each that are used; None: all.

    Raises:
        DataError: when not one document is long enough.
    """
    encoder = recipe_of(
        tokenizer.backend_tokenizer.to_str(), *bracket_ids(tokenizer), id_dtype(len(tokenizer))
    ).encoder()
    wanted = None if num_tokens is None else max(min_tokens, num_tokens)
    listed = in_order(open_documents(data, options.split), options.order)
    encoded = ((name, beginning(encoder, text, wanted)) for name, text in read_all(listed))
    return [(name, ids[:num_tokens]) for name, ids in choose_documents(encoded, options.documents, min_tokens)]


def in_order(listed: Sequence[Document], order: str) -> Sequence[Document]:
    """As they come (``first``), or by the sha256 of their names (``hash``).

    The latter depends on names alone, so neither the order of files on a disk nor adding workers changes the choice.
    """
    if order == "first":
        return listed
    return sorted(listed, key=lambda document: hashlib.sha256(document.name.encode()).digest())


def beginning(encoder: Encoder, text: str, wanted: int | None) -> np.ndarray:
    """The first `wanted` token ids of a text or some more, [tokens]; all of them where it has fewer, or for None.

    Exactly those of the whole text: it is tokenised from cut to cut (see ``data.cuts``), and whole if its tokenizer
    allows no cut or it contains a marker, which is cut apart.
    """
    if wanted is None:
        return encoder.encode(text)
    edges = encoder.cutting.edges(text, PIECE)
    found, count, end = [], 0, 0
    for begin, end in pairwise(edges):
        found.append(encoder.encode_part(text[begin:end], first=begin == 0))
        count += len(found[-1])
        if count >= wanted:
            break
    ids = np.concatenate(found)
    markers = {encoder.backend.id_to_token(i) or "" for i in (encoder.bos, encoder.eos)} - {""}
    marked = encoder.has_marker(ids) or any(marker in text[:end] for marker in markers)
    return encoder.encode(text) if marked else ids


def choose_documents(encoded: Iterable[tuple[str, Any]], count: int, min_tokens: int) -> list[tuple[str, torch.Tensor]]:
    """The first `count` documents of at least `min_tokens` tokens; no more are read.

    Args:
        encoded: ``(name, token ids [tokens])`` of all candidates, in the order of choice.
        count: documents wanted; fewer are returned (and a warning logged) where fewer are long enough.
        min_tokens: shortest document that can be scored.

    Raises:
        DataError: when not one document is long enough.
    """
    lengths: list[int] = []
    chosen: list[tuple[str, torch.Tensor]] = []
    for name, tokens in encoded:
        lengths.append(len(tokens))
        if len(tokens) >= min_tokens:
            chosen.append((name, torch.as_tensor(tokens).long()))
        if len(chosen) == count:
            return chosen
    if not chosen:
        seen = f"{len(lengths)} documents" + (f", the longest of {max(lengths)} tokens" if lengths else "")
        raise DataError(
            f"no held-out document can be scored: got {seen}; allowed: at least {min_tokens} tokens; "
            "fix: evaluate smaller windows (eval.windows), fewer blocks (eval.windows_per_document), "
            "or other documents (eval.source, eval.split, data.held_out)"
        )
    log.warning("eval.documents=%d, but only %d documents have %d tokens", count, len(chosen), min_tokens)
    return chosen


def evaluated(cfg: Config) -> DataConfig:
    """Where held-out documents come from: data's options with eval's source and path."""
    options: EvalConfig = cfg.eval
    source, column = options.source or cfg.data.source, options.column or cfg.data.column
    data = dataclasses.replace(cfg.data, source=source, cache=None, column=column)
    if options.path is None:
        return data
    # a commit belongs to the data set that it was given for
    revision = options.revision or (data.revision if options.path == data.path else None)
    return dataclasses.replace(data, path=options.path, revision=revision)
