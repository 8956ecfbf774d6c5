"""Hugging Face configs and models made from our tables, with transformers itself as the judge."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    OPTConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    T5Config,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from yarn_train.config import RopeConfig
from yarn_train.errors import ConfigError
from yarn_train.rope import hf
from yarn_train.rope.frequencies import RopeTable, rope_table

LENGTH, THETA = 256, 5e5
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}
SIZES |= {"max_position_embeddings": LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = {"rope_type": "default", "rope_theta": THETA}
EXPORT_ONLY = {"type", "short_mscale", "long_mscale"}  # keys that only the older spelling carries

ROPES = {  # name -> (options, rope_type it must be written as)
    "none": ({"method": "none", "factor": 1.0}, "default"),
    "pi": ({"method": "pi"}, "linear"),
    "ntk": ({"method": "ntk"}, "longrope"),
    "ntk_by_parts": ({"method": "ntk_by_parts"}, "yarn"),
    "ntk_by_parts_by_rotations": ({"method": "ntk_by_parts", "ramp": "by_rotations"}, "longrope"),
    "yarn": ({}, "yarn"),
    "yarn_s32": ({"factor": 32.0}, "yarn"),
    "yarn_fraction": ({"factor": 2.5}, "yarn"),
    "yarn_betas": ({"alpha": 2.0, "beta": 16.0}, "yarn"),
    "yarn_untruncated": ({"truncate": False}, "yarn"),
    "yarn_temperature": ({"temperature": 0.8}, "yarn"),
    "yarn_by_rotations": ({"ramp": "by_rotations"}, "longrope"),
}


def changed(config, **attributes):
    for name, value in attributes.items():
        setattr(config, name, value)
    return config


def tiny(config_class: type = LlamaConfig, **changes):
    return config_class(**(SIZES | {"rope_parameters": copy.deepcopy(PLAIN)} | changes))


@pytest.fixture(params=ROPES)
def case(request):
    options, rope_type = ROPES[request.param]
    return request.param, RopeConfig(**options), rope_type


def expected_table(rope: RopeConfig, dim: int = 32, theta: float = THETA) -> RopeTable:
    options = dataclasses.asdict(rope)
    for name in ("original_max_position_embeddings", "sliding_window"):
        options.pop(name)
    return rope_table(options.pop("method"), dim=dim, theta=theta, original_length=LENGTH, **options)


def without_export_keys(params: dict) -> dict:
    return {key: value for key, value in params.items() if key not in EXPORT_ONLY}


def test_models_own_rotary_module_computes_our_table(case):
    name, rope, rope_type = case
    config = hf.scaled_config(tiny(), rope)
    assert config.rope_parameters["rope_type"] == rope_type
    assert config.rope_parameters["rope_theta"] == THETA
    assert config.max_position_embeddings == round(rope.factor * LENGTH)
    module = LlamaForCausalLM(config).model.rotary_emb
    table = expected_table(rope)
    exact = rope_type != "longrope"
    torch.testing.assert_close(module.inv_freq, table.inv_freq, rtol=0.0 if exact else 2.5e-7, atol=0.0)
    assert module.attention_scaling == table.attention_factor
    assert torch.equal(module.inv_freq, expected_table(RopeConfig(method="none")).inv_freq) == (name == "none")


def test_table_holds_below_and_above_the_original_length(case):
    """transformers' longrope refills its table in forward, by sequence length; ours must be the same on both sides."""
    _, rope, _ = case
    model = LlamaForCausalLM(hf.scaled_config(tiny(), rope))
    table = hf.table_for(tiny(), rope)
    for length in (8, LENGTH, LENGTH + 1, 2 * LENGTH, 8):
        model(torch.ones(1, length, dtype=torch.long))
        hf.verify_tables(model, table)


def test_reloaded_config_has_both_spellings_and_the_same_rope(case, tmp_path):
    _, rope, rope_type = case
    config = hf.scaled_config(tiny(), rope)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = hf.write_both_spellings(json.loads(path.read_text()))
    path.write_text(json.dumps(written))

    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == THETA
    if rope_type == "default":
        assert written["rope_scaling"] is None
    else:
        assert written["rope_scaling"]["rope_type"] == written["rope_scaling"]["type"] == rope_type
        assert "rope_theta" not in written["rope_scaling"]

    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert without_export_keys(reloaded.rope_parameters) == config.rope_parameters
    hf.verify_tables(LlamaForCausalLM(reloaded), hf.table_for(tiny(), rope))


def test_each_spelling_alone_gives_the_same_rope(case, tmp_path):
    """Readers of one spelling only must not be worse off than readers of both."""
    _, rope, _ = case
    config = hf.scaled_config(tiny(), rope)
    both = hf.write_both_spellings(config.to_dict())
    for dropped in (["rope_parameters"], ["rope_scaling", "rope_theta"]):
        kept = {key: value for key, value in copy.deepcopy(both).items() if key not in dropped}
        reloaded = LlamaConfig.from_dict(kept)
        assert without_export_keys(reloaded.rope_parameters) == config.rope_parameters


def test_yarn_export_is_what_servers_read():
    params = hf.scaled_config(tiny(), RopeConfig()).rope_parameters
    assert params == {
        "rope_type": "yarn",
        "rope_theta": THETA,
        "factor": 16.0,
        "original_max_position_embeddings": LENGTH,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
    }


def test_attention_factor_is_written_only_when_it_differs():
    for rope, expected in [(RopeConfig(method="ntk_by_parts"), 1.0), (RopeConfig(temperature=0.25), 2.0)]:
        assert hf.scaled_config(tiny(), rope).rope_parameters["attention_factor"] == expected


def test_longrope_export_also_carries_the_names_vllm_reads():
    config = hf.scaled_config(tiny(), RopeConfig(ramp="by_rotations"))
    scaling = hf.write_both_spellings(config.to_dict())["rope_scaling"]
    assert scaling["short_mscale"] == scaling["long_mscale"] == scaling["attention_factor"] == pytest.approx(1.277259)
    assert scaling["short_factor"] == scaling["long_factor"]


def test_transformers_has_nothing_to_warn_about(case, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        config = hf.scaled_config(tiny(), case[1])
        LlamaForCausalLM(LlamaConfig.from_dict(config.to_dict()))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_base_config_is_left_alone(case):
    base = tiny()
    before = copy.deepcopy(base.to_dict())
    hf.scaled_config(base, case[1])
    assert base.to_dict() == before


def test_write_both_spellings_leaves_its_input_and_other_models_alone():
    config = tiny().to_dict()
    before = copy.deepcopy(config)
    hf.write_both_spellings(config)
    assert config == before
    plain = GPT2Config().to_dict()
    assert hf.write_both_spellings(plain) == plain


@pytest.mark.parametrize(
    ("config_class", "model_class", "extra", "dim"),
    [
        (GPTNeoXConfig, GPTNeoXForCausalLM, {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.25}}, 8),
        (PhiConfig, PhiForCausalLM, {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}, 16),
        (MixtralConfig, MixtralForCausalLM, {"num_key_value_heads": 1, "head_dim": None, "num_local_experts": 2}, 32),
        (Phi3Config, Phi3ForCausalLM, {}, 32),
        (LlamaConfig, LlamaForCausalLM, {"head_dim": 64}, 64),
    ],
    ids=["gpt_neox", "phi", "mixtral", "phi3", "wide_heads"],
)
def test_other_architectures(config_class, model_class, extra, dim, tmp_path):
    """Partial rotary, a null head_dim, Phi-3 (which turns yarn into longrope) and heads wider than hidden/heads."""
    base = tiny(config_class, **copy.deepcopy(extra))
    table = hf.table_for(base, RopeConfig())
    assert torch.equal(table.inv_freq, expected_table(RopeConfig(), dim).inv_freq)
    config = hf.scaled_config(base, RopeConfig())
    hf.verify_tables(model_class(config), table)
    (tmp_path / "config.json").write_text(json.dumps(hf.write_both_spellings(config.to_dict())))
    hf.verify_tables(model_class(AutoConfig.from_pretrained(tmp_path)), table)


def test_gpt_neox_export_uses_its_old_names_too():
    base = tiny(GPTNeoXConfig, rope_parameters=PLAIN | {"partial_rotary_factor": 0.25})
    written = hf.write_both_spellings(hf.scaled_config(base, RopeConfig()).to_dict())
    assert (written["rotary_emb_base"], written["rotary_pct"]) == (THETA, 0.25)
    assert (written["rope_theta"], written["partial_rotary_factor"]) == (THETA, 0.25)


def test_base_rope_reads_both_spellings():
    old = SimpleNamespace(
        model_type="llama", rope_theta=THETA, rope_scaling=None, hidden_size=64, num_attention_heads=2
    )
    old.max_position_embeddings = LENGTH
    assert hf.base_rope(old) == hf.base_rope(tiny()) == hf.BaseRope(THETA, 32, LENGTH, None)
    old.rope_scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    read = hf.base_rope(old)
    assert (read.original_length, read.scaled) == (64, old.rope_scaling)


def test_logits_grow_by_the_square_of_the_attention_factor():
    """q.k after the model's own rotation, with and without temperature on the same frequencies: m^2, not m."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, LENGTH, 32).unbind(0)
    positions = torch.arange(LENGTH)[None]
    logits = []
    for method in ("yarn", "ntk_by_parts"):
        rotary = LlamaForCausalLM(hf.scaled_config(tiny(), RopeConfig(method=method))).model.rotary_emb
        q_rotated, k_rotated = apply_rotary_pos_emb(q, k, *rotary(q, positions))
        logits.append(q_rotated @ k_rotated.transpose(-1, -2))
    torch.testing.assert_close(logits[0], logits[1] * 1.631390, rtol=1e-4, atol=1e-4)


def test_hooked_attention_scores_grow_by_the_square_of_the_attention_factor():
    scores = []
    for method in ("yarn", "ntk_by_parts"):
        torch.manual_seed(0)
        config = hf.scaled_config(tiny(), RopeConfig(method=method))
        config._attn_implementation = "eager"
        model = LlamaForCausalLM(config).eval()
        model.model.layers[0].self_attn.register_forward_hook(lambda _m, _i, output: scores.append(output[1].log()))
        with torch.no_grad():
            model(torch.arange(3, 35)[None])
    last = [s[..., -1, :] - s[..., -1, :1] for s in scores]  # log softmax up to a constant = differences of logits
    torch.testing.assert_close(last[0], last[1] * 1.631390, rtol=1e-3, atol=1e-5)


REFUSED = {
    "ALiBi": [BloomConfig(), MptConfig(), FalconConfig(alibi=True)],
    "learned or no positions": [GPT2Config(), OPTConfig()],
    "relative position buckets": [T5Config()],
    "hard-coded": [GPTJConfig()],
    "composite": [LlavaConfig()],
    "one RoPE per kind of layer, and none for full attention": [
        changed(Gemma3TextConfig(), rope_parameters={"sliding_attention": dict(PLAIN), "full_attention": None})
    ],
    "scaled in layers of sliding_attention too": [
        Gemma3TextConfig(
            rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
        )
    ],
}


@pytest.mark.parametrize(
    ("reason", "config"),
    [(reason, config) for reason, configs in REFUSED.items() for config in configs],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_models_without_one_rope_are_refused(reason, config):
    (found,) = hf.check_base(config, RopeConfig())
    assert found.startswith("model.path: got")
    assert reason in found
    assert "fix:" in found
    for refusing in (
        hf.base_rope,
        lambda c: hf.table_for(c, RopeConfig()),
        lambda c: hf.scaled_config(c, RopeConfig()),
    ):
        with pytest.raises(ConfigError, match=reason):
            refusing(config)


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, "pretrained at 64 tokens"),
        (
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            "pretrained at 128 tokens",
        ),
        ({"rope_type": "linear", "factor": 4.0}, "rope_type=linear"),
        ({"rope_type": "dynamic", "factor": 4.0}, "rope_type=dynamic"),
        (
            {
                "rope_type": "longrope",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
            },
            "rope_type=longrope; it was pretrained at 64",
        ),
        ({"rope_type": "default", "mrope_section": [4, 6, 6]}, "mrope_section"),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_scaled_bases_are_refused(scaling, says):
    base = tiny(rope_parameters={"rope_theta": THETA} | scaling)
    (found,) = hf.check_base(base, RopeConfig())
    assert says in found
    assert "allowed: a base with unscaled RoPE" in found
    with pytest.raises(ConfigError, match="unscaled RoPE"):
        hf.scaled_config(base, RopeConfig())


def test_original_length_must_not_contradict_the_base():
    (found,) = hf.check_base(tiny(), RopeConfig(original_max_position_embeddings=4096))
    assert found.startswith("rope.original_max_position_embeddings: got 4096")
    assert str(LENGTH) in found
    assert hf.check_base(tiny(), RopeConfig(original_max_position_embeddings=LENGTH)) == []


def test_missing_original_length_is_refused_unless_given():
    base = SimpleNamespace(model_type="llama", rope_parameters=PLAIN, hidden_size=64, num_attention_heads=2)
    (found,) = hf.check_base(base, RopeConfig())
    assert found.startswith("rope.original_max_position_embeddings: got None")
    rope = RopeConfig(original_max_position_embeddings=LENGTH)
    assert torch.equal(hf.table_for(base, rope).inv_freq, expected_table(rope).inv_freq)


def test_odd_rotary_dimensions_are_refused():
    base = tiny(rope_parameters=PLAIN | {"partial_rotary_factor": 0.29})
    (found,) = hf.check_base(base, RopeConfig())
    assert "9 rotary dimensions" in found


def test_architecture_that_rewrites_every_spelling_is_refused(monkeypatch):
    monkeypatch.setattr(LlamaConfig, "from_dict", classmethod(lambda cls, _: tiny()))
    with pytest.raises(ConfigError, match="llama configs can carry"):
        hf.scaled_config(tiny(), RopeConfig())


def built(rope: RopeConfig | None = None):
    rope = rope or RopeConfig()
    return LlamaForCausalLM(hf.scaled_config(tiny(), rope)), hf.table_for(tiny(), rope)


def test_rotary_modules_are_found():
    model, _ = built()
    assert [name for name, _ in hf.rotary_modules(model)] == ["model.rotary_emb"]


@pytest.mark.parametrize("buffer", ["inv_freq", "original_inv_freq"])
@pytest.mark.parametrize("value", [0.0, float("nan"), None], ids=["zero", "nan", "one_ulp"])
def test_corrupted_pair_is_named(buffer, value):
    model, table = built()
    values = getattr(model.model.rotary_emb, buffer)
    values[7] = values[7].nextafter(torch.tensor(1.0)) if value is None else value
    with pytest.raises(hf.RopeTableError, match=rf"model\.rotary_emb\.{buffer}: 1 of 16 pairs are wrong, first pair 7"):
        hf.verify_tables(model, table)


def test_corrupted_longrope_table_is_detected():
    model, table = built(RopeConfig(ramp="by_rotations"))
    model.model.rotary_emb.inv_freq[3] *= 1 + 3e-6
    with pytest.raises(hf.RopeTableError, match="first pair 3"):
        hf.verify_tables(model, table)


def test_table_cast_to_bfloat16_is_detected():
    model, table = built()
    with pytest.raises(hf.RopeTableError, match=r"torch\.bfloat16"):
        hf.verify_tables(copy.deepcopy(model).to(torch.bfloat16), table)
    with pytest.raises(hf.RopeTableError, match="pairs are wrong"):  # rounded once, even if widened again
        hf.verify_tables(model.to(torch.bfloat16).float(), table)


def test_table_on_meta_is_detected():
    with torch.device("meta"):
        model = LlamaForCausalLM(hf.scaled_config(tiny(), RopeConfig()))
    with pytest.raises(hf.RopeTableError, match="meta tensor"):
        hf.verify_tables(model, hf.table_for(tiny(), RopeConfig()))


def test_wrong_attention_factor_is_detected():
    model, table = built()
    model.model.rotary_emb.attention_scaling = 1.0
    with pytest.raises(hf.RopeTableError, match=r"got 1\.0; expected 1\.277259"):
        hf.verify_tables(model, table)


def test_config_changed_after_building_is_detected():
    model, _ = built(RopeConfig(method="none", factor=1.0))
    model.config.rope_parameters = hf.scaled_config(tiny(), RopeConfig()).rope_parameters
    with pytest.raises(hf.RopeTableError, match="pairs are wrong"):
        hf.verify_tables(model, hf.table_for(tiny(), RopeConfig()))


def test_model_without_rotary_modules_is_refused():
    with pytest.raises(hf.RopeTableError, match="Linear has no rotary module"):
        hf.verify_tables(torch.nn.Linear(2, 2), expected_table(RopeConfig()))


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "yarn" if name.startswith("yarn") and "rotations" not in name else name) for name in ROPES],
)
def test_method_of_names_what_we_write(name, method):
    rope = RopeConfig(**ROPES[name][0])
    assert hf.method_of(hf.scaled_config(tiny(), rope)) == (method, rope.factor)


def test_method_of_keeps_foreign_names():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 128, "rope_theta": THETA}
    assert hf.method_of(tiny(rope_parameters=llama3)) == ("llama3", 8.0)
    foreign = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "rope_theta": THETA}
    foreign |= {"original_max_position_embeddings": 64, "attention_factor": 1.0}
    assert hf.method_of(tiny(rope_parameters=foreign)) == ("longrope", 4.0)
