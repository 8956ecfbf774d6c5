"""Whether two sets of tensors are equal, and if not, which differ and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .tensors import CHUNK, Tensor


@dataclass(frozen=True)
class TensorGap:
    """Two tensors of one name that differ: the largest distance of their elements, and relative to their largest."""

    name: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Weights:
    """Tensors of two checkpoints or models.

    Attributes:
        compared: names both have, with the same type and shape.
        others: what only one has, or has in another type or shape.
        gaps: those that differ by more than the tolerance, in the order of their names.
        damaged: files that are not what was written, with whose they are and what is wrong.
        read: False where only sizes were looked at, and what the checkpoints say of themselves.
    """

    compared: int
    others: tuple[str, ...]
    gaps: tuple[TensorGap, ...]
    damaged: tuple[str, ...] = ()
    read: bool = True

    @property
    def equal(self) -> bool:
        """Whether nothing differs, and nothing is damaged."""
        return not self.others and not self.gaps and not self.damaged


def compare_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor], tolerance: float) -> Weights:
    """Compare tensors by name; within the tolerance is a distance that small relative to the tensor's largest."""
    others = sorted(a.keys() ^ b.keys())
    both = sorted(a.keys() & b.keys())
    alike = [name for name in both if (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)]
    others += [name for name in both if name not in set(alike)]
    gaps = [found for name in alike if (found := _gap(name, a[name], b[name]))]
    beyond = [g for g in gaps if not g.relative <= tolerance or (tolerance == 0.0)]
    return Weights(len(alike), tuple(others), tuple(beyond))


def _gap(name: str, a: Tensor, b: Tensor) -> TensorGap | None:
    """None where all bits are equal."""
    import numpy as np

    largest = absolute = 0.0
    differ = False
    for start in range(0, a.numel, CHUNK):
        x, y = a.read(start, start + CHUNK), b.read(start, start + CHUNK)
        if x.tobytes() == y.tobytes():
            largest = max(largest, _most(x))
            continue
        differ = True
        x, y = x.astype(np.float64), y.astype(np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.abs(x - y)
        apart[np.isnan(apart)] = math.inf  # one is not a number, or both are infinite
        absolute, largest = max(absolute, float(apart.max())), max(largest, _most(x), _most(y))
    return TensorGap(name, absolute, absolute / largest if largest else 0.0) if differ else None


def _most(x: object) -> float:
    import numpy as np

    values = np.abs(np.asarray(x, dtype=np.float64))
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0
