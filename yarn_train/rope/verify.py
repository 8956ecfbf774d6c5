"""The last gate before training: does every rotary module of the built model hold the table that was asked for?

Casts, ``to_empty`` after a meta build and broadcasts can all destroy a rotary buffer without a word, because it is in
no checkpoint. So call ``verify_tables`` on every rank after the engine has wrapped the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import YarnTrainError
from .frequencies import RopeTable

LONGROPE_TOLERANCE = 1e-6  # relative; its float32 factors cost at most 2.5e-7


class RopeTableError(YarnTrainError):
    """A rotary module of the built model does not hold the table that was asked for."""


def rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module that holds rotary frequencies, in model order."""
    return [(n, m) for n, m in model.named_modules() if isinstance(getattr(m, "inv_freq", None), Tensor)]


def verify_tables(model: nn.Module, table: RopeTable) -> None:
    """Compare every rotary module with the table: bit for bit, or within 1e-6 relative where it is longrope.

    Also compares ``original_inv_freq``, from which transformers refills a longrope table during forward.

    Raises:
        RopeTableError: naming the module and its first wrong pair, wrong dtype or wrong attention factor.
    """
    modules = rotary_modules(model)
    if not modules:
        raise RopeTableError(f"{type(model).__name__} has no rotary module: its positions cannot be extended by RoPE")
    for name, module in modules:
        tolerance = LONGROPE_TOLERANCE if getattr(module, "rope_type", None) == "longrope" else 0.0
        for attribute in ("inv_freq", "original_inv_freq"):
            values = getattr(module, attribute, None)
            if isinstance(values, Tensor):
                _compare(f"{name}.{attribute}", values, table.inv_freq, tolerance)
        scaling = getattr(module, "attention_scaling", None)
        if scaling is None or not abs(float(scaling) - table.attention_factor) <= 1e-9:
            raise RopeTableError(
                f"{name}.attention_scaling: got {scaling}; expected {table.attention_factor:.6f} on both cos and sin; "
                "fix: build the model from scaled_config() instead of changing the config of a built one"
            )


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
