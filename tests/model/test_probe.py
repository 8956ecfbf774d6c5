"""The probe says what a forward with real numbers says: which architectures keep documents apart and which cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from yarn_train.config import Config, DataConfig
from yarn_train.data.batch import make_batch
from yarn_train.model.causal_lm import CausalLM
from yarn_train.model.probe import PROBE, attention_problems, mask_problems, other_mixers, probe
from yarn_train.model.registry import SDPA

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}
FULL = ["full_attention", "full_attention"]
KEEPS = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt_neox"),
    *("olmo", "olmo2", "cohere", "starcoder2", "granite", "smollm3", "glm", "glm4"),
    *("ernie4_5", "persimmon", "helium", "arcee", "seed_oss", "bitnet", "diffllama", "mixtral"),
    *("qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "granitemoe", "glm4_moe"),
]
DEAF = ["stablelm", "nemotron"]  # the keyword gets lost on the way to attention
OWN = ["gpt_neox_japanese", "falcon"]  # attention is never asked of us
MIXED = [
    ("lfm2", ["conv", "full_attention"]),
    ("qwen3_next", ["linear_attention", "full_attention"]),
    ("minimax", ["linear_attention", "full_attention"]),
]


def small(name: str, kinds: list[str] | None = None) -> PretrainedConfig:
    config = AutoConfig.for_model(name)
    for key, value in SMALL.items():
        if key != "head_dim" or key in vars(config):
            setattr(config, key, value)
    if getattr(config, "layer_types", None):
        config.layer_types = kinds or FULL
    return config


def masked(mode: str = "block") -> Config:
    return Config(data=DataConfig(document_mask=mode))


def leaks(config: PretrainedConfig) -> bool:
    """Whether another first document changes the logits of the second."""
    torch.manual_seed(0)
    module = CausalLM(AutoModelForCausalLM.from_config(config, attn_implementation=SDPA).eval())
    ids = torch.randint(3, 100, (1, 30))
    other = torch.cat([(ids[:, :10] + 1) % 101, ids[:, 10:]], 1)

    def logits(tokens: Tensor) -> Tensor:
        batch = make_batch(tokens, ((0, 10),))
        with torch.no_grad():
            found: Tensor = module(batch.input_ids, batch.position_ids, None, batch.documents)[:, 10:]
        return found

    return float((logits(ids) - logits(other)).abs().max()) > 1e-5  # experts multiply tokens of all documents together


@pytest.mark.parametrize("name", KEEPS)
def test_architectures_that_keep_documents_apart_are_accepted(name: str) -> None:
    config = small(name)
    assert attention_problems(config) == mask_problems(masked(), config) == []
    assert not leaks(config)


@pytest.mark.parametrize("name", DEAF)
def test_layers_that_lose_the_documents_are_refused_where_documents_matter(name: str) -> None:
    config = small(name)
    (line,) = mask_problems(masked(), config)
    assert f"{name}: documents do not reach the attention of 2 of 2 blocks" in line
    assert "data.document_mask=none" in line
    assert leaks(config)
    assert attention_problems(config) == mask_problems(masked("none"), config) == []


@pytest.mark.parametrize(("name", "kinds"), MIXED)
def test_layers_that_mix_tokens_otherwise_are_refused_where_documents_matter(name: str, kinds: list[str]) -> None:
    config = small(name, kinds)
    (line,) = mask_problems(masked(), config)
    assert f"{name}: layers of {kinds[0]}" in line
    assert leaks(config)
    assert attention_problems(config) == mask_problems(masked("none"), config) == []


def test_convolutions_that_no_list_of_layers_names_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yarn_train.model.probe.other_mixers", lambda base: [])
    config = AutoConfig.for_model("falcon_h1", num_hidden_layers=2)  # each block has both
    (line,) = mask_problems(masked(), config)
    assert "convolutions in FalconH1DecoderLayer" in line


@pytest.mark.parametrize("name", OWN)
def test_attention_that_is_never_asked_of_us_is_refused_always(name: str) -> None:
    (line,) = attention_problems(small(name))
    assert f"{name}: attention that only its own code computes" in line


def test_a_mask_that_no_kernel_applies_is_found_before_the_first_step() -> None:
    (line,) = attention_problems(small("doge"))
    assert "doge" in line
    assert "does not apply a mask" in line


def test_what_cannot_be_tried_is_refused_only_where_documents_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("needs numbers\nsecond line")

    monkeypatch.setattr(CausalLM, "forward", broken)
    config = small("llama")
    (line,) = mask_problems(masked(), config)
    assert "cannot be tried before weights load (RuntimeError: needs numbers)" in line
    assert attention_problems(config) == []


@pytest.mark.parametrize(
    ("primitive", "width", "fine"),
    [
        ("flash", 64, True),
        ("flash", 256, True),
        ("flash", 20, False),
        ("flash", 264, False),
        ("flash_attention_2", 20, False),
        ("efficient", 20, True),
        ("efficient", 18, False),
        ("efficient", 264, True),
        ("cpu", 18, True),
    ],
)
def test_widths_of_heads_are_those_of_the_kernel(primitive: str, width: int, fine: bool) -> None:
    config = small("llama")
    config.head_dim = width
    assert attention_problems(config) == []
    found = attention_problems(config, primitive)
    assert [f"heads of {width} dimensions" in line for line in found] == [True] * (not fine)


def test_values_of_another_width_fit_no_kernel() -> None:
    (line,) = attention_problems(AutoConfig.for_model("deepseek_v3", num_hidden_layers=2))
    assert "heads of 192 dimensions with values of 128" in line


def test_layers_with_a_window_mix_tokens_by_attention() -> None:
    config = Qwen2Config(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=8)
    assert other_mixers(config) == []
    config.layer_types = ["linear_attention", "full_attention"]
    assert other_mixers(config) == ["linear_attention"]


def test_every_call_of_every_block_is_seen_and_the_config_stays_as_it_was() -> None:
    config = small("llama")
    before = config.to_dict()
    seen = probe(config)
    assert [[(c.documents, c.widths) for c in calls] for calls in seen.blocks] == [[(True, (16, 16, 16))]] * 2
    assert (seen.convolutions, seen.failure, seen.unknown) == ((), "", False)
    assert config.to_dict() == before
    assert config._attn_implementation != PROBE


def test_eighty_layers_cost_less_than_a_second_of_many() -> None:
    config = LlamaConfig(num_hidden_layers=80, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8)
    assert len(probe(config).blocks) == 80
