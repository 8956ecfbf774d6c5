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
    for rotary in rope_hf.extended(model):
        if rotary.rope_type != "default":
            raise rope_hf.RopeTableError(f"{rotary.name}: its rope type may change the table while it runs")
        with torch.no_grad():
            for attribute in ("inv_freq", "original_inv_freq"):
                if isinstance(buffer := rotary.get(attribute), torch.Tensor):
                    buffer.copy_(table.inv_freq)
        if rotary.get("attention_scaling") is not None:
            setattr(rotary.module, rotary.prefixed("attention_scaling"), table.attention_factor)
    rope_hf.verify_tables(model, table)
