"""Building a run's model: weights that fit exactly, a verified RoPE table, float32 master weights, useful errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from yarn_train.config import RopeConfig
from yarn_train.errors import ConfigError
from yarn_train.model.load import build_model, load_config, unsupported
from yarn_train.model.registry import SDPA, choose_kernel
from yarn_train.rope import hf as rope_hf

KERNEL = choose_kernel("sdpa", torch.device("cpu"), torch.float32)
YARN = RopeConfig(method="yarn", factor=4.0)
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("saved")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def problem_of(folder: Path, rope: RopeConfig | None = YARN) -> str:
    with pytest.raises(ConfigError) as error:
        build_model(str(folder), load_config(str(folder)), rope, KERNEL)
    (problem,) = error.value.problems
    return problem


def test_a_missing_tensor_is_an_error_that_names_it(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(NORM))
    problem = problem_of(folder)
    assert "missing_keys" in problem
    assert NORM in problem


def test_an_extra_tensor_is_an_error_that_names_it(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update(stray=torch.zeros(2)))
    problem = problem_of(folder)
    assert "unexpected_keys" in problem
    assert "stray" in problem


def test_a_tensor_of_another_shape_is_an_error_that_names_it(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({NORM: torch.zeros(31)}))
    problem = problem_of(folder)
    assert "mismatched_keys" in problem
    assert NORM in problem


def test_a_folder_without_weights_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "safetensors" in problem_of(folder)


@pytest.mark.parametrize("path", ["./not/there", "/not/there", "~/not/there", "outputs/not/there/model"])
def test_a_folder_that_does_not_exist_is_an_error_that_names_it(path: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert error.value.problems[0].startswith(f"model.path: got {path!r}")


def test_a_folder_without_a_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "option", [{"final_logit_softcapping": 30.0}, {"logit_scale": 0.0625}, {"logits_scaling": 8.0}]
)
def test_a_head_that_scales_or_caps_its_logits_is_refused(option: dict[str, float]) -> None:
    (problem,) = unsupported(SimpleNamespace(**option))  # type: ignore[arg-type]
    assert next(iter(option)) in problem


@pytest.mark.parametrize("option", [{"attn_logit_softcapping": 50.0}, {"attention_dropout": 0.1}])
def test_attention_that_no_kernel_here_applies_is_refused(option: dict[str, float]) -> None:
    (problem,) = unsupported(LlamaConfig(**option))
    assert next(iter(option)) in problem


def test_a_plain_head_is_supported() -> None:
    plain = SimpleNamespace(final_logit_softcapping=None, logit_scale=1.0)
    assert unsupported(plain) == unsupported(LlamaConfig()) == []  # type: ignore[arg-type]


def test_weights_become_float32_whatever_the_folder_holds(saved: Path) -> None:
    stored = load_file(saved / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    model = build_model(str(saved), load_config(str(saved)), YARN, KERNEL)
    state = model.state_dict()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())


@pytest.mark.parametrize("weights", ["saved", None])
def test_the_model_has_the_kernel_the_rope_table_and_no_cache(saved: Path, weights: str | None) -> None:
    base = load_config(str(saved))
    model = build_model(str(saved) if weights else None, base, YARN, KERNEL)
    assert model.config._attn_implementation == SDPA
    assert model.config.use_cache is False
    table = rope_hf.table_for(base, YARN)
    rotary = model.model.rotary_emb
    assert torch.equal(rotary.inv_freq, table.inv_freq)
    assert rotary.attention_scaling == pytest.approx(table.attention_factor, abs=1e-12)
    assert table.attention_factor > 1.0
    assert model.config.max_position_embeddings == 256


@pytest.mark.parametrize("weights", ["saved", None])
def test_a_model_that_does_not_hold_the_asked_table_is_refused(
    saved: Path, weights: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rope_hf, "scaled_config", lambda base, rope: base)
    with pytest.raises(rope_hf.RopeTableError, match="pairs are wrong"):
        build_model(str(saved) if weights else None, load_config(str(saved)), YARN, KERNEL)


def test_without_rope_the_config_keeps_its_own_and_is_not_touched(saved: Path, tmp_path: Path) -> None:
    scaled = rope_hf.scaled_config(load_config(str(saved)), YARN)
    before = json.dumps(scaled.to_dict(), sort_keys=True, default=str)
    model = build_model(str(saved), scaled, None, KERNEL)
    assert model.config.rope_parameters == scaled.rope_parameters
    assert torch.equal(model.model.rotary_emb.inv_freq, rope_hf.table_for(load_config(str(saved)), YARN).inv_freq)
    assert json.dumps(scaled.to_dict(), sort_keys=True, default=str) == before


def test_random_weights_are_float32_and_decided_by_the_seed(saved: Path) -> None:
    base = load_config(str(saved))  # says bfloat16

    def built(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_model(None, base, RopeConfig(method="none", factor=1.0), KERNEL).state_dict()

    one, again, other = built(1), built(1), built(2)
    assert {t.dtype for t in one.values()} == {torch.float32}
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
