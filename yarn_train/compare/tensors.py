"""Tensors of checkpoints and model folders through numpy alone: bytes of safetensors files, nothing is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, problem

if TYPE_CHECKING:
    import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MODEL_FILES = (SINGLE, INDEX)
STEP = re.compile(r"step_(\d{8,})")
PLAIN = re.compile(r"[\w][\w.-]*")  # a file of this folder
LARGEST_HEADER = 100 * 2**20  # bytes, as in the safetensors library
CHUNK = 1 << 22  # elements compared at a time
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor that lies in one or more files.

    Attributes:
        parts: (start, elements), rising and without gaps.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[int, np.ndarray], ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Its flattened elements [start, stop), bfloat16 as float32; others keep their type."""
        import numpy as np

        found = [
            part[max(start - at, 0) : stop - at] for at, part in self.parts if at < stop and start < at + len(part)
        ]
        raw = np.concatenate(found) if found else np.empty(0, DTYPES[self.dtype])
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw

    @property
    def numel(self) -> int:
        """Number of elements."""
        return sum(len(part) for _, part in self.parts)


def complete_steps(stage: Path) -> dict[int, Path]:
    """Checkpoints of a stage folder that are complete, by their step, in order."""
    folder = stage / "checkpoints"
    found = [(m, path) for path in sorted(folder.glob("step_*")) if (m := STEP.fullmatch(path.name))]
    return {int(m[1]): path for m, path in found if (path / "COMPLETE").is_file()}


def hashes(checkpoint: Path) -> dict[str, Any]:
    """What COMPLETE says of each file; empty where it says nothing, as in older checkpoints."""
    try:
        files = json.loads((checkpoint / "COMPLETE").read_text(encoding="utf-8"))["files"]
        return {str(name): said for name, said in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def of_checkpoint(checkpoint: Path) -> dict[str, Tensor] | None:
    """Its tensors by name; None for a checkpoint in the format that older versions wrote.

    Raises:
        DataError: a file of it cannot be read.
    """
    if not (checkpoint / "index.json").is_file():
        return None
    opened: dict[str, Mapping[str, Tensor]] = {}
    found = {}
    try:
        described = _json(checkpoint / "index.json")["tensors"]
        for name, entry in described.items():
            parts = []
            for piece in sorted(entry["pieces"], key=lambda piece: int(piece["start"])):
                file = str(piece["file"])
                if file not in opened:
                    opened[file] = _file(checkpoint, file)
                stored = opened[file][str(piece.get("key", name))]
                parts.append((int(piece["start"]), stored.parts[0][1]))
            found[str(name)] = _joined(entry["dtype"], tuple(int(n) for n in entry["shape"]), parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(checkpoint / "index.json", error) from error
    return found


def of_model(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder by name.

    Raises:
        DataError: a file of it cannot be read.
    """
    if (folder / INDEX).is_file():
        try:
            names = sorted({str(name) for name in _json(folder / INDEX)["weight_map"].values()})
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / INDEX, error) from error
    else:
        names = [SINGLE]
    return {name: tensor for file in names for name, tensor in _file(folder, file).items()}


def _joined(dtype: str, shape: tuple[int, ...], parts: list[tuple[int, np.ndarray]]) -> Tensor:
    end = 0
    for start, part in parts:
        if start != end:
            raise ValueError(f"elements {end} to {start} are missing")
        end += len(part)
    return Tensor(dtype, shape, tuple(parts))


def _file(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file, memory-mapped."""
    import numpy as np

    path = folder / name
    if not PLAIN.fullmatch(name):
        raise _damaged(path, f"{name!r} is no file of this folder")
    try:
        whole = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(whole[:8].tobytes(), "little")
        if size > min(LARGEST_HEADER, len(whole) - 8):
            raise ValueError("cut off")
        header = json.loads(whole[8 : 8 + size].tobytes())
        return dict(_tensors(whole[8 + size :], header))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _tensors(data: np.ndarray, header: Any) -> Iterator[tuple[str, Tensor]]:
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (int(offset) for offset in entry["data_offsets"])
            if not 0 <= begin <= end <= len(data):
                raise ValueError("cut off")
            elements = data[begin:end].view(DTYPES[entry["dtype"]])
            yield str(name), Tensor(entry["dtype"], tuple(int(n) for n in entry["shape"]), ((0, elements),))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: object) -> DataError:
    got = str(error) or type(error).__name__
    return DataError(problem(str(path), got, "a file as it was written", "copy it again, or delete this checkpoint"))
