"""index.json: which file of a checkpoint holds which elements of which tensor; and reading only what a rank needs."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..dist.failure import storage_error
from ..errors import CheckpointError
from .complete import Complete, Damaged, persistent
from .fragments import Piece, Value, pieces
from .layout import Range, Read, reads
from .safetensors_file import CODES, DTYPES

INDEX = "index.json"
SHOWN = 3  # names in a message


def tensor_file(rank: int) -> str:
    """The file of a rank's tensors."""
    return f"rank_{rank:05d}.safetensors"


@dataclass(frozen=True)
class Stored:
    """A tensor in a checkpoint: `pieces` are (file, start, length) ranges of its flattened elements."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Index:
    """What a checkpoint holds: tensors by name, and numbers and strings."""

    tensors: Mapping[str, Stored]
    values: Mapping[str, Value]

    @classmethod
    def of(cls, written: Sequence[Sequence[Range]], values: Mapping[str, Value]) -> Index:
        """What follows from what each rank writes."""
        kinds: dict[str, Range] = {}
        pieces: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for rank, ranges in enumerate(written):
            for part in ranges:
                kinds.setdefault(part.name, part)
                pieces[part.name].append((tensor_file(rank), part.start, part.length))
        return cls({n: Stored(kinds[n].shape, kinds[n].dtype, tuple(p)) for n, p in sorted(pieces.items())}, values)

    def text(self) -> str:
        """The file."""
        tensors = {
            name: {
                "shape": stored.shape,
                "dtype": stored.dtype,
                "pieces": [{"file": file, "start": start, "length": length} for file, start, length in stored.pieces],
            }
            for name, stored in self.tensors.items()
        }
        return json.dumps({"tensors": tensors, "values": self.values}) + "\n"

    @classmethod
    def load(cls, checkpoint: Path, files: Collection[str]) -> Index:
        """Read it back.

        Args:
            files: names in the checkpoint's folder; no others are ever opened.

        Raises:
            CheckpointError: it is no index, or names another file.
            StorageError: it could not be read.
        """
        try:
            path = checkpoint / INDEX
            content = json.loads(persistent(path.read_bytes, path))
            tensors = {str(name): _stored(entry, files) for name, entry in content["tensors"].items()}
            return cls(tensors, dict(content["values"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{checkpoint / INDEX} is not what was written: {error}") from error

    def problems(
        self, held: Sequence[Piece], wanted: Collection[str] | None = None, values: Collection[str] = ()
    ) -> list[str]:
        """Why the pieces that a rank holds cannot be read.

        Args:
            wanted: names that some rank reads: a checkpoint holds no others; None where only a part of it is meant.
            values: names of the numbers and strings that go with them.
        """
        missing = [piece.name for piece in held if piece.name not in self.tensors and piece.local.numel()]
        missing += [name for name in values if name not in self.values]
        extra = [] if wanted is None else [n for n in self.tensors if n not in wanted]
        extra += [] if wanted is None else [n for n in self.values if n not in values]
        found = [_named("not in it", missing)] if missing else []
        found += [_named("only in it", extra)] if extra else []
        here = [(piece, self.tensors[piece.name]) for piece in held if piece.name in self.tensors]
        if other := [_kinds(piece, stored) for piece, stored in here if not _alike(piece, stored)]:
            found.append(_named("of another shape or dtype", other))
        torn = [p.name for p, stored in here if _alike(p, stored) and p.local.numel() and self._reads(p) is None]
        if torn:
            found.append(_named("stored in other blocks or not whole", torn))
        return found

    def read(self, checkpoint: Path, held: Sequence[Piece]) -> None:
        """Fill the pieces, which have no :meth:`problems`; only their elements are read."""
        by_file: dict[str, list[tuple[Piece, Read]]] = defaultdict(list)
        for piece in held:
            for part in (self._reads(piece) or []) if piece.local.numel() else []:
                by_file[part.file].append((piece, part))
        for name, parts in sorted(by_file.items()):
            try:
                with safe_open(checkpoint / name, framework="pt") as file:
                    for piece, part in parts:
                        _fill(piece, part, file.get_slice(piece.name))
            except (SafetensorError, OSError, ValueError) as error:
                broken = CheckpointError(f"{checkpoint / name} cannot be read: {error}")
                raise storage_error(error) or broken from error

    def _reads(self, piece: Piece) -> list[Read] | None:
        return reads(self.tensors[piece.name].pieces, piece.start, piece.local.numel())


@torch.no_grad()
def _fill(piece: Piece, part: Read, stored: Any) -> None:
    if stored.get_dtype() != CODES[piece.local.dtype] or len(stored.get_shape()) != 1:
        raise ValueError(f"{piece.name} is {stored.get_dtype()} {stored.get_shape()} in it")
    piece.local.narrow(0, part.at, part.end - part.begin).copy_(stored[part.begin : part.end])


def _stored(entry: Any, files: Collection[str]) -> Stored:
    pieces = tuple((str(p["file"]), int(p["start"]), int(p["length"])) for p in entry["pieces"])
    for file, start, length in pieces:
        if file not in files or start < 0 or length < 0:
            raise ValueError(f"a piece of elements {start} to {start + length} in {file!r}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r}")
    return Stored(tuple(int(size) for size in entry["shape"]), entry["dtype"], pieces)


def _alike(piece: Piece, stored: Stored) -> bool:
    """ZeRO knows flat tensors only: the same elements in one row are the same tensor."""
    flat = len(piece.shape) == 1 or len(stored.shape) == 1
    same = math.prod(piece.shape) == math.prod(stored.shape) if flat else piece.shape == stored.shape
    return same and CODES[piece.local.dtype] == stored.dtype


def _kinds(piece: Piece, stored: Stored) -> str:
    return f"{piece.name} ({stored.dtype} {list(stored.shape)}; here {CODES[piece.local.dtype]} {list(piece.shape)})"


def _named(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,} {'tensor' if len(names) == 1 else 'tensors'} {what}: {', '.join(names[:SHOWN])}{more}"


def fitting(
    checkpoint: Path,
    held: Sequence[Piece],
    wanted: Collection[str] | None = None,
    values: Collection[str] = (),
) -> Index:
    """The index of a complete checkpoint from which these pieces can be read; see :meth:`Index.problems`.

    Raises:
        CheckpointError: they cannot, or COMPLETE or the index is not what was written.
    """
    try:
        index = Index.load(checkpoint, Complete.load(checkpoint).files)
    except Damaged as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    if problems := index.problems(held, wanted, values):
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(
            f"{checkpoint} does not hold what is to be loaded, and nothing was:\n{lines}\n"
            "the model and optim.state must be those of the run that saved it; 8-bit moments also need the same ranks"
        )
    return index


def read(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Fill the tensors of a nested dict from a checkpoint that may hold more; works without other ranks.

    Raises:
        CheckpointError: they are not in it; nothing was filled.
    """
    held = pieces(state)
    fitting(checkpoint, held).read(checkpoint, held)
