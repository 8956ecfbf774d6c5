"""Tiled MLPs against the same models run whole: values, gradients, memory, and how often an MLP runs."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from yarn_train import config as schema
from yarn_train.dist.mesh import Mesh
from yarn_train.engine.deepspeed import DeepSpeedEngine
from yarn_train.errors import ConfigError
from yarn_train.model.causal_lm import CausalLM
from yarn_train.parallel.activation import apply
from yarn_train.parallel.tiled_mlp import tile_count, tile_mlps

HIDDEN, INTERMEDIATE, TOKENS = 16, 48, 22
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GQA = {**SIZES, "num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**GQA, mlp_bias=True),
    "qwen2": Qwen2Config(**GQA),
    "mistral": MistralConfig(**GQA, sliding_window=None),
    "gemma2": Gemma2Config(**GQA, head_dim=8, attn_logit_softcapping=None, final_logit_softcapping=None),
    "phi3": Phi3Config(**GQA, resid_pdrop=0.0),
    "gpt_neox": GPTNeoXConfig(**SIZES, hidden_dropout=0.0, attention_dropout=0.0),
}


def build(config: PretrainedConfig, seed: int = 0) -> CausalLM:
    """A small random model with eager attention: masks and kernels do not matter here."""
    torch.manual_seed(seed)
    return CausalLM(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), "full").train()


def batch(seed: int = 1, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (rows, TOKENS), generator=g)
    return ids, torch.arange(TOKENS).expand(rows, -1), ids.roll(-1, 1)


def grads(module: CausalLM, *inputs: Tensor) -> dict[str, Tensor]:
    """The loss and every gradient by name."""
    loss = module(*inputs)
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in module.named_parameters() if p.grad is not None}}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, right in expected.items():
        torch.testing.assert_close(got[name], right, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_gradient_equals_that_of_the_whole_mlp(name: str, recompute: str) -> None:
    whole, tiled = build(CONFIGS[name]), build(CONFIGS[name])
    tile_mlps(tiled.blocks, HIDDEN, min_tokens=5)  # 44 tokens: the last tile is ragged
    apply(tiled.blocks, recompute)
    assert_same(grads(tiled, *batch()), grads(whole, *batch()))
    with torch.no_grad():
        torch.testing.assert_close(tiled(*batch()[:2]), whole(*batch()[:2]), rtol=1e-5, atol=1e-6)


class Runs:
    """Counts tokens that pass the first projection of the first block's MLP."""

    def __init__(self, module: CausalLM):
        self.tokens = 0
        module.blocks[0].mlp.gate_proj.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self.tokens += output.numel() // INTERMEDIATE


@pytest.mark.parametrize(
    ("recompute", "tiled", "forwards"), [("none", False, 1), ("full", False, 2), ("none", True, 2), ("full", True, 2)]
)
def test_the_mlp_runs_twice_not_three_times_under_recomputation(recompute: str, tiled: bool, forwards: int) -> None:
    module = build(CONFIGS["llama"])
    if tiled:
        tile_mlps(module.blocks, HIDDEN, min_tokens=5)
    runs = Runs(module)
    apply(module.blocks, recompute)
    grads(module, *batch())
    assert runs.tokens == forwards * 2 * TOKENS


class Widest(TorchDispatchMode):
    """The most elements of any tensor whose last dimension is the MLP's intermediate size."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (INTERMEDIATE,) and tensor.dim() > 1:
                rows = tensor.numel() // INTERMEDIATE
                self.elements = max(self.elements, rows if tensor.shape != (HIDDEN, INTERMEDIATE) else 0)
        return out


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_no_intermediate_is_longer_than_a_tile_forward_or_backward(recompute: str) -> None:
    whole, tiled = build(CONFIGS["qwen2"]), build(CONFIGS["qwen2"])
    tile_mlps(tiled.blocks, HIDDEN, min_tokens=5)
    apply(tiled.blocks, recompute)
    found = []
    for module in (whole, tiled):
        with Widest() as widest:
            grads(module, *batch())
        found.append(widest.elements)
    tiles = tile_count(tiled.blocks[0].mlp, HIDDEN)
    assert tiles == 12  # 4 * (2 * 48) / (2 * 16)
    assert found == [2 * TOKENS, 5]  # all tokens; 44 / 12 rounded up is 4, below the smallest tile


def test_the_number_of_tiles_follows_from_the_sizes() -> None:
    with torch.device("meta"):
        mlp = LlamaMLP(LlamaConfig(hidden_size=4096, intermediate_size=11008))
    assert tile_count(mlp, 4096) == 11  # 4 * 22016 / 8192


def test_frozen_parameters_and_input_get_no_gradient() -> None:
    whole, tiled = build(CONFIGS["llama"]), build(CONFIGS["llama"])
    tile_mlps(tiled.blocks, HIDDEN, min_tokens=5)
    for module in (whole, tiled):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("up_proj" in name)
    assert_same(grads(tiled, *batch()), grads(whole, *batch()))


def test_bfloat16_parameter_gradients_are_summed_over_tiles_in_float32() -> None:
    """Equal contributions of 600 tiles: a bf16 sum would stop growing at 256."""
    block = nn.Module()
    block.mlp = nn.Sequential(nn.Linear(1, 600, bias=False), nn.Linear(600, 1, bias=False)).bfloat16()
    for parameter in block.mlp.parameters():
        nn.init.ones_(parameter)
    tile_mlps([block], 1, min_tokens=1)
    assert isinstance(block.mlp, nn.Module)
    block.mlp(torch.ones(1, 600, 1, dtype=torch.bfloat16)).sum().backward()
    torch.testing.assert_close(block.mlp[1].weight.grad, torch.full((1, 600), 600.0).bfloat16(), rtol=5e-3, atol=0.0)


class NoMLP(nn.Module):
    """A block of another kind."""


class TwoOutputs(nn.Linear):
    """An MLP that returns more than hidden states."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def _block(mlp: nn.Module) -> nn.Module:
    block = nn.Module()
    block.mlp = mlp
    return block


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (NoMLP(), "no module named mlp"),
        (_block(nn.Linear(HIDDEN, 3)), "one tensor of its input's shape"),
        (_block(nn.Linear(3, HIDDEN)), "fails on"),
        (_block(TwoOutputs(HIDDEN, HIDDEN)), "one tensor of its input's shape"),
        (_block(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.1))), "dropout"),
        (_block(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN))), "LayerNorm"),
    ],
)
def test_blocks_without_a_plain_mlp_are_refused(block: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        tile_mlps([block], HIDDEN)
    assert "memory.tiled_mlp" in str(error.value)


def test_a_mixture_of_experts_is_refused() -> None:
    config = MixtralConfig(**GQA, num_local_experts=2, sliding_window=None)
    with pytest.raises(ConfigError, match=r"memory\.tiled_mlp"):
        tile_mlps(build(config).blocks, HIDDEN)


def test_two_ranks_of_fsdp2_and_of_zero_3_equal_the_whole_model() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    expected = [grads(build(CONFIGS["llama"]), *batch(rank)) for rank in range(2)]
    total = {n: expected[0][n] + expected[1][n] for n in expected[0]}
    mp.spawn(_sharded, args=(port, total), nprocs=2)


def _sharded(rank: int, port: int, expected: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed asks for it
    dist.init_process_group("gloo", f"tcp://localhost:{port}", world_size=2, rank=rank)
    try:
        for engine in (_fsdp2, _zero_3):
            for recompute in ("none", "full"):
                got = engine(tiled_model(recompute), rank)
                for name in got:
                    right = expected[name]
                    torch.testing.assert_close(
                        got[name], right, rtol=1e-5, atol=1e-5, msg=f"{engine} {recompute} {name}"
                    )
                assert rank or len(got) == len(expected) - 1
    finally:
        dist.destroy_process_group()


def tiled_model(recompute: str) -> CausalLM:
    module = build(CONFIGS["llama"])
    tile_mlps(module.blocks, HIDDEN, min_tokens=5)
    apply(module.blocks, recompute)
    return module


def _fsdp2(module: CausalLM, rank: int) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    policy = MixedPrecisionPolicy(torch.float32, torch.float32)
    for part in (*module.blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)
    module(*batch(rank)).backward()
    return {name: parameter.grad.full_tensor() for name, parameter in module.named_parameters()}


def _zero_3(module: CausalLM, rank: int) -> dict[str, Tensor]:
    cfg = schema.build({"model": {"dtype": "float32"}, "engine": {"name": "deepspeed"}})
    engine = DeepSpeedEngine(module, cfg, Mesh.create("cpu", 2, cfg.parallel, 1))
    engine.backward(engine.module(*batch(rank)), torch.ones(()))
    return {f"model.{name}": gradient for name, gradient in engine.full_gradients().items()}
