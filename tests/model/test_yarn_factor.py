"""YaRN's attention factor sits in cos and sin: a kernel that rotates by itself must not lose it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from yarn_train.config import RopeConfig
from yarn_train.model.load import build_model
from yarn_train.model.primitives import PRIMITIVES
from yarn_train.model.registry import IMPLEMENTATIONS, choose_kernel
from yarn_train.rope import hf as rope_hf

CPU = torch.device("cpu")
ROPE = RopeConfig(method="yarn", factor=16.0)
FACTOR = 1.2772588722239782  # 0.1 ln 16 + 1, paper section 3.4


def base() -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 50}
    return LlamaConfig(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, **sizes)


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    made = build_model(None, base(), ROPE, choose_kernel("sdpa", CPU, torch.float32)).eval()
    for name, weight in made.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 40.0  # attention that is far from uniform
    return made


@torch.no_grad()
def logits(model: PreTrainedModel, implementation: str) -> Tensor:
    model.set_attn_implementation(implementation)
    ids = torch.randint(0, 50, (2, 200), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False).logits


def test_the_table_has_the_papers_factor() -> None:
    assert rope_hf.table_for(base(), ROPE).attention_factor == pytest.approx(FACTOR)


@pytest.mark.parametrize("kernel", ["sdpa", "sdpa_flash", "flex", "eager"])
def test_logits_are_those_of_transformers_own_attention(model: PreTrainedModel, kernel: str) -> None:
    ours, theirs = logits(model, IMPLEMENTATIONS[kernel]), logits(model, "eager")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_lost_the_factor_would_be_seen(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PRIMITIVES["cpu"]

    def rotated_anew(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        return plain.forward(q / FACTOR, k / FACTOR, v, causal, scale)

    monkeypatch.setitem(PRIMITIVES, "cpu", dataclasses.replace(plain, forward=rotated_anew))
    ours, theirs = logits(model, IMPLEMENTATIONS["sdpa"]), logits(model, "eager")
    assert (ours - theirs).abs().max() > 0.01 * theirs.abs().max()
