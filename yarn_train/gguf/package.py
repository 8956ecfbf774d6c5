"""The only import of the registry's ``gguf`` package, the writer that llama.cpp's own conversion uses."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import YarnTrainError


class GGUFError(YarnTrainError):
    """The folder cannot be said in GGUF as it is, or the writer is not installed."""


def library() -> Any:
    """The ``gguf`` package.

    Raises:
        GGUFError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise GGUFError("writing GGUF needs the package gguf; fix: python -m pip install gguf") from error
