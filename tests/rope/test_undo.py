"""Bases that came scaled: what is undone is exactly the unscaled base, and nothing is undone unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Phi3Config

from yarn_train.config import Config, ModelConfig, RopeConfig
from yarn_train.errors import ConfigError
from yarn_train.eval.variants import variants
from yarn_train.model.load import base_notes, base_scaling, load_base
from yarn_train.rope import hf
from yarn_train.rope.undo import own_scaling, unscaled
from yarn_train.stages import Stage

LENGTH, THETA = 256, 5e5
SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
SIZES |= {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ASKED = RopeConfig(factor=32.0)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": LENGTH}


def plain() -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": THETA}
    return LlamaConfig(**SIZES, max_position_embeddings=LENGTH, rope_parameters=rope)


def scaled(params: dict[str, Any], length: int = 16 * LENGTH) -> LlamaConfig:
    return LlamaConfig(**SIZES, max_position_embeddings=length, rope_parameters={"rope_theta": THETA, **params})


def published(tmp_path: Path, options: RopeConfig) -> Any:
    """A config as this project exports it, read back by transformers."""
    config = hf.write_both_spellings(hf.scaled_config(plain(), options).to_dict())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    return AutoConfig.from_pretrained(tmp_path)


WAYS = {
    "yarn": (RopeConfig(factor=16.0), "yarn, factor 16 of original 256 = 4096 tokens"),
    "yarn_betas": (RopeConfig(factor=16.0, alpha=2.0, beta=24.0, temperature=0.7), "yarn, factor 16 of original 256"),
    "pi": (RopeConfig(method="pi", factor=16.0), "pi, factor 16 of original 256 = 4096 tokens"),
    "ntk": (RopeConfig(method="ntk", factor=16.0), "ntk, factor 16 of original 256 = 4096 tokens"),
    "by_rotations": (RopeConfig(ramp="by_rotations", factor=16.0), "yarn_by_rotations, factor 16 of original 256"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_published_extension_goes_on_from_its_original_length(way: str, tmp_path: Path) -> None:
    options, told = WAYS[way]
    base, note = unscaled(published(tmp_path, options), ModelConfig(), ASKED)
    assert told in note
    assert base.max_position_embeddings == LENGTH
    ours, right = hf.table_for(base, ASKED), hf.table_for(plain(), ASKED)
    assert torch.equal(ours.inv_freq, right.inv_freq)
    assert ours.attention_factor == right.attention_factor
    config = hf.scaled_config(base, ASKED)
    assert config.max_position_embeddings == 32 * LENGTH
    hf.verify_tables(LlamaForCausalLM(config), right)


@pytest.mark.parametrize(
    ("params", "length"),
    [(LLAMA3, LENGTH), ({"rope_type": "dynamic", "factor": 4.0}, 16 * LENGTH)],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_other_scalings_are_undone_only_when_asked(params: dict[str, Any], length: int) -> None:
    config = scaled(params)
    assert unscaled(config, ModelConfig(), ASKED) == (config, "")
    (line,) = hf.check_base(config, ASKED)
    assert "model.base_rope=undo" in line
    base, note = unscaled(config, ModelConfig(base_rope="undo"), ASKED)
    assert note
    assert hf.base_rope(base) == hf.BaseRope(THETA, 32, length, None)


def test_longrope_of_others_is_undone_only_when_asked() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "rope_theta": THETA}
    config = Phi3Config(
        **SIZES, max_position_embeddings=16 * LENGTH, original_max_position_embeddings=LENGTH, rope_parameters=rope
    )
    assert unscaled(config, ModelConfig(), ASKED)[1] == ""
    base = unscaled(config, ModelConfig(base_rope="undo"), ASKED)[0]
    assert (hf.base_rope(base).scaled, hf.base_rope(base).original_length) == (None, LENGTH)
    assert hf.scaled_config(base, ASKED).original_max_position_embeddings == LENGTH


def test_nothing_is_undone_where_that_is_refused() -> None:
    config = hf.scaled_config(plain(), RopeConfig())
    assert unscaled(config, ModelConfig(base_rope="refuse"), ASKED) == (config, "")
    assert unscaled(plain(), ModelConfig(base_rope="undo"), ASKED)[1] == ""


def test_a_length_that_transformers_filled_in_is_asked_for() -> None:
    """A yarn config without an original length gets the extended one from transformers, silently."""
    config = scaled({"rope_type": "yarn", "factor": 16.0})
    assert config.rope_parameters["original_max_position_embeddings"] == 16 * LENGTH
    with pytest.raises(
        ConfigError, match="original_max_position_embeddings: got 'null, for a base with rope_type=yarn"
    ):
        unscaled(config, ModelConfig(), ASKED)
    with pytest.raises(ConfigError, match=f"original_max_position_embeddings={16 * LENGTH} if that is it"):
        unscaled(config, ModelConfig(), ASKED)
    stated = RopeConfig(factor=32.0, original_max_position_embeddings=LENGTH)
    assert hf.base_rope(unscaled(config, ModelConfig(), stated)[0]).original_length == LENGTH


def test_another_length_than_the_stated_one_is_refused() -> None:
    config = hf.scaled_config(plain(), RopeConfig())
    wrong = RopeConfig(factor=32.0, original_max_position_embeddings=2 * LENGTH)
    with pytest.raises(ConfigError, match="got 512; allowed: 256, which the base's own yarn names"):
        unscaled(config, ModelConfig(), wrong)


@pytest.mark.parametrize("longest", [LENGTH, 4 * LENGTH], ids=["LongLoRA's way", "extended"])
def test_pi_that_names_no_original_length_is_asked_for_it(longest: int) -> None:
    """LongAlpaca keeps max_position_embeddings at L, others raise it, Gemma 3 does neither: its factor does not say."""
    config = scaled({"rope_type": "linear", "factor": 4.0}, length=longest)
    with pytest.raises(ConfigError, match=rf"allowed: {longest} or {longest // 4}; fix: state what it was pretrained"):
        unscaled(config, ModelConfig(), ASKED)
    assert hf.pretrained_length(config) is None
    assert hf.possible_lengths(config) == (longest, longest // 4)
    stated = RopeConfig(factor=32.0, original_max_position_embeddings=LENGTH)
    base, note = unscaled(config, ModelConfig(), stated)
    assert hf.base_rope(base).original_length == LENGTH
    assert f"pi, factor 4 of original {LENGTH} = {4 * LENGTH} tokens" in note


def test_an_unscaled_base_whose_config_names_another_length_takes_the_stated_one_when_told_to() -> None:
    """Mistral 7B v0.1 says 32,768 and was trained at 8,192; Qwen 3 says 40,960, 8,192 of them for an answer."""
    config, stated = plain(), RopeConfig(factor=32.0, original_max_position_embeddings=LENGTH // 4)
    assert unscaled(config, ModelConfig(), stated) == (config, "")
    (line,) = hf.check_base(config, stated)
    assert "add model.base_rope=undo" in line
    base, note = unscaled(config, ModelConfig(base_rope="undo"), stated)
    assert note == "the base's config says 256 tokens; original length 64, as stated"
    assert hf.check_base(base, stated) == []
    assert hf.scaled_config(base, stated).max_position_embeddings == 32 * LENGTH // 4
    assert config.max_position_embeddings == LENGTH


def test_the_note_names_the_length_that_other_scalings_reach() -> None:
    """Llama 3.1: factor 8 of 8,192 reaches 131,072."""
    _, note = unscaled(scaled(LLAMA3, 16 * LENGTH), ModelConfig(base_rope="undo"), ASKED)
    assert f"llama3, factor 8 of original {LENGTH} = {16 * LENGTH} tokens" in note


def test_a_changed_theta_is_undone_with_the_length_it_goes_with() -> None:
    config = LlamaConfig(
        **SIZES, max_position_embeddings=16 * LENGTH, rope_parameters={"rope_type": "default", "rope_theta": 8e6}
    )
    with pytest.raises(ConfigError, match=r"where model\.rope_theta undoes another theta"):
        unscaled(config, ModelConfig(rope_theta=THETA), ASKED)
    stated = RopeConfig(factor=32.0, original_max_position_embeddings=LENGTH)
    base, note = unscaled(config, ModelConfig(rope_theta=THETA), stated)
    assert "theta 8e+06 of the base undone" in note
    assert torch.equal(hf.table_for(base, stated).inv_freq, hf.table_for(plain(), ASKED).inv_freq)
    assert hf.scaled_config(base, stated).rope_parameters["rope_theta"] == THETA


@pytest.mark.parametrize("way", ["yarn", "yarn_betas", "pi"])
def test_the_bases_own_curve_is_read_as_it_came(way: str, tmp_path: Path) -> None:
    options, _ = WAYS[way]
    config = published(tmp_path, options)
    cfg = Config(model=ModelConfig(path=str(tmp_path)), rope=ASKED)
    came = base_scaling(cfg)
    assert came is not None
    own = LlamaForCausalLM(config).model.rotary_emb
    table = hf.table_for(load_base(cfg), came)
    torch.testing.assert_close(table.inv_freq, own.inv_freq, rtol=0, atol=0)
    assert table.attention_factor == pytest.approx(own.attention_scaling, rel=1e-12)
    (line,) = base_notes(cfg)
    assert line.startswith("base rope: the base came with ")
    first = variants([Stage("s32", tmp_path, cfg)], "weights", came)[0]
    assert (first.rope, first.factor) == (came, 16.0)
    assert first.label == ("base, PI s=16" if way == "pi" else "base, YaRN s=16")


def test_a_plain_base_has_no_scaling_of_its_own(tmp_path: Path) -> None:
    config = published(tmp_path, RopeConfig(method="none", factor=1.0))
    assert own_scaling(config, ASKED) is None
    cfg = Config(model=ModelConfig(path=str(tmp_path)), rope=ASKED)
    assert (base_scaling(cfg), base_notes(cfg)) == (None, [])
