"""What a prepared folder is to hold, which folder that is, and whether it is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import DataError, problem
from .documents import Documents
from .hub import COMMIT
from .manifest import FORMAT, MANIFEST, manifest
from .sources import open_documents
from .tokenize import bracket_ids, id_dtype, load_tokenizer, tokenizer_sha256

ORDER_SEED = 0  # of the order of documents: part of the data, not of the run, so runs of all seeds share one folder


@dataclass(frozen=True)
class Job:
    """One source, one split, one tokenizer, one length."""

    data: DataConfig
    split: str
    tokenizer_path: str

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model that is to be trained."""
        return load_tokenizer(self.tokenizer_path)

    @cached_property
    def listed(self) -> Documents:
        """The documents, in the order of their source."""
        return open_documents(self.data, self.split)

    @property
    def dtype(self) -> np.dtype:
        """Of the ids on disk."""
        return id_dtype(len(self.tokenizer))

    def identity(self) -> dict[str, Any]:
        """What a folder must have in its manifest to be the one that was asked for; needs no source."""
        data = self.data
        bos, eos = bracket_ids(self.tokenizer)
        return {
            "format": FORMAT,
            "source": data.source,
            "column": data.column if data.source in ("pg19", "text") else None,
            "split": self.split,
            "held_out": None if data.source == "pretokenized" else data.held_out,
            "seq_len": data.seq_len,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "bos_token_id": bos,
            "eos_token_id": eos,
            "order_seed": ORDER_SEED,
        }

    def content(self) -> dict[str, Any]:
        """:meth:`identity` and a digest of the source, down to names and sizes of the documents."""
        digest = hashlib.sha256(np.ascontiguousarray(self.listed.sizes(), dtype=np.int64).data)
        for index in range(len(self.listed)):
            digest.update(self.listed.name(index).encode() + b"\0")
        return {**self.identity(), "origin": self.listed.identity(), "documents_listed": digest.hexdigest()}

    def default_folder(self, parent: Path, content: dict[str, Any]) -> Path:
        """A readable name with a hash of everything that determines the content."""
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return parent / f"{self.data.source.replace('+', '-')}-{self.split}-{self.data.seq_len}-{digest[:12]}"

    def ready(self, folder: Path, named: bool) -> bool:
        """Whether ``folder`` holds what is asked for; False if it is to be made.

        Raises:
            DataError: if it holds something else, or a ``named`` one is half-written.
        """
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        if not (folder / MANIFEST).exists() and not named:
            return False  # below data/cache, which is ours: made anew
        found, wanted = manifest(folder), self.identity()
        commit = (found.get("origin") or {}).get("revision")
        if commit and COMMIT.fullmatch(self.data.revision or ""):  # what a branch or tag means only the hub knows
            found, wanted = {**found, "revision": commit}, {**wanted, "revision": self.data.revision}
        different = [key for key, value in wanted.items() if found.get(key) != value]
        if different:
            raise DataError(
                problem(
                    f"data.cache={folder}",
                    ", ".join(f"{key}={found.get(key)!r}" for key in different),
                    "what this run asks for: " + ", ".join(f"{key}={wanted[key]!r}" for key in different),
                    "name another folder, leave data.cache out to have one chosen, or ask for what the folder holds",
                )
            )
        return True


def shuffled(names: Sequence[str], seed: int) -> np.ndarray:
    """A pseudo-random order of documents, int64 [n], by their names and ``seed`` only, so that sources are mixed."""
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    return np.argsort(np.frombuffer(b"".join(keys), dtype=">u8"), kind="stable")
