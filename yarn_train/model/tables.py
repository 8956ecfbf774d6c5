"""Another rope table in a model that is loaded already, so that a study of many tables reads the weights once."""

from __future__ import annotations

import torch
from torch import nn

from ..rope import hf as rope_hf
from ..rope.frequencies import RopeTable


def set_table(model: nn.Module, table: RopeTable) -> None:
    """Make every rotary module of a model built UNSCALED compute `table`; the same numbers as one built with it.

    Raises:
        RopeTableError: a rotary module cannot hold it.
    """
    for name, module in rope_hf.rotary_modules(model):
        if getattr(module, "rope_type", "default") != "default":
            raise rope_hf.RopeTableError(f"{name}: its rope type may change the table while it runs")
        with torch.no_grad():
            for attribute in ("inv_freq", "original_inv_freq"):
                if isinstance(buffer := getattr(module, attribute, None), torch.Tensor):
                    buffer.copy_(table.inv_freq)
        if hasattr(module, "attention_scaling"):
            module.attention_scaling = table.attention_factor  # type: ignore[assignment]
    rope_hf.verify_tables(model, table)
