"""The last gate before training: does every rotary module of the built model hold the table that was asked for?

Casts, ``to_empty`` after a meta build and broadcasts can all destroy a rotary buffer without a word, because it is in
no checkpoint. So call ``verify_tables`` on every rank after the engine has wrapped the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import YarnTrainError
from .base import FULL
from .frequencies import RopeTable, base_frequencies

LONGROPE_TOLERANCE = 1e-6  # relative; its float32 factors cost at most 2.5e-7


class RopeTableError(YarnTrainError):
    """A rotary module of the built model does not hold the table that was asked for."""


@dataclass(frozen=True)
class Rotary:
    """One table of a rotary module: its only one, or that of one kind of layers.

    Attributes:
        name: the module's, with the buffer's prefix.
        kind: of the layers that it is for; "" where it is for all.
    """

    name: str
    module: nn.Module
    kind: str = ""

    def get(self, attribute: str) -> Any:
        """An attribute of this table, as "inv_freq" or "attention_scaling"; None where the module has no such."""
        return getattr(self.module, self.prefixed(attribute), None)

    def prefixed(self, attribute: str) -> str:
        """The name that an attribute of this table has in the module."""
        return f"{self.kind}_{attribute}" if self.kind else attribute

    @property
    def rope_type(self) -> str:
        """As transformers calls it."""
        kinds = getattr(self.module, "rope_type", "default")
        return str(kinds.get(self.kind, "default") if isinstance(kinds, dict) else kinds)


def rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module that holds one table of rotary frequencies, in model order."""
    return [(n, m) for n, m in model.named_modules() if isinstance(getattr(m, "inv_freq", None), Tensor)]


def rotary_tables(model: nn.Module) -> list[Rotary]:
    """Every table of every rotary module, in model order."""
    found = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            found.append(Rotary(name, module))
        kinds = getattr(module, "rope_type", None)
        found += [Rotary(name, module, kind) for kind in kinds] if isinstance(kinds, dict) else []
    return found


def extended(model: nn.Module) -> list[Rotary]:
    """The tables that scaling changes: those of all layers, or of the layers that see the whole sequence."""
    return [rotary for rotary in rotary_tables(model) if rotary.kind in ("", FULL)]


def verify_tables(model: nn.Module, table: RopeTable) -> None:
    """Compare every rotary module with the table: bit for bit, or within 1e-6 relative where it is longrope.

    Also compares ``original_inv_freq``, from which transformers refills a longrope table during forward, and where
    each kind of layers has its RoPE, that the others compute what their own theta says.

    Raises:
        RopeTableError: naming the module and its first wrong pair, wrong dtype or wrong attention factor.
    """
    if not extended(model):
        raise RopeTableError(f"{type(model).__name__} has no rotary module: its positions cannot be extended by RoPE")
    for rotary in rotary_tables(model):
        expected = table if rotary.kind in ("", FULL) else _own(rotary)
        tolerance = LONGROPE_TOLERANCE if rotary.rope_type == "longrope" else 0.0
        for attribute in ("inv_freq", "original_inv_freq"):
            values = rotary.get(attribute)
            if isinstance(values, Tensor):
                _compare(f"{rotary.name}.{rotary.prefixed(attribute)}", values, expected.inv_freq, tolerance)
        scaling = rotary.get("attention_scaling")
        if scaling is None or not abs(float(scaling) - expected.attention_factor) <= 1e-9:
            raise RopeTableError(
                f"{rotary.name}.{rotary.prefixed('attention_scaling')}: got {scaling}; expected "
                f"{expected.attention_factor:.6f} on both cos and sin; "
                "fix: build the model from scaled_config() instead of changing the config of a built one"
            )


def _own(rotary: Rotary) -> RopeTable:
    """The unscaled table of layers that are not extended."""
    config: Any = rotary.module.config
    dim = 2 * len(rotary.get("inv_freq"))
    return RopeTable(base_frequencies(dim, float(config.rope_parameters[rotary.kind]["rope_theta"])), 1.0)


def _compare(name: str, values: Tensor, expected: Tensor, tolerance: float) -> None:
    how = "fix: keep rotary buffers out of .to(bfloat16), to_empty() and broadcasts, and rebuild the model"
    if values.dtype != torch.float32 or values.is_meta or values.shape != expected.shape:
        got = "a meta tensor" if values.is_meta else f"{values.dtype} {list(values.shape)}"
        raise RopeTableError(f"{name}: got {got}; expected torch.float32 {list(expected.shape)}; {how}")
    values = values.detach().cpu()
    right = (values - expected).abs() <= tolerance * expected.abs()  # NaN is never right
    if not bool(right.all()):
        pair = int((~right).nonzero()[0])
        raise RopeTableError(
            f"{name}: {int((~right).sum())} of {len(values)} pairs are wrong, first pair {pair}: "
            f"got {values[pair].item()!r}; expected {expected[pair].item()!r}; {how}"
        )
