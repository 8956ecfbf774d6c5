"""Documents that are files: the interpreter's own library, books in DeepMind's layout, any folder of texts."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, problem
from .documents import Documents
from .splits import chosen, nothing_held_out, split_of, utf8

NOT_STDLIB = frozenset({"site-packages", "dist-packages", "__pycache__"})
BOOKS_LAYOUT = "a folder with train/*.txt, validation/*.txt and test/*.txt, one UTF-8 book per file"


class FileDocuments(Documents):
    """One document per file, line ends untouched. Names and sizes are a file's path below ``root`` and its bytes."""

    def __init__(self, root: Path, files: Sequence[str], prefix: str = "", identity: dict[str, Any] | None = None):
        """``files`` are paths below ``root``, with ``/``; a document's name is ``prefix`` and its file."""
        self._root, self._files, self._prefix, self._identity = root, files, prefix, identity or {}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """See :meth:`Documents.name`."""
        return self._prefix + self._files[index]

    def sizes(self) -> np.ndarray:
        """Bytes of every file, int64 [n].

        Raises:
            DataError: if one is gone, or a link leads nowhere.
        """
        sizes = np.empty(len(self), np.int64)
        for index, file in enumerate(self._files):
            try:
                sizes[index] = os.stat(self._root / file).st_size
            except OSError as error:
                raise self._unreadable(index, error) from error
        return sizes

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`Documents.read_bytes`."""
        try:
            return (self._root / self._files[index]).read_bytes()
        except OSError as error:
            raise self._unreadable(index, error) from error

    def identity(self) -> dict[str, Any]:
        """With the standard library the Python version, and ``held_out`` where names decide the split.

        Files are not read for it: a text that is exchanged for one of the same length keeps its prepared data.
        """
        return self._identity

    def _unreadable(self, index: int, error: OSError) -> DataError:
        where = self._root / self._files[index]
        return DataError(problem(f"document {self.name(index)}", str(error), "a readable file", f"check {where}"))


def stdlib_root() -> Path:
    """The standard library of the running interpreter; inside a venv, that of the base interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def stdlib_documents(split: str, held_out: float) -> Documents:
    """The library's ``*.py`` files of one split, by name.

    Raises:
        DataError: if there is none.
    """
    root = stdlib_root()
    names = [name for name in _python_files(root) if split_of(name, held_out) == split]
    if not names:
        raise nothing_held_out(held_out, f"{root} has no *.py file in split {split}; a Python may lack its library")
    return FileDocuments(root, names, identity={"python": platform.python_version(), "held_out": held_out})


def _python_files(root: Path) -> list[str]:
    """Posix paths of the library's ``*.py`` files below ``root``, sorted."""
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in NOT_STDLIB]
        names += [(Path(folder) / f).relative_to(root).as_posix() for f in files if f.endswith(".py")]
    return sorted(utf8(names))


def book_documents(path: str, split: str) -> Documents:
    """Books in DeepMind's layout ``<path>/<split>/*.txt``; ``metadata.csv`` is not needed.

    Raises:
        DataError: if the folder of the split is missing or has no book, or the name of one is not UTF-8.
    """
    folder = Path(path) / split
    if not folder.is_dir():
        fix = f"{folder} is not a folder; or use a hub id or parquet files of it, such as data.path=emozilla/pg19"
        raise DataError(problem("data.path", path, BOOKS_LAYOUT, fix))
    books = sorted(utf8([book.name for book in folder.glob("*.txt")]))
    if not books:
        raise DataError(problem("data.path", path, BOOKS_LAYOUT, f"{folder} holds no *.txt file"))
    return FileDocuments(folder, books, f"pg19/{split}/")


def text_documents(root: Path, splits: dict[str, list[str]], split: str, held_out: float, path: str) -> Documents:
    """One split of a folder of texts; ``splits`` are paths below ``root``.

    Raises:
        DataError: if this split does not exist, or has no document.
    """
    given, hashed = chosen(splits, split, path)
    names = [n for n in splits[given] if not hashed or split_of(n, held_out) == split]
    if not names:
        raise nothing_held_out(held_out, f"{path} has no document in split {split}")
    return FileDocuments(root, names, identity={"held_out": held_out} if hashed else {})
