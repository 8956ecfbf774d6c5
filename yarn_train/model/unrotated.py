"""A cache of keys before rotation, for scales that change while a sequence grows (YaRN paper, section 3.3).

A key's rotation depends on the scale, so keys that were rotated when they were cached are wrong as soon as the scale
changes. Here the model's rotary module answers cos = 1 and sin = 0: what it rotates and caches is what it had. The
attention function then rotates the queries and ALL keys at the scale of the current length. Models stay as they are.

What a cache cannot undo: above the first layer, keys and values come from what lower layers answered when their token
was read, at the scale of that time. Generation with this cache therefore equals generation without one in which every
position keeps the scale it was first read at; see ``refill`` of ``eval.generate.greedy`` for the other meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from ..config import RopeConfig
from ..errors import ConfigError, problem
from ..rope import hf as rope_hf
from ..rope.frequencies import RopeTable, dynamic_factor
from .cached import attention_function, implementation
from .registry import IMPLEMENTATIONS
from .rotate import KeyBuffer, rotated

NAMES = {kernel: f"{name}_unrotated" for kernel, name in IMPLEMENTATIONS.items()}
RECORDER = "yarn_train_recorder"

Tables = Callable[[int], RopeTable]  # of a sequence's length in tokens


def fixed(table: RopeTable) -> Tables:
    """The same table at every length."""
    return lambda length: table


def dynamic(base: PretrainedConfig, rope: RopeConfig) -> Tables:
    """The table of ``rope.method`` at s = max(1, length / L); ``rope.factor`` is not used.

    Raises:
        ConfigError: the base is scaled already, or says no length and neither does `rope`.
    """
    rope_hf.table_for(base, rope)
    original = rope.original_max_position_embeddings or rope_hf.pretrained_length(base) or 0

    def table(length: int) -> RopeTable:
        return rope_hf.table_for(base, dataclasses.replace(rope, factor=dynamic_factor(length, original)))

    return table


class Rotation(nn.Module):
    """Stands where a model's rotary module was: rotates nothing there, and everything inside of attention.

    Attributes:
        least: the scale is that of at least so many tokens, for a prompt that is fed in pieces.
    """

    def __init__(self, tables: Tables):
        super().__init__()
        self.tables = tables
        self.least = 0
        self._keys = KeyBuffer()
        self._table: RopeTable | None = None
        self._cos = self._sin = torch.empty(0)  # [positions, rotated / 2], of all keys so far and perhaps more

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos = 1 and sin = 0 [1, tokens, rotated], and the real ones made ready for attention.

        Args:
            x: tells dtype and device.
            position_ids: [B, tokens], the next ones of every sequence; keys stand at 0, 1, 2 ... without padding.

        Raises:
            ValueError: other positions.
        """
        new, end = position_ids.shape[1], int(position_ids[0, -1]) + 1
        expected = torch.arange(end - new, end, device=position_ids.device).expand_as(position_ids)
        if not torch.equal(position_ids, expected):
            raise ValueError("a cache of unrotated keys takes sequences of one length without padding")
        self._prepare(end, x)
        ones = x.new_ones(1, new, 2 * self._cos.shape[1])
        return ones, torch.zeros_like(ones)

    def changes(self, length: int) -> bool:
        """Whether a sequence of `length` tokens has another scale than the last one seen."""
        return self._table is None or not _same(self._table, self.tables(max(length, self.least)))

    def rotate(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate queries [B, H, n, D] at the last n of S positions, and keys [B, Hkv, S, D] at all of them.

        The keys' result is overwritten by the next call; neither has a gradient.
        """
        end, new = key.shape[2], query.shape[2]
        cos, sin = self._cos[:end], self._sin[:end]
        return rotated(query, cos[end - new :], sin[end - new :]), self._keys.rotated(key, cos, sin)

    def _prepare(self, end: int, like: Tensor) -> None:
        table, have = self.tables(max(end, self.least)), len(self._cos)
        same = self._table is not None and _same(self._table, table)
        if same and end <= have and self._cos.dtype == like.dtype and self._cos.device == like.device:
            return
        ahead = max(end, 2 * have) if same else end  # a scale that holds is computed rarely
        angles = torch.arange(ahead, device=like.device).float()[:, None] * table.inv_freq.to(like.device)
        self._cos = (angles.cos() * table.attention_factor).to(like.dtype)
        self._sin = (angles.sin() * table.attention_factor).to(like.dtype)
        self._table = table


@contextmanager
def unrotated(model: PreTrainedModel, tables: Tables | None = None) -> Iterator[Rotation]:
    """The model with a cache of keys before rotation; its own rotary module and attention are put back.

    Args:
        tables: the rope table by the sequence's length; None is the model's own, at every length.

    Raises:
        ConfigError: it has several rotary tables, or rotates in a way that this cannot reproduce.
    """
    modules = rope_hf.rotary_modules(model)
    own = _own_table(model, modules)
    rotation = Rotation(fixed(own))
    with _checked(model, modules, rotation):
        rotation.tables, rotation._table = tables or fixed(own), None
        with implementation(model, NAMES):
            yield rotation


def rotation_of(model: PreTrainedModel) -> Rotation | None:
    """The rotation of a model in this mode; None for any other."""
    return _ROTATIONS.get(model)


_ROTATIONS: WeakKeyDictionary[nn.Module, Rotation] = WeakKeyDictionary()


def _rotate(module: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return _ROTATIONS[module].rotate(query, key)


for _kernel, _name in NAMES.items():
    AttentionInterface.register(_name, attention_function(_kernel, _rotate))


def _same(a: RopeTable, b: RopeTable) -> bool:
    return a is b or (a.attention_factor == b.attention_factor and torch.equal(a.inv_freq, b.inv_freq))


def _own_table(model: PreTrainedModel, modules: list[tuple[str, nn.Module]]) -> RopeTable:
    tables = []
    for _, module in modules:
        inv_freq: Any = module.inv_freq
        tables.append(RopeTable(inv_freq.detach().float().cpu(), float(getattr(module, "attention_scaling", 1.0))))
    if not tables or not all(_same(tables[0], other) for other in tables):
        raise _refused(model, f"{len(tables)} rotary modules" if tables else "no rotary module")
    return tables[0]


@contextmanager
def _checked(model: PreTrainedModel, modules: list[tuple[str, nn.Module]], rotation: Rotation) -> Iterator[None]:
    """Put the rotation in, once a few tokens show that it turns queries and keys as the model's own module does.

    The recorder answers zeros, so in both passes every layer sees the same states, and the comparison is of rotations.
    """
    wanted = _record(model)
    for name, _ in modules:
        model.set_submodule(name, rotation)
    _ROTATIONS.update((module, rotation) for module in model.modules())
    try:
        for own, raw in zip(wanted, _record(model), strict=True):
            for ours, theirs in zip(rotation.rotate(*raw), own, strict=True):
                if (ours - theirs).abs().max() > 0.02 * theirs.abs().max():  # 16 bits keep 1/256
                    raise _refused(model, "rotates other pairs of dimensions, or not in every layer")
        yield
    finally:
        for name, module in modules:
            model.set_submodule(name, module)
        for module in [m for m, r in _ROTATIONS.items() if r is rotation]:
            del _ROTATIONS[module]


def _record(model: PreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys that arrive at each call of attention for eight tokens."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        calls.append((query, key))
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(RECORDER, record)
    place = next(model.parameters()).device
    ids = torch.arange(8, device=place).unsqueeze(0) % model.config.vocab_size
    with implementation(model, dict.fromkeys(NAMES, RECORDER)), torch.no_grad():
        model(input_ids=ids, position_ids=torch.arange(8, device=place).unsqueeze(0), use_cache=False)
    return calls


def _refused(model: PreTrainedModel, got: str) -> ConfigError:
    allowed = "models that turn pairs (i, i + d/2) by one table in every layer: Llama, Mistral, Qwen2, Qwen3 and alike"
    return ConfigError(problem("model.path", f"{model.config.model_type}: {got}", allowed, "use another base model"))
