"""What every source of texts looks like to the rest: an ordered list of documents, listed cheaply and read lazily."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ..errors import DataError, problem


class UndecodableError(DataError):
    """A document that is not UTF-8 or has no text at all; callers that read many documents skip and count it."""


class Documents(Sequence["Document"]):
    """One split of a source.

    Listing opens no document. The same files give the same documents in the same order on every machine. Sources
    implement the five methods; an instance need not be picklable.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of documents."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A name that is unique in this list and equal on every machine."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Bytes of every document's text, int64 [n], without reading the texts."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The text as it is stored, line ends untouched.

        Raises:
            UndecodableError: if there is none (a null in a table).
            DataError: if it cannot be read.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON values that, together with names and sizes, determine the content: a revision, a Python version."""

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        if isinstance(index, slice):
            return [Document(self, i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return Document(self, index % len(self))


@dataclass(frozen=True)
class Document:
    """One text of a list of documents, read when asked."""

    owner: Documents
    index: int

    @property
    def name(self) -> str:
        """Unique in its list and equal on every machine."""
        return self.owner.name(self.index)

    def read_bytes(self) -> bytes:
        """The text as it is stored; raises like :meth:`Documents.read_bytes`."""
        return self.owner.read_bytes(self.index)

    def read(self) -> str:
        """The text.

        Raises:
            UndecodableError: if it is not UTF-8, or there is none.
            DataError: if it cannot be read.
        """
        return decode(self.name, self.read_bytes())


def decode(name: str, text: bytes) -> str:
    """Bytes of a document as text, or an UndecodableError that names the first bad byte."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte {error.start} is not UTF-8"
        raise UndecodableError(problem(f"document {name}", got, "UTF-8", "re-encode it, or leave it out")) from error


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
