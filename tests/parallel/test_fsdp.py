"""What is set on the sharded modules: how far ahead parameters are gathered, in forward and in backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.config import EngineConfig
from yarn_train.dist import runtime
from yarn_train.model.causal_lm import CausalLM
from yarn_train.parallel import fsdp

LAYERS = 4


def sharded(prefetch: int) -> CausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "vocab_size": 32}
    module = CausalLM(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)))
    runtime.start()
    mesh = init_device_mesh("cpu", (1,))
    fsdp.shard(module, mesh, torch.float32, EngineConfig(prefetch=prefetch))
    return module


def ahead(module: CausalLM, part: Any) -> tuple[list[int], list[int]]:
    """Numbers of the blocks that are gathered when `part` runs, in forward and in backward."""
    numbers = {id(block._get_fsdp_state()): number for number, block in enumerate(module.blocks)}
    state = part._get_fsdp_state()
    return (
        [numbers[id(one)] for one in state._states_to_forward_prefetch],
        [numbers[id(one)] for one in state._states_to_backward_prefetch],
    )


def test_one_block_ahead_is_left_to_fsdp2() -> None:
    module = sharded(1)
    assert [ahead(module, part) for part in (module, *module.blocks)] == [([], [])] * (1 + LAYERS)


@pytest.mark.parametrize(
    ("prefetch", "root", "blocks"),
    [
        (2, ([0, 1], [3, 2]), [([1, 2], []), ([2, 3], [0]), ([3], [1, 0]), ([], [2, 1])]),
        (9, ([0, 1, 2, 3], [3, 2, 1, 0]), [([1, 2, 3], []), ([2, 3], [0]), ([3], [1, 0]), ([], [2, 1, 0])]),
    ],
)
def test_more_are_gathered_in_the_order_in_which_they_run(
    prefetch: int, root: tuple[list[int], list[int]], blocks: list[tuple[list[int], list[int]]]
) -> None:
    module = sharded(prefetch)
    assert ahead(module, module) == root
    assert [ahead(module, block) for block in module.blocks] == blocks
