"""Writing safetensors files piece by piece, hashed on the way; the library can only write what is in memory at once.

The layout (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header, the header padded
with spaces to a multiple of eight, then the tensors' bytes without holes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}
CHUNK = 16 << 20  # bytes that are written and hashed at a time


def itemsize(code: str) -> int:
    """Bytes of an element."""
    return DTYPES[code].itemsize


@dataclass(frozen=True)
class Sealed:
    """A file as it was written: its bytes and their sha256 in hexadecimal."""

    bytes: int
    sha256: str


def header(tensors: Sequence[tuple[str, str, int]]) -> bytes:
    """What a file of one-dimensional tensors begins with.

    Args:
        tensors: (name, dtype code, elements), those of wider elements first, so that all are aligned.
    """
    table, end = {}, 0
    for name, code, length in tensors:
        begin, end = end, end + length * itemsize(code)
        table[name] = {"dtype": code, "shape": [length], "data_offsets": [begin, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous one-dimensional tensor in host memory, without a copy."""
    return tensor.detach().view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def write(path: Path, parts: Iterable[bytes | memoryview]) -> Sealed:
    """Write the parts one after another, to the disk itself.

    Writing and hashing let other threads of Python run.
    """
    digest, size = hashlib.sha256(), 0
    with named(path), open(path, "wb", buffering=0) as file:
        for part in parts:
            whole = memoryview(part)
            for begin in range(0, len(whole), CHUNK):
                chunk = whole[begin : begin + CHUNK]
                digest.update(chunk)
                size += len(chunk)
                while chunk:
                    chunk = chunk[file.write(chunk) or 0 :]
        os.fsync(file.fileno())
    return Sealed(size, digest.hexdigest())


def read_sealed(path: Path) -> Sealed:
    """Size and hash of a file that exists."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Sealed(size, digest.hexdigest())


def fsync(path: Path) -> None:
    """Bring a file or a folder to the disk itself."""
    with named(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, an error of the system says which file it is about; those of writing do not by themselves."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
