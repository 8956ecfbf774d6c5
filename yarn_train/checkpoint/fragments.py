"""What a rank holds of a training state, as flat ranges of named tensors.

FSDP2 cuts a tensor into rows, ZeRO cuts flattened tensors anywhere, and copies of a model hold the same. All of it is
elements [start, start + length) of a flattened tensor: any number of ranks that cut otherwise can read them back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..model.weights import first_row

Value = int | float | bool | str


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + local.numel()) of a flattened tensor of `numel` elements; `local` may be empty.

    Attributes:
        local: [length], what this rank holds. Saving reads it, loading writes into it.
    """

    local: Tensor
    start: int
    numel: int

    def __post_init__(self) -> None:
        if self.local.ndim != 1 or not 0 <= self.start <= self.start + self.local.numel() <= self.numel:
            within = f"do not lie within [0, {self.numel})"
            raise ValueError(f"{tuple(self.local.shape)} elements from {self.start} {within}")


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + local.numel()) of the flattened tensor `name` of `shape`.

    Attributes:
        local: [length], a view: writing into it changes the training state.
        covers: the tensor that all ranks' pieces must make up together, which several names may (plain and quantised
            pieces of one moment); None for what follows from others.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    local: Tensor
    covers: str | None


def pieces(state: Mapping[str, Any]) -> list[Piece]:
    """This rank's piece of every tensor of a nested dict, empty ones included; names are joined by dots.

    Raises:
        ValueError: a tensor is cut in a way that is not a flat range.
    """
    found = [piece for name, value in _leaves(state) if not isinstance(value, Value) for piece in _pieces(name, value)]
    names = [piece.name for piece in found]
    if len(set(names)) < len(names):
        raise ValueError(f"several tensors of a state are called {next(n for n in names if names.count(n) > 1)}")
    return found


def values(state: Mapping[str, Any]) -> dict[str, Value]:
    """The numbers and strings of a nested dict, which are the same on every rank."""
    return {name: value for name, value in _leaves(state) if isinstance(value, Value)}


def set_values(state: MutableMapping[str, Any], stored: Mapping[str, Value], above: str = "") -> None:
    """Replace them, in place."""
    for key, value in state.items():
        if isinstance(value, MutableMapping):
            set_values(value, stored, f"{above}{key}.")
        elif isinstance(value, Value):
            state[key] = stored[f"{above}{key}"]


def _leaves(state: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _pieces(name: str, value: Any) -> Iterator[Piece]:
    if isinstance(value, Fragment):
        yield Piece(name, (value.numel,), value.start, value.local.detach(), name)
        return
    local, start, shape = value, 0, tuple(value.shape)
    if isinstance(value, DTensor):
        if not all(isinstance(p, Replicate) or (type(p) is Shard and p.dim == 0) for p in value.placements):
            raise ValueError(f"{name} is placed as {value.placements}; checkpoints store what is cut into rows")
        local = value.to_local()
        start = first_row(value) * math.prod(shape[1:]) if local.numel() else 0
    inner = getattr(local, "tensor_attrs", None)
    if inner is None:
        yield Piece(name, shape, start, _flat(name, local), name)
    elif inner == ["codes", "scale", "qmap"]:
        yield from _quantised(name, shape, start, local)
    else:
        raise ValueError(f"{name} is a {type(local).__name__}, which checkpoints do not know")


def _quantised(name: str, shape: tuple[int, ...], start: int, local: Any) -> Iterator[Piece]:
    """torchao's 8-bit moments: a byte per element, a scale per block of them, and the table that bytes look up."""
    yield Piece(f"{name}.codes", shape, start, _flat(name, local.codes), name)
    blocks, size = local.scale.numel(), local.block_size
    if start % size:  # no other cut has these blocks: only ranks that cut here can read them
        yield Piece(f"{name}.scale@{start}", (blocks,), 0, _flat(name, local.scale), None)
    else:
        total = -(-math.prod(shape) // size)
        yield Piece(f"{name}.scale", (total,), start // size, _flat(name, local.scale), None)
    yield Piece(f"{name}.qmap", tuple(local.qmap.shape), 0, _flat(name, local.qmap), None)


def _flat(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous: what is loaded would not reach it")
    return tensor.detach().view(-1)
