"""Weights streamed from safetensors files straight into a model's parameters or shards.

A model is built with its parameters on the meta device, sharded there, and only then given memory: each rank reads the
rows of each tensor that it owns. No rank ever holds the whole model, and the host never holds more than one tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from .. import model_revision
from ..errors import ConfigError, problem
from .adapter_names import is_update, plain

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PLAIN = re.compile(r"\w[\w.-]*\.safetensors")  # a file of this folder; it may be a link, as in the hub's cache
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONSTANT = re.compile(r"rotary_emb\.inv_freq$")  # old checkpoints hold it; models compute it, as transformers says too


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside have parameters without memory, but real buffers.

    That is the difference to ``torch.device("meta")``: a rotary table is a buffer that no checkpoint holds, so what the
    module computes for itself must survive. Not thread-safe (it replaces ``nn.Module.register_parameter``).
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(module, name, param)
        if param is not None and not param.is_meta:  # a tied parameter is on meta already and must stay the same object
            module._parameters[name] = nn.Parameter(param.detach().to("meta"), param.requires_grad)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def materialize(module: nn.Module, device: torch.device) -> None:
    """Give parameters (or their shards) uninitialised memory on `device`, in place; buffers are left alone."""
    for parameter in module.parameters():
        if parameter.is_meta and not isinstance(parameter, DTensor):
            # Swapped, not replaced: a tied parameter stays one object under both of its names.
            memory = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
            torch.utils.swap_tensors(parameter, memory)
    module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move buffers alone, whatever the parameters are: shards of an engine, or in host memory."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


class WeightFiles:
    """The safetensors of a Hugging Face folder or hub id, by tensor name. Use as a context manager.

    Raises:
        ConfigError: no safetensors there, or a file that cannot be read.
    """

    def __init__(self, path: str):
        self.path = path
        folder = Path(path).expanduser()
        self.folder = folder if folder.is_dir() else _download(path)
        self._files = _index(self.folder, path)
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> WeightFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._open.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> set[str]:
        """Every tensor's name."""
        return set(self._files)

    @property
    def paths(self) -> list[Path]:
        """The files, in order of their names."""
        return sorted({self.folder / file for file in self._files.values()})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Dtype of a tensor as safetensors spells it (F32, BF16 ...), from its file's header."""
        return str(self._slice(name).get_dtype())

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor on the CPU, in the file's dtype; nothing else of it is read."""
        part: Tensor = self._slice(name)[start:stop]
        return part

    def whole(self, name: str) -> Tensor:
        """A tensor on the CPU, in the file's dtype."""
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a tensor, flattened, on the CPU; only the rows around them are read."""
        row = max(1, math.prod(self.shape(name)[1:]))
        first = start // row
        rows = self.rows(name, first, max(-(-stop // row), first + 1))
        return rows.reshape(-1)[start - first * row : stop - first * row]

    def find(self, aliases: Iterable[str]) -> str | None:
        """The first of a tensor's names that is here: a tied one may lie in the files under any of them."""
        return next((alias for alias in aliases if alias in self), None)

    def _slice(self, name: str) -> Any:
        return self._handle(name).get_slice(name)

    def _handle(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            try:
                self._open[file] = self._stack.enter_context(safe_open(str(self.folder / file), framework="pt"))
            except (OSError, SafetensorError) as error:
                fix = f"{file}: {error}; copy or download it again"
                raise ConfigError(problem("weights", self.path, "readable safetensors files", fix)) from error
        return self._open[file]


def mismatches(module: nn.Module, files: WeightFiles) -> list[str]:
    """What keeps `files` from filling `module` name by name: tensors missing, unknown, or of another shape."""
    names = dict(_sources(module, files))
    wrong = [f"missing {owner}" for owner, source in names.items() if source is None]
    wrong += [f"unexpected {n}" for n in sorted(files.names - set(module.state_dict())) if not CONSTANT.search(n)]
    tensors = _tensors(module)
    for owner, source in names.items():
        if source is not None and files.shape(source) != tuple(tensors[owner].shape):
            wrong.append(f"{source} is {list(files.shape(source))}, not {list(tensors[owner].shape)}")
    return wrong


@torch.no_grad()
def fill(module: nn.Module, files: WeightFiles) -> None:
    """Copy every tensor, or this rank's rows of it, into the materialised `module`; dtypes are converted."""
    tensors = _tensors(module)
    for name, source in _sources(module, files):
        if is_update(name):
            continue  # no file of a base has them
        if source is None:
            raise KeyError(name)  # mismatches() was not asked
        copy_rows(tensors[name], source, files)


def copy_rows(target: Tensor, source: str, files: WeightFiles) -> None:
    """Copy tensor `source` into a plain tensor, or this rank's rows of it into a DTensor sharded over dimension 0."""
    if not isinstance(target, DTensor):
        target.detach().copy_(files.whole(source))
        return
    local = target.to_local()
    if local.numel():
        start = first_row(target)
        local.detach().copy_(files.rows(source, start, start + local.shape[0]))


def first_row(tensor: DTensor) -> int:
    """The first row of a DTensor that this rank holds."""
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Shard):
            if placement.dim != 0:
                raise ValueError(f"sharded over dimension {placement.dim}; only rows can be streamed")
            mesh = tensor.device_mesh
            return chunk_start(tensor.shape[0], mesh.size(dimension), mesh.get_local_rank(dimension))
    return 0


def chunk_start(rows: int, ranks: int, rank: int) -> int:
    """The first of the rows that FSDP2 gives to `rank`: even chunks, rounded up, the last ones shorter or empty."""
    return rank * -(-rows // ranks)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a tied one once, under its first name."""
    saved = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in saved.items():
        first.setdefault(id(tensor), name)
    return {name: tensor for name, tensor in saved.items() if first[id(tensor)] == name}


def _sources(module: nn.Module, files: WeightFiles) -> Iterator[tuple[str, str | None]]:
    """(name in the module, name in the files)."""
    saved = module.state_dict(keep_vars=True)
    for name, tensor in _tensors(module).items():
        yield name, files.find(plain(n) for n, t in saved.items() if t is tensor)


def _download(path: str) -> Path:
    """The hub's folder, or its cached copy, with the files that its index names and nothing else."""
    revision = model_revision.of(path)
    try:
        try:
            wanted = set(_weight_map(Path(hf_hub_download(path, INDEX, revision=revision)), path).values())
        except EntryNotFoundError:  # not there, or not in the cache of a machine that is offline
            wanted = {SINGLE}
        return {Path(hf_hub_download(path, file, revision=revision)).parent for file in wanted}.pop()
    except ConfigError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated types
        first = str(error).strip().splitlines()[0]
        raise ConfigError(problem("weights", path, "a folder, or a hub id this machine can reach", first)) from error


def _index(folder: Path, path: str) -> dict[str, str]:
    """Tensor name -> file name."""
    if (folder / INDEX).is_file():
        return _weight_map(folder / INDEX, path)
    if (folder / SINGLE).is_file():
        try:
            with safe_open(str(folder / SINGLE), framework="pt") as file:
                return dict.fromkeys(file.keys(), SINGLE)
        except (OSError, SafetensorError) as error:
            fix = f"{SINGLE}: {error}; copy or download it again"
            raise ConfigError(problem("weights", path, "readable safetensors files", fix)) from error
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    fix = "download the model again; nothing here holds weights"
    if pickles:
        fix = (
            f"{pickles[0]} is a pickle, which can run any code when it is read, so it is not: take the model's "
            "safetensors, or where you trust it, AutoModelForCausalLM.from_pretrained(IN).save_pretrained(OUT)"
        )
    raise ConfigError(problem("weights", path, f"{SINGLE} or its index", fix))


def _weight_map(index: Path, path: str) -> dict[str, str]:
    try:
        mapping: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fix = f"{INDEX}: {type(error).__name__}: {error}; copy or download it again"
        raise ConfigError(problem("weights", path, "a readable index", fix)) from error
    outside = [file for file in mapping.values() if not (isinstance(file, str) and PLAIN.fullmatch(file))]
    if outside:
        fix = "do not use this model: its index points out of its folder, at what else is on this machine"
        raise ConfigError(problem("weights", path, f"names of files beside {INDEX}, not {outside[0]!r}", fix))
    return mapping
