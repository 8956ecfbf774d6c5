"""How large the files of a checkpoint would be, from what every rank would hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from transformers import PretrainedConfig

from ..checkpoint.complete import Complete
from ..checkpoint.index import Index, tensor_file
from ..checkpoint.layout import Range, shares
from ..checkpoint.safetensors_file import Sealed, header
from ..checkpoint.saving import this_ranks_files
from ..config import Config
from ..optim.state import MOMENTS
from .ranks import RankView, meta_model

BLOCK, SMALLEST = 256, 4096  # of torchao's 8-bit moments: elements per scale, and elements from which a rank has them


def checkpoint_bytes(cfg: Config, base: PretrainedConfig, views: Sequence[RankView]) -> tuple[float, float]:
    """(bytes of a whole checkpoint, of the largest rank's tensors): what :mod:`checkpoint` would write of these."""
    shapes = {name: tuple(parameter.shape) for name, parameter in meta_model(base).named_parameters()}
    written = shares([list(_held(cfg, shapes, view)) for view in views])
    sizes = [_tensor_bytes(parts) for parts in written]
    states = this_ranks_files(0, [])
    random = {name: sum(len(part) for part in parts) for name, parts in states.items() if name != tensor_file(0)}
    hashed = "0" * 64
    files = {tensor_file(rank): Sealed(size, hashed) for rank, size in enumerate(sizes)}
    files |= {f"{rank}.{name}": Sealed(size, hashed) for rank in range(len(views)) for name, size in random.items()}
    beside = len(Index.of(written, {}).text()) + len(Complete.now(0, len(views), files).text())
    return sum(sealed.bytes for sealed in files.values()) + beside, max(sizes)


def _held(cfg: Config, shapes: Mapping[str, tuple[int, ...]], view: RankView) -> Iterator[Range]:
    code = "BF16" if cfg.optim.state == "bfloat16" else "F32"
    for name, shape in shapes.items():
        start, end = view.pieces[name]
        length = end - start
        yield Range(f"weights.{name}", shape, code, start, length, None)
        for moment in (f"{key}.{name}" for key in MOMENTS):
            if cfg.optim.state != "8bit" or length < SMALLEST or length % BLOCK:
                yield Range(moment, shape, code, start, length, None)
                continue
            yield Range(f"{moment}.codes", shape, "U8", start, length, None)
            yield Range(f"{moment}.scale", (), "F32", start // BLOCK, length // BLOCK, None)
            yield Range(f"{moment}.qmap", (BLOCK,), "F32", 0, BLOCK, None)
    yield Range("step", (len(shapes),), "I64", 0, len(shapes), None)


def _tensor_bytes(parts: Sequence[Range]) -> int:
    return len(header([(p.name, p.dtype, p.length) for p in parts])) + sum(p.nbytes for p in parts)
