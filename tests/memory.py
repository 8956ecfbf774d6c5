"""Documents that are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from yarn_train.data.documents import Documents
from yarn_train.errors import DataError


class InMemory(Documents):
    """Documents given as name -> bytes; None cannot be read. ``reads`` are the indices read so far."""

    def __init__(self, texts: Mapping[str, bytes | None]):
        self.names, self.texts, self.reads = list(texts), list(texts.values()), list[int]()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def sizes(self) -> np.ndarray:
        return np.array([len(text or b"") for text in self.texts], dtype=np.int64)

    def read_bytes(self, index: int) -> bytes:
        self.reads.append(index)
        text = self.texts[index]
        if text is None:
            raise DataError(f"document {self.names[index]} cannot be read")
        return text

    def identity(self) -> dict[str, Any]:
        return {}
