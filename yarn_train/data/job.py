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
from .local import Listing, fingerprints
from .manifest import FORMAT, MANIFEST, manifest
from .pretokenized import Rows, open_rows
from .sources import open_documents
from .tables import open_source
from .tokenize import bracket_ids, id_dtype, load_tokenizer, tokenizer_sha256

ORDER_SEED = 0  # of the order of documents: part of the data, not of the run, so runs of all seeds share one folder


class Listed(Documents):
    """A source's documents as they were when they were listed: one that has changed since is an error."""

    def __init__(self, source: Documents):
        self._source = source
        self._sizes = np.ascontiguousarray(source.sizes(), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._sizes)

    def name(self, index: int) -> str:
        """See :meth:`Documents.name`."""
        return self._source.name(index)

    def sizes(self) -> np.ndarray:
        """See :meth:`Documents.sizes`; read once."""
        return self._sizes

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`Documents.read_bytes`; a DataError too if the text has another size by now."""
        text = self._source.read_bytes(index)
        if len(text) != self._sizes[index]:
            got, allowed = f"{len(text)} bytes", f"the {self._sizes[index]} bytes it had when documents were listed"
            fix = "leave the source alone while it is prepared, and start again"
            raise DataError(problem(f"document {self.name(index)}", got, allowed, fix))
        return text

    def identity(self) -> dict[str, Any]:
        """See :meth:`Documents.identity`."""
        return self._source.identity()


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
    def listed(self) -> Listed:
        """The documents, in the order of their source."""
        return Listed(open_documents(self.data, self.split))

    @cached_property
    def rows(self) -> Rows:
        """The rows of a source that is tokenised already."""
        return open_rows(self.data, self.split, len(self.tokenizer))

    @property
    def dtype(self) -> np.dtype:
        """Of the ids on disk."""
        return id_dtype(len(self.tokenizer))

    def identity(self) -> dict[str, Any]:
        """What a folder must have in its manifest to be the one that was asked for; needs no source."""
        bos, eos = bracket_ids(self.tokenizer)
        return {
            "format": FORMAT,
            "source": self.data.source,
            "split": self.split,
            "seq_len": self.data.seq_len,
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "bos_token_id": bos,
            "eos_token_id": eos,
            "order_seed": ORDER_SEED,
        }

    def content(self) -> dict[str, Any]:
        """:meth:`identity` and what there is to say about the source, down to names and sizes of its documents."""
        return {**self.identity(), **self._origin()}

    def _origin(self) -> dict[str, Any]:
        if self.data.source == "pretokenized":
            return {"origin": self.rows.identity(), "documents_listed": None}
        origin = self.listed.identity()
        if self.data.column != DataConfig.column and "column" not in origin:
            allowed, fix = f"{DataConfig.column} for files of text", "leave it out, or give files with columns"
            raise DataError(problem("data.column", self.data.column, allowed, fix))
        digest = hashlib.sha256(self.listed.sizes().data)
        for index in range(len(self.listed)):
            digest.update(self.listed.name(index).encode() + b"\0")
        return {"origin": origin, "documents_listed": digest.hexdigest()}

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
        found = manifest(folder)
        wanted = {**self.identity(), **self._options_in(found)}
        self._refuse_different(folder, found, wanted)
        return True

    def check_source(self, folder: Path) -> None:
        """Compare a named folder that is ready with the source, where that can be looked at without converting it.

        Raises:
            DataError: if the folder was made of something else.
        """
        found = manifest(folder)
        self._refuse_different(folder, found, self._source_here(found))

    def _source_here(self, found: dict[str, Any]) -> dict[str, Any]:
        """Manifest entries of the source as it is now; empty where it is not on this machine."""
        data, origin = self.data, found.get("origin") or {}
        if data.path is None or "stdlib" in data.source:  # every Python has another library: copies are meant to differ
            return {}
        if not Path(data.path).exists():
            return {"repository": data.path} if "repository" in origin else {}
        if "files_sha256" in origin:
            listing = open_source(data)
            return {"files_sha256": fingerprints(listing, data.path)[0] if isinstance(listing, Listing) else None}
        return {"documents_listed": self._origin()["documents_listed"]} if data.source != "pretokenized" else {}

    def _options_in(self, found: dict[str, Any]) -> dict[str, Any]:
        """Options that mattered when the folder was made, as this job has them."""
        origin = found.get("origin") or {}
        options: dict[str, Any] = {key: getattr(self.data, key) for key in ("column", "held_out") if key in origin}
        if "revision" in origin and COMMIT.fullmatch(self.data.revision or ""):  # only the hub knows what a tag means
            options["revision"] = self.data.revision
        return options

    @staticmethod
    def _refuse_different(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        held = {**(found.get("origin") or {}), **found}
        different = [key for key, value in wanted.items() if held.get(key) != value]
        if different:
            raise DataError(
                problem(
                    f"data.cache={folder}",
                    ", ".join(f"{key}={held.get(key)!r}" for key in different),
                    "what this run asks for: " + ", ".join(f"{key}={wanted[key]!r}" for key in different),
                    "name another folder, leave data.cache out to have one chosen, or ask for what the folder holds",
                )
            )


def shuffled(names: Sequence[str], seed: int) -> np.ndarray:
    """A pseudo-random order of documents, int64 [n], by their names and ``seed`` only, so that sources are mixed."""
    keys = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    return np.argsort(np.frombuffer(b"".join(keys), dtype=">u8"), kind="stable")
