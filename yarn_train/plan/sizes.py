"""The numbers of an architecture that memory and FLOPs follow from, counted on a model without memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from .. import remote_code
from ..model import flops
from ..model.causal_lm import CausalLM
from ..model.local import windows


@dataclass(frozen=True)
class Sizes:
    """Parameter counts and widths of a model.

    Attributes:
        parameters: all of them, a tied one once.
        block: parameters of the largest decoder block.
        matmul: weights that multiply every token; `head` and `mlp` are those of the output head and of all MLPs.
        attention_width: query heads * head_dim.
        windows: of the layers that have one.
    """

    parameters: int
    block: int
    matmul: int
    head: int
    mlp: int
    layers: int
    hidden: int
    vocab: int
    attention_width: int
    windows: tuple[int, ...] = ()

    @classmethod
    def of(cls, base: PretrainedConfig) -> Sizes:
        """Count them."""
        with torch.device("meta"):
            trust = remote_code.flag(base)
            module = CausalLM(AutoModelForCausalLM.from_config(copy.deepcopy(base), trust_remote_code=trust))
        mlps = [mlp for block in module.blocks if (mlp := getattr(block, "mlp", None)) is not None]
        head = module.model.get_output_embeddings()
        return cls(
            parameters=sum(p.numel() for p in module.parameters()),
            block=max(sum(p.numel() for p in block.parameters()) for block in module.blocks),
            matmul=flops.matmul_parameters(module),
            head=head.weight.numel(),
            mlp=sum(flops.matmul_parameters(mlp) for mlp in mlps),
            layers=base.num_hidden_layers,
            hidden=base.hidden_size,
            vocab=head.weight.shape[0],
            attention_width=base.num_attention_heads * flops.head_dim(base),
            windows=tuple(window for window in windows(base) if window),
        )
