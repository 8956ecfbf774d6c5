"""Where documents come from: the interpreter's own standard library, a folder of books, or both.

Listing never opens a file, so it is cheap for any size; a document's text is read when it is needed, in whichever
process needs it. The same call gives the same documents in the same order on every machine that holds the same files.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, problem

SPLITS = ("train", "validation", "test")
SOURCES = ("stdlib", "pg19", "stdlib+pg19")
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})


class UndecodableError(DataError):
    """A document that is not UTF-8; callers that read many documents skip and count it."""


@dataclass(frozen=True)
class Document:
    """One text, read lazily.

    Attributes:
        name: unique within its source and equal on every machine: the path below the source's root, with ``/``.
        path: the file.
    """

    name: str
    path: Path

    def read(self) -> str:
        """The whole text with its line ends as they are in the file.

        Raises:
            UndecodableError: if the file is not UTF-8.
            DataError: if it cannot be read.
        """
        try:
            # bytes, not text mode: text mode would rewrite line ends
            return self.path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UndecodableError(
                problem(f"document {self.name}", f"byte {error.start} is not UTF-8", "UTF-8", f"re-encode {self.path}")
            ) from error
        except OSError as error:
            raise DataError(
                problem(f"document {self.name}", str(error), "a readable file", f"check {self.path}")
            ) from error

    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def documents(source: str, path: str | Path | None, split: str, held_out: float = 0.1) -> list[Document]:
    """List one split of a source, in a deterministic order.

    Args:
        source: ``stdlib``, ``pg19`` or ``stdlib+pg19`` (the first, then the second).
        path: root folder of ``pg19``; not used by ``stdlib``.
        split: ``train``, ``validation`` or ``test``.
        held_out: share of stdlib files in validation and test together; ``pg19`` brings its own split.

    Raises:
        DataError: if the source or split is unknown, a folder is missing or the split is empty.
    """
    if source not in SOURCES:
        raise DataError(problem("data.source", source, " | ".join(SOURCES), "choose one of these"))
    if split not in SPLITS:
        raise DataError(problem("split", split, " | ".join(SPLITS), "choose one of these"))
    found: list[Document] = []
    for part in source.split("+"):
        found += _stdlib(split, held_out) if part == "stdlib" else _pg19(path, split)
    return found


def read_all(listed: Iterable[Document], skipped: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Read documents one after the other as (name, text); names of undecodable ones are added to ``skipped``."""
    for document in listed:
        try:
            text = document.read()
        except UndecodableError:
            if skipped is not None:
                skipped.append(document.name)
            continue
        yield document.name, text


def split_of(name: str, held_out: float) -> str:
    """The split of a stdlib file: by hash of its name alone, so every machine holds out the same files.

    The first half of the held-out interval is ``test``, the second ``validation``; a larger ``held_out`` only adds.
    """
    position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if position >= held_out:
        return "train"
    return "test" if position < held_out / 2 else "validation"


def stdlib_root() -> Path:
    """The standard library of the running interpreter; inside a venv, that of the base interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def _stdlib(split: str, held_out: float) -> list[Document]:
    root = stdlib_root()
    names = [name for name in _python_files(root) if split_of(name, held_out) == split]
    if not names:
        raise DataError(
            problem(
                "data.held_out",
                held_out,
                "a share that leaves files in every split that is read",
                f"{root} has no *.py file in split {split}; use data.held_out=0.1, or a Python with its library",
            )
        )
    return [Document(name, root / name) for name in names]


def _python_files(root: Path) -> list[str]:
    """Posix paths of the library's ``*.py`` files below ``root``, sorted."""
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in NOT_STDLIB]
        names += [(Path(folder) / f).relative_to(root).as_posix() for f in files if f.endswith(".py")]
    return sorted(names)


def _pg19(path: str | Path | None, split: str) -> list[Document]:
    """Books in DeepMind's layout ``<path>/{train,validation,test}/*.txt``; ``metadata.csv`` is not needed."""
    layout = "a folder with train/*.txt, validation/*.txt and test/*.txt, one UTF-8 book per file"
    if path is None:
        raise DataError(problem("data.path", None, layout, "set data.path=<folder>"))
    folder = Path(path) / split
    if not folder.is_dir():
        raise DataError(
            problem(
                "data.path",
                str(path),
                layout,
                f"{folder} is not a folder; the data set's Hugging Face script no longer loads, "
                "so download the text files (see data/README.md)",
            )
        )
    books = sorted(folder.glob("*.txt"), key=lambda book: book.name)
    if not books:
        raise DataError(problem("data.path", str(path), layout, f"{folder} holds no *.txt file"))
    return [Document(f"pg19/{split}/{book.name}", book) for book in books]
