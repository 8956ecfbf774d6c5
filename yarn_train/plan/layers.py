"""The parts of a step, block by block, and why a few blocks tell what many need.

A part of the step lies in one block, counted from the nearest end of the model. Within it, one more block elsewhere
adds the same to every instant: its state, what it keeps, its gradients. So the fullest instant of a part stays the same
instant, and every category of it grows linearly with the number of blocks. Blocks in the middle lie on the line between
those at the ends, so none of them is fuller than both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from .. import remote_code
from ..model.causal_lm import CausalLM
from .ledger import Ledger

_NAMES = {0: "the first block", 1: "the second block", -2: "the last block but one", -1: "the last block"}


def alike(base: PretrainedConfig) -> bool:
    """Whether all blocks of a model have the same shapes and kind."""
    with torch.device("meta"):
        trust = remote_code.flag(base)
        blocks = CausalLM(AutoModelForCausalLM.from_config(copy.deepcopy(base), trust_remote_code=trust)).blocks
    shapes = {tuple(tuple(p.shape) for p in block.parameters()) for block in blocks}
    return len(shapes) == 1 and len(set(getattr(base, "layer_types", None) or [None])) == 1


def shortened(base: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """The same model with fewer blocks."""
    config = copy.deepcopy(base)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    return config


def name_parts(blocks: Sequence[nn.Module] | nn.ModuleList, edge: int, ledger: Ledger) -> None:
    """Let each block's forward and backward begin a part of the step; `edge` blocks at each end have names."""
    for number, block in enumerate(blocks):
        place = _place(number, len(blocks), edge)
        block.register_forward_pre_hook(_enter(ledger, f"forward of {place}"))
        block.register_forward_hook(_on_gradient(ledger, f"backward of {place}"))


def _place(number: int, blocks: int, edge: int) -> str:
    if edge <= number < blocks - edge:
        return "a block in the middle"
    index = number if number < edge else number - blocks
    return _NAMES.get(index, f"block {index}")


def _enter(ledger: Ledger, part: str) -> Callable[..., None]:
    return lambda *_: ledger.enter(part)


def _on_gradient(ledger: Ledger, part: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(_enter(ledger, part))

    return hook
